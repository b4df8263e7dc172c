"""A folder is told by what lies in it; one that is no checkpoint gets a sentence that says why and what would be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llava_core.checkpoints.recognise import recognise
from llava_core.errors import BadCheckpoint
from tests.checkpoints.originals import ORIGINALS, base_of

KINDS = {
    "llava-7b-v0": "original",
    "llava-v1.5-7b": "original",
    "llava-v1.6-34b": "original",
    "llava-v1.6-mistral-7b": "original",
    "llava-v1.6-vicuna-7b": "original",
    "llava-pretrain-vicuna-7b": "projector",
    "llava-v1.5-7b-lora": "lora",
    "vicuna-base": "text",
}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_a_checkpoint_is_known_under_any_name(name: str, kind: str, tmp_path: Path) -> None:
    renamed = tmp_path / "x"
    shutil.copytree(ORIGINALS / name, renamed)
    assert recognise(renamed, base=base_of(name)).kind == kind


def empty(folder: Path) -> None: ...


def readme_only(folder: Path) -> None:
    (folder / "README.md").write_text("hello")


def one_level_up(folder: Path) -> None:
    shutil.copytree(ORIGINALS / "llava-7b-v0", folder / "inner")


def gguf(folder: Path) -> None:
    (folder / "ggml-model-q4_k.gguf").write_bytes(b"GGUF")


def broken_json(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llava"')


def json_list(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")


def lone_tower(folder: Path) -> None:
    shutil.copytree(ORIGINALS / "clip-vit-224", folder, dirs_exist_ok=True)


def without_weights(folder: Path) -> None:
    shutil.copy(ORIGINALS / "llava-v1.5-7b" / "config.json", folder)


def lost_shard(folder: Path) -> None:
    shutil.copytree(ORIGINALS / "llava-v1.5-7b", folder, dirs_exist_ok=True)
    (folder / "pytorch_model-00003-of-00004.bin").unlink()


def cut_short(folder: Path) -> None:
    shutil.copytree(ORIGINALS / "llava-v1.6-34b", folder, dirs_exist_ok=True)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200_000])


def lfs_pointer(folder: Path) -> None:
    shutil.copytree(ORIGINALS / "llava-7b-v0", folder, dirs_exist_ok=True)
    (folder / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def lora_without_projector(folder: Path) -> None:
    shutil.copytree(ORIGINALS / "llava-v1.5-7b-lora", folder, dirs_exist_ok=True)
    (folder / "non_lora_trainables.bin").unlink()


def adapter_alone(folder: Path) -> None:
    shutil.copy(ORIGINALS / "llava-v1.5-7b-lora" / "adapter_config.json", folder)


BAD: list[tuple[Callable[[Path], None], str]] = [
    (empty, "the folder is empty.*Understood is.*llava-hf format"),
    (readme_only, "found README.md.*Understood is"),
    (one_level_up, "perhaps you mean .*inner"),
    (gguf, "GGUF.*llama-server"),
    (broken_json, "config.json .* is damaged"),
    (json_list, "not a JSON object"),
    (lone_tower, "CLIPVisionModel.*found config.json, model.safetensors.*Understood is"),
    (without_weights, "config.json but no weights: found config.json"),
    (lost_shard, "lacks 1 of 4 weight files .*pytorch_model-00003-of-00004.bin"),
    (cut_short, r"model.safetensors .* cut short \(200,000 bytes\)"),
    (lfs_pointer, "pytorch_model.bin .*Git LFS pointer.*git lfs pull"),
    (lora_without_projector, "no non_lora_trainables.bin"),
    (adapter_alone, "no config.json beside its adapter"),
]


@pytest.mark.parametrize(("build", "sentence"), BAD, ids=lambda value: getattr(value, "__name__", ""))
def test_a_folder_that_is_no_checkpoint_gets_a_sentence(
    build: Callable[[Path], None], sentence: str, tmp_path: Path
) -> None:
    build(tmp_path)
    with pytest.raises(BadCheckpoint, match=f"(?s){sentence}"):
        recognise(tmp_path)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"is a file; give the folder"):
        recognise(ORIGINALS / "llava-v1.6-34b" / "model.safetensors")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(BadCheckpoint, match="GGUF"):
        recognise(tmp_path / "model.gguf")


def test_a_base_is_meant_from_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ORIGINALS / "llava-pretrain-vicuna-7b", tmp_path / "models" / "projector")
    for place in (tmp_path, tmp_path / "models"):
        shutil.copytree(ORIGINALS / "vicuna-base", place / "base")
    monkeypatch.chdir(tmp_path)
    assert recognise("models/projector", base="base").base == str((tmp_path / "base").resolve())


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"there is no folder '.*none'"):
        recognise(tmp_path / "none")


def test_a_hub_id_without_internet_says_what_to_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadCheckpoint, match=r"(?s)neither a folder here nor in the .* cache.*hf download some/model"):
        recognise("some/model")


def test_a_hub_id_is_found_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    repository = tmp_path / "models--some--model"
    snapshot = repository / "snapshots" / "abc"
    shutil.copytree(ORIGINALS / "llava-v1.6-34b", snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert recognise("some/model").folder.samefile(snapshot)


def test_recognising_needs_no_torch() -> None:
    import subprocess
    import sys

    script = f"import sys, llava_core.checkpoints.recognise as r; r.recognise({str(ORIGINALS / 'llava-7b-v0')!r}); "
    subprocess.run([sys.executable, "-c", script + "assert 'torch' not in sys.modules"], check=True, timeout=60)


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["WhisperForConditionalGeneration"]}))
    with pytest.raises(BadCheckpoint, match="WhisperForConditionalGeneration"):
        recognise(tmp_path)
