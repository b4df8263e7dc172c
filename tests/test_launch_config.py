"""Model specs and TOML files become what the person meant, or a sentence that says what is wrong."""

from pathlib import Path

import pytest

from llava_core.errors import BadRequest
from serve.launcher.config import LaunchConfig, ModelSpec, load_config, parse_model, read_config


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("org/model", ModelSpec("org/model")),
        ("org/model@0", ModelSpec("org/model", ("0",))),
        ("org/model@0,1:4bit", ModelSpec("org/model", ("0", "1"), quantize="nf4")),
        ("org/model@0:nf4", ModelSpec("org/model", ("0",), quantize="nf4")),
        ("org/model:int8-torchao", ModelSpec("org/model", quantize="int8-torchao")),
        ("org/model:8bit", ModelSpec("org/model", quantize="int8")),
        ("org/model@cpu", ModelSpec("org/model", ())),
        ("/data/llava-v1.5-7b@2,2", ModelSpec("/data/llava-v1.5-7b", ("2",))),
        ("/data/a@b/llava", ModelSpec("/data/a@b/llava")),
    ],
)
def test_a_model_spec_names_path_gpus_and_bits(text: str, spec: ModelSpec) -> None:
    assert parse_model(text) == spec


@pytest.mark.parametrize(
    "text", ["", "org/model:5bit", "org/model@gpu0", "org/model@0,", "org/model@0:4bits", "m@:4bit", "m:int3", "m@0:nf"]
)
def test_a_model_spec_with_a_wrong_ending_is_explained(text: str) -> None:
    with pytest.raises(BadRequest, match="PATH_OR_ID"):
        parse_model(text)


def test_a_folder_whose_name_looks_like_an_ending_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "model@best"
    folder.mkdir()
    assert parse_model(f"{folder}@1") == ModelSpec(str(folder), ("1",))


def test_a_file_and_the_command_line_are_joined_and_the_command_line_wins(tmp_path: Path) -> None:
    (tmp_path / "llava").mkdir()
    file = tmp_path / "launch.toml"
    file.write_text(
        'port = 7001\nhost = "0.0.0.0"\nallow-image-host = ["a.org"]\nconv-template = "llava_v1"\n'
        'share = true\nlogs = "my-logs"\nkv-memory = "40%"\nspeculate = "off"\n'
        '[[model]]\npath = "llava"\ngpus = [0, 1]\nbits = 4\nname = "mine"\nthreads = 4\n'
        '[[model]]\npath = "org/other"\ngpus = "cpu"\nbits = 16\nbase = "org/base"\narguments = ["--max-images", "4"]\n'
    )
    config = load_config(file, {"port": 7002, "dtype": None, "embed": True, "kv_memory": "8GiB"}, ["org/third@1"])
    assert config == LaunchConfig(
        models=(
            ModelSpec(str(tmp_path / "llava"), ("0", "1"), quantize="nf4", name="mine", threads=4),
            ModelSpec("org/other", (), quantize="none", base="org/base", arguments=("--max-images", "4")),
            ModelSpec("org/third", ("1",)),
        ),
        host="0.0.0.0",
        port=7002,
        embed=True,
        share=True,
        kv_memory="8GiB",
        speculate="off",
        conv_template="llava_v1",
        allow_image_host=("a.org",),
        logs=str(tmp_path / "my-logs"),
    )


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("prot = 1", "did you mean port"),
        ('port = "7860"', "port is to be a whole number, not '7860'"),
        ("port = true", "whole number"),
        ('allow-image-host = "a.org"', "is to be a list of strings"),
        ("[model]\npath = 'x'", r"\[\[model\]\]"),
        ("[[model]]\npath = 'a/b'\nbits = 3", "number 1: bits is 4, 8 or 16, not 3"),
        ("[[model]]\npath = 'a/b'\nbits = 4\nquantize = 'nf4'", "or say quantize instead"),
        ("threads = '4'", "threads is to be a whole number"),
        ("[[model]]\npath = 'a/b'\n[[model]]\npath = 'a/b'\ngpus = 0", "number 2: gpus is a list"),
        ("[[model]]\npath = 'a/b'\ngpus = [true]", "gpus is a list"),
        ("[[model]]\npaht = 'a/b'", "did you mean path"),
        ("model = [1]", "number 1 is no table"),
        ("port = ", "is not TOML"),
    ],
)
def test_a_wrong_file_gets_a_sentence_with_file_and_key(tmp_path: Path, toml: str, words: str) -> None:
    file = tmp_path / "launch.toml"
    file.write_text(toml)
    with pytest.raises(BadRequest, match=words) as error:
        read_config(file)
    assert str(file) in error.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"nowhere\.toml: No such file"):
        read_config(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "nowhere", "a/b/c"])
def test_a_folder_that_is_not_there_is_found_out_before_anything_starts(path: str) -> None:
    with pytest.raises(BadRequest, match="there is no folder"):
        load_config(None, {}, [path])


def test_relative_folders_are_read_from_the_caller_s_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "llava").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert load_config(None, {}, ["models/llava"]).models == (ModelSpec(str(tmp_path / "models" / "llava")),)


def test_the_echo_engine_takes_the_path_for_its_name() -> None:
    assert load_config(None, {"engine": "echo"}, ["a", "b"]).models == (ModelSpec(name="a"), ModelSpec(name="b"))
    assert load_config(None, {"engine": "echo"}, []).models == (ModelSpec(name="echo"),)


def test_a_model_without_a_path_is_refused_unless_it_echoes(tmp_path: Path) -> None:
    file = tmp_path / "launch.toml"
    file.write_text('[[model]]\nname = "a"\nengine = "echo"\n')
    assert load_config(file, {}, []).models == (ModelSpec(name="a", engine="echo"),)
    file.write_text('[[model]]\nname = "a"\n')
    with pytest.raises(BadRequest, match="has no path"):
        load_config(file, {}, [])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"quantize": "int3"}, "no quantisation 'int3'; choose int8, nf4"),
        ({"kv_memory": "lots"}, r"--kv-memory 'lots' is no size; write it as in 8GiB, 512MB or 40%"),
        ({"kv_memory": "140%"}, "no share of memory"),
        ({"feature_memory": "40%"}, "--feature-memory '40%' is no size"),
        ({"speculate": "maybe"}, "--speculate must be auto, on or off"),
    ],
)
def test_a_setting_no_worker_would_take_is_refused_before_anything_starts(given: dict[str, str], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        load_config(None, given, ["org/model"])


def test_one_model_s_settings_are_checked_as_well(tmp_path: Path) -> None:
    file = tmp_path / "launch.toml"
    file.write_text('[[model]]\npath = "org/model"\nkv-memory = "8 chairs"\n')
    with pytest.raises(BadRequest, match="'8 chairs' is no size"):
        load_config(file, {}, [])
