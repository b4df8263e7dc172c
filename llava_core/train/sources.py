"""Where samples come from: LLaVA's JSON, JSONL, a folder, or a Hugging Face dataset, each read on demand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llava_core.errors import BadRequest, MissingDependency

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


@dataclass(frozen=True)
class Broken:
    """What stands in place of a record that cannot be read."""

    reason: str


class Source(Protocol):
    """Records as they were written, and where each stands."""

    name: str
    pictures: Path
    """What the records' picture names are relative to."""

    def __len__(self) -> int: ...

    def record(self, index: int) -> Any:
        """The record, or `Broken`."""
        ...

    def place(self, index: int) -> str:
        """Where a person finds it: file and line, or file and item."""
        ...

    def stamp(self) -> str:
        """Changes when the records do."""
        ...


def open_source(data: str, images: str = "") -> Source:
    """Open one of the forms that --data takes. BadRequest for what is not there or of no known form."""
    if data.startswith("hf:"):
        return _hub(data.removeprefix("hf:"), images)
    path = Path(data).expanduser()
    if not path.exists():
        raise BadRequest(f"there is no data at {data!r}; a dataset of the hub is named hf:OWNER/NAME", param="--data")
    if path.is_dir():
        return _folder(path, images)
    pictures = Path(images).expanduser() if images else path.parent
    if path.suffix == ".jsonl":
        return Lines(path, pictures)
    if path.suffix == ".parquet":
        return _hub(str(path), images)
    return Items(path, pictures)


def locate(source: Source, index: int) -> tuple[Source, int]:
    """The innermost source that holds a sample, whose folder its pictures' names are relative to."""
    return source.within(index) if isinstance(source, Chain) else (source, index)


class Items:
    """A JSON file with a list. Its text is parsed at once, its samples are made on demand."""

    def __init__(self, path: Path, pictures: Path) -> None:
        self.name = path.name
        self.pictures = pictures
        self._path = path
        try:
            content: Any = json.loads(path.read_text("utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as cause:
            raise BadRequest(f"{str(path)!r} is not JSON: {cause}; a file of lines must end in .jsonl") from cause
        if not isinstance(content, list):
            raise BadRequest(f"{str(path)!r} holds {type(content).__name__}, not a list of samples")
        self._items: list[Any] = content

    def __len__(self) -> int:
        return len(self._items)

    def record(self, index: int) -> Any:
        return self._items[index]

    def place(self, index: int) -> str:
        return f"{self.name} item {index + 1}"

    def stamp(self) -> str:
        return _stamp(self._path)


class Lines:
    """A file of JSON lines, of which only the offsets are kept in memory."""

    def __init__(self, path: Path, pictures: Path) -> None:
        self.name = path.name
        self.pictures = pictures
        self._path = path
        self._starts: list[int] = []
        self._numbers: list[int] = []
        offset = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    self._starts.append(offset)
                    self._numbers.append(number)
                offset += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def record(self, index: int) -> Any:
        with self._path.open("rb") as file:
            file.seek(self._starts[index])
            line = file.readline()
        try:
            return json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as cause:
            return Broken(f"not JSON: {cause}")

    def place(self, index: int) -> str:
        return f"{self.name} line {self._numbers[index]}"

    def stamp(self) -> str:
        return _stamp(self._path)


class Captions:
    """A folder of pictures, each with a caption in a text file of the same name."""

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self.name = folder.name
        self.pictures = folder
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def record(self, index: int) -> Any:
        picture = self._files[index]
        words = picture.with_suffix(".txt")
        try:
            caption = words.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as cause:
            return Broken(f"its caption {words.name} cannot be read: {cause}")
        return {"id": picture.stem, "image": str(picture.relative_to(self.pictures)), "caption": caption}

    def place(self, index: int) -> str:
        return f"{self.name}/{self._files[index].relative_to(self.pictures)}"

    def stamp(self) -> str:
        return "|".join(f"{file}{_stamp(file.with_suffix('.txt'))}" for file in self._files)


class Chain:
    """Several sources as one."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.name = ", ".join(source.name for source in sources)
        self.pictures = sources[0].pictures
        self._sources = sources

    def __len__(self) -> int:
        return sum(len(source) for source in self._sources)

    def within(self, index: int) -> tuple[Source, int]:
        """The source that holds it, and its index there."""
        for source in self._sources:
            if index < len(source):
                return locate(source, index)
            index -= len(source)
        raise IndexError(index)

    def record(self, index: int) -> Any:
        source, inner = self.within(index)
        return source.record(inner)

    def place(self, index: int) -> str:
        source, inner = self.within(index)
        return source.place(inner)

    def stamp(self) -> str:
        return "|".join(source.stamp() for source in self._sources)


class HubRows:
    """Rows of a Hugging Face dataset; pictures come as their bytes."""

    def __init__(self, name: str, rows: Any, pictures: Path) -> None:
        self.name = name
        self.pictures = pictures
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def record(self, index: int) -> Any:
        return self._rows[index].to_pylist()[0]

    def place(self, index: int) -> str:
        return f"{self.name} row {index + 1}"

    def stamp(self) -> str:
        return f"{self.name}|{self._rows._fingerprint}|{len(self._rows)}"


def _folder(path: Path, images: str) -> Source:
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return _hub(str(path), images)
    listed = sorted(file for file in path.iterdir() if file.suffix in (".json", ".jsonl"))
    if listed:
        sources = [open_source(str(file), images) for file in listed]
        return sources[0] if len(sources) == 1 else Chain(sources)
    pictures = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURE_ENDINGS)
    captioned = [file for file in pictures if file.with_suffix(".txt").is_file()]
    if captioned:
        return Captions(path, captioned)
    if any(path.rglob("*.parquet")):
        return _hub(str(path), images)
    raise BadRequest(
        f"the folder {str(path)!r} holds no samples: no .json or .jsonl, no dataset of Hugging Face, and no pictures "
        "with a .txt of the same name",
        param="--data",
    )


def _hub(name: str, images: str) -> Source:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as cause:
        raise MissingDependency(f"reading {name!r} needs the package datasets: pip install datasets==5.2.0") from cause
    path = Path(name)
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            rows: Any = datasets.load_from_disk(name)
        elif path.suffix == ".parquet":
            rows = datasets.load_dataset("parquet", data_files=name, split="train")
        else:
            where, _, split = name.partition("#")
            owner, _, rest = where.partition("/")
            dataset, _, subset = rest.partition("/")
            if subset and not Path(where).exists():
                rows = datasets.load_dataset(f"{owner}/{dataset}", subset, split=split or "train")
            else:
                rows = datasets.load_dataset(where, split=split or "train")
    except Exception as cause:
        raise BadRequest(f"the dataset {name!r} cannot be read: {cause}", param="--data") from cause
    if isinstance(rows, dict):
        if "train" not in rows:
            raise BadRequest(
                f"the dataset {name!r} has no split train, but {', '.join(rows)}; each is a folder in it: name one",
                param="--data",
            )
        rows = rows["train"]
    # As they lie in the file: pictures as bytes, which are decoded under our own limits.
    return HubRows(name, rows.with_format("arrow"), Path(images).expanduser() if images else Path())


def _stamp(path: Path) -> str:
    found = path.stat()
    return f"{path.absolute()}|{found.st_size}|{found.st_mtime_ns}"
