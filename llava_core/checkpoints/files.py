"""The files of a checkpoint: where they are, which hold weights, whether they are whole. Reads headers, not weights."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_core.errors import BadCheckpoint

UNDERSTOOD = (
    "a folder in llava-hf format (config.json with text_config and vision_config), "
    "in original LLaVA format (config.json with mm_vision_tower, and weights, mm_projector.bin or a LoRA adapter), "
    "or a causal language model, with weights in .safetensors or .bin"
)
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_FETCHED = ("*.json", "*.jinja", "*.model", "*.txt", "*.safetensors", "*.bin")
_LFS = b"version https://git-lfs"
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_NOT_THE_MODEL = re.compile(r"^(mm_projector|non_lora_trainables|adapter_model|training_args|optimizer|scheduler)")


def find_folder(path: str | os.PathLike[str], *, beside: Path | None = None) -> Path:
    """The local folder of a checkpoint given as a path or a Hugging Face id, fetched if the hub can be reached.

    A relative path is tried beside the folder `beside` first. Raises BadCheckpoint that says what to do.
    """
    text = os.fspath(path)
    for local in _local_candidates(text, beside):
        if local.is_dir():
            return local
        if local.is_file():
            raise BadCheckpoint(_file_instead_of_folder(local))
    if _HUB_ID.match(text):
        return _from_hub(text)
    raise BadCheckpoint(f"there is no folder {text!r}; give the path of a checkpoint's folder or a Hugging Face id")


def _local_candidates(text: str, beside: Path | None) -> list[Path]:
    path = Path(text).expanduser()
    if beside is None or path.is_absolute():
        return [path]
    # A tower or base is often put next to the checkpoint that names it, under the last part of its id.
    return [beside / path, beside / path.name, beside.parent / path.name, path]


def _file_instead_of_folder(path: Path) -> str:
    if path.suffix == ".gguf":
        return gguf_sentence(path.parent, [path.name])
    return f"{path.name!r} is a file; give the folder it lies in, {str(path.parent)!r}"


def gguf_sentence(folder: Path, names: Sequence[str]) -> str:
    return (
        f"{folder.name!r} holds GGUF weights ({', '.join(names[:3])}), which are llama.cpp's; take the checkpoint in "
        "safetensors, or serve this one with llama-server"
    )


def _from_hub(repo: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    ignore: list[str] = []
    try:
        names = HfApi().list_repo_files(repo)
        if any(name.endswith(".safetensors") for name in names):
            # Many repositories keep the same weights twice.
            ignore = ["pytorch_model*.bin"]
        return Path(snapshot_download(repo, allow_patterns=list(_FETCHED), ignore_patterns=ignore))
    except GatedRepoError as cause:
        raise BadCheckpoint(
            f"Hugging Face gives {repo!r} only to people who accepted its terms; accept them on its page, then log in "
            "with `hf auth login`"
        ) from cause
    except RepositoryNotFoundError as cause:
        raise BadCheckpoint(
            f"Hugging Face has no repository {repo!r} (or it is private), and there is no such folder here"
        ) from cause
    except Exception as cause:
        return _from_cache(repo, cause)


def _from_cache(repo: str, why: Exception) -> Path:
    from huggingface_hub import constants, snapshot_download

    try:
        return Path(snapshot_download(repo, local_files_only=True))
    except Exception as cause:
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"the hub cannot be reached ({why})"
        raise BadCheckpoint(
            f"{repo!r} is neither a folder here nor in the Hugging Face cache, and {offline}; fetch it where there is "
            f"internet with `hf download {repo}` and copy it into a folder, or its cache into {constants.HF_HUB_CACHE}"
        ) from cause


def list_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def found_in(folder: Path) -> str:
    """What lies in the folder, for an error message."""
    names = [name for name in list_names(folder) if not name.startswith(".")]
    if not names:
        return "the folder is empty"
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"found {', '.join(names[:12])}{more}"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. BadCheckpoint where it is damaged or no object."""
    check_not_pointer(path)
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as cause:
        raise BadCheckpoint(f"{path.name} of {path.parent.name!r} is damaged ({cause}); fetch it again") from cause
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{path.name} of {path.parent.name!r} is not a JSON object; fetch it again")
    return content


def check_not_pointer(path: Path) -> None:
    """BadCheckpoint where git left a pointer in place of the file."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_LFS))
    except OSError as cause:
        raise BadCheckpoint(f"{path.name} of {path.parent.name!r} cannot be read: {cause}") from cause
    if head == _LFS:
        raise BadCheckpoint(
            f"{path.name} of {path.parent.name!r} is a Git LFS pointer, not the file itself; run `git lfs pull` in the "
            "folder, or download the file"
        )


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files with the model's weights (projector-only and adapter files are not among them), safetensors first.

    BadCheckpoint where an index names a file that is missing, or a file is a pointer or cut short.
    """
    names = list_names(folder)
    for suffix, index_name in zip((".safetensors", ".bin"), _INDEXES, strict=True):
        files = [folder / name for name in names if name.endswith(suffix) and not _NOT_THE_MODEL.match(name)]
        if index_name in names:
            files = _indexed(folder, index_name)
        if files:
            for file in files:
                check_whole(file)
            return tuple(files)
    return ()


def _indexed(folder: Path, index_name: str) -> list[Path]:
    weight_map = read_json(folder / index_name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadCheckpoint(f"{index_name} of {folder.name!r} has no weight_map; fetch it again")
    files = [folder / str(name) for name in sorted(set(weight_map.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise BadCheckpoint(
            f"{folder.name!r} lacks {len(missing)} of {len(files)} weight files that {index_name} names: "
            f"{', '.join(missing[:5])}; fetch them"
        )
    return files


def check_whole(path: Path) -> None:
    """BadCheckpoint where a weight file is a pointer, empty or cut short."""
    check_not_pointer(path)
    if path.stat().st_size == 0:
        raise BadCheckpoint(f"{path.name} of {path.parent.name!r} is empty; fetch it again")
    if path.suffix == ".safetensors":
        safetensors_header(path)


def safetensors_header(path: Path) -> Mapping[str, Any]:
    """Names to `{dtype, shape, data_offsets}`. BadCheckpoint for a file that is damaged or shorter than it says."""
    size = path.stat().st_size
    damaged = f"{path.name} of {path.parent.name!r} is damaged or cut short ({size:,} bytes)"
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, 100_000_000):
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if 8 + length + end > size:
            raise ValueError(f"{8 + length + end:,} were written")
    except (ValueError, KeyError, TypeError, struct.error) as cause:
        raise BadCheckpoint(f"{damaged}: {cause}; fetch it again") from cause
    return header
