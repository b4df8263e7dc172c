"""What README, ARCHITECTURE and CONTRIBUTING promise holds: commands, flags, files, links, figures, examples."""

import ast
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llava_core.chat_protocol import read_call
from llava_core.conversation import TEMPLATES
from serve.launcher.config import read_config
from serve.terminal.prompt import COMMANDS
from tests.topology import Topology

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")
README = (ROOT / "README.md").read_text()
_MODULE = r"python -m (serve\.(?:bench|keys) \w+|llava_core\.(?:train|builtin|eval) \w+|serve\.\w+|llava_core\.\w+)"
FOLDERS = ("serve", "llava_core", "static", "tests", "examples", ".ci")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[str, str]]:
    """Every command of ours in a shell block: the module it runs and the line."""
    found: list[tuple[str, str]] = []
    for document in DOCUMENTS:
        for line in "\n".join(blocks("bash", (ROOT / document).read_text())).splitlines():
            line = line.partition(" #")[0]
            if "launch.sh" in line and "launch.sh test" not in line:
                found.append(("serve.launch", line))
            found += [(module, line) for module in re.findall(_MODULE, line)]
    return found


@functools.cache
def help_of(module: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", *module.split(), "--help"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "400", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))


@pytest.mark.parametrize(("module", "line"), commands())
def test_every_flag_in_a_documented_command_exists(module: str, line: str) -> None:
    assert flags(line) <= flags(help_of(module))


def test_the_table_of_launcher_options_is_complete() -> None:
    section = README.split("## Options of the launcher")[1].split("\n## ")[0]
    rows = "".join(line.split("| ")[1] for line in section.splitlines() if line.startswith("| `--"))
    assert flags(rows) == flags(help_of("serve.launch")) - {"--help"}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_named_files_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    named = [path for path in re.findall(r"`([\w./-]+)`", text) if path.split("/")[0] in FOLDERS and "/" in path]
    assert [path for path in (*links, *named) if "NAME" not in path and not (ROOT / path).exists()] == []


def test_the_file_map_names_every_file_and_no_other() -> None:
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode != 0:
        pytest.skip("this copy is no git checkout")
    there = {
        path
        for path in tracked.stdout.splitlines()
        if path.startswith(("serve/", "llava_core/", "static/")) and not path.endswith("__init__.py")
    }
    listed: set[str] = set()
    for section in (ROOT / "ARCHITECTURE.md").read_text().split("\n### `")[1:]:
        folder = section.partition("`")[0]
        listed |= {folder + name for name in re.findall(r"^- `([^`]+)`: \S", section, re.MULTILINE)}
    assert sorted(there - listed) == []
    assert sorted(listed - there) == []


def test_the_launch_file_in_the_readme_is_understood(tmp_path: Path) -> None:
    [toml] = blocks("toml")
    (tmp_path / "launch.toml").write_text(toml)
    config = read_config(tmp_path / "launch.toml")
    assert (config.port, config.models[0].quantize, config.models[1].base) == (7860, "nf4", "models/vicuna-7b-v1.5")


def test_the_template_names_in_the_readme_are_all_there_are() -> None:
    named = README.split("The names are the\noriginal's: ")[1].split("\n\n")[0]
    aliases = {"v0", "v1", "mistral_direct"}
    assert set(re.findall(r"`(\w+)`", named)) == set(TEMPLATES) - aliases


def test_the_chat_commands_in_the_readme_are_all_there_are() -> None:
    rows = [line.split("| ")[1] for line in README.splitlines() if line.startswith("| `/")]
    assert set(re.findall(r"`(/\w+)", "".join(rows))) == {command.name for command in COMMANDS}


def test_the_request_in_the_readme_is_one() -> None:
    [body] = [text for block in blocks("bash") for text in re.findall(r"-d '(\{.*?\})'", block, re.DOTALL)]
    call = read_call(body.encode())
    assert (call.stream, call.request.model) == (True, "builtin")


def test_the_python_example_in_the_readme_runs(topology: Topology) -> None:
    controller = topology.controller()
    topology.worker("builtin")
    [example] = [block for block in blocks("python") if "OpenAI(" in block]
    assert "http://127.0.0.1:21001" in example
    ran = subprocess.run(
        [sys.executable, "-c", example.replace("http://127.0.0.1:21001", controller.url)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    assert "turn and 1 image." in ran.stdout
    assert ran.stdout.endswith("You said: What is in this picture?")


def test_the_memory_table_is_what_its_formula_gives() -> None:
    import torch
    from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaNextConfig

    from llava_core.checkpoints.describe import split_parts
    from llava_core.checkpoints.memory import GIB, kv_shape, weight_bytes

    tower = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    # hidden, intermediate, layers, heads, key-value heads, vocabulary
    shapes = {
        "LLaVA-1.5 7B": (LlavaConfig, 4096, 11008, 32, 32, 32, 32064),
        "LLaVA-1.5 13B": (LlavaConfig, 5120, 13824, 40, 40, 40, 32064),
        "LLaVA-1.6 Mistral 7B": (LlavaNextConfig, 4096, 14336, 32, 32, 8, 32064),
        "LLaVA-1.6 34B": (LlavaNextConfig, 7168, 20480, 60, 56, 8, 64064),
    }
    for name, (kind, hidden, intermediate, layers, heads, kv_heads, vocabulary) in shapes.items():
        text = LlamaConfig(
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            vocab_size=vocabulary,
        )
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(kind(vision_config=tower, text_config=text))
        chat = 4096 * kv_shape(text).bytes_per_token()
        figures = [f"{(weight_bytes(split_parts(model), bits) + chat) / GIB:.1f}" for bits in (16, 8, 4)]
        assert f"| {name} | {' | '.join(figures)} |" in README


def test_every_file_opens_by_saying_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for folder in ("serve", "llava_core", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []
