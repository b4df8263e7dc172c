"""launch.sh on a machine that has nothing yet, that is prepared, and that lacks what is needed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH_SH = Path(__file__).resolve().parent.parent / "launch.sh"
FAKE_PYTHON = """#!/bin/bash
# A virtual environment's python whose pip only writes down what it was asked for.
if [ "$1 $2" = "-m pip" ]; then
  [ ! -e "{root}/pip-fails" ] || {{ echo "no such version" >&2; exit 1; }}
  echo "${{@: -2}}" >>"{root}/pip-calls"
elif [[ "$2" =~ ^(ruff|pyright|pytest)$ ]]; then
  echo "$@" >>"{root}/checks"
  [ "$2" != "$FAILING" ]
else
  exec "{python}" "$@"
fi
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project with launch.sh, two pins, and a launcher that only tells how it was called."""
    root = tmp_path / "a project"
    (root / ".venv/bin").mkdir(parents=True)
    (root / "serve").mkdir()
    shutil.copy(LAUNCH_SH, root)
    (root / "requirements.txt").write_text("# pins\ntorch==2.0\nother==1.0\n")
    (root / "serve/launch.py").write_text("import os, sys; print([os.getcwd(), *sys.argv[1:]])")
    python = root / ".venv/bin/python"
    python.write_text(FAKE_PYTHON.format(root=root, python=sys.executable))
    python.chmod(0o755)
    (root / ".venv/bin/shellcheck").symlink_to("/bin/true")
    return root


def launch(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": ""} | environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )


def test_torch_is_installed_first_under_its_plain_name_and_nothing_twice(tree: Path) -> None:
    first = launch(tree / "launch.sh", cwd=tree)
    assert first.returncode == 0, first.stderr
    calls = (tree / "pip-calls").read_text().splitlines()
    assert calls[0].endswith("torch==2.0")
    assert calls[1] == f"-r {tree}/requirements.txt"
    assert launch(tree / "launch.sh", cwd=tree).returncode == 0
    assert (tree / "pip-calls").read_text().splitlines() == calls
    (tree / "requirements.txt").write_text("torch==2.1\n")
    assert launch(tree / "launch.sh", cwd=tree).returncode == 0
    assert "torch==2.1" in (tree / "pip-calls").read_text()


def test_what_is_pinned_without_its_dependencies_is_installed_without_them(tree: Path) -> None:
    (tree / "requirements.txt").write_text("torch==2.0\n# --no-deps: one==1 two==2\n")
    assert launch(tree / "launch.sh", cwd=tree).returncode == 0
    assert (tree / "pip-calls").read_text().splitlines()[-1] == "one==1 two==2"
    pins = (LAUNCH_SH.parent / "requirements.txt").read_text().partition("# --no-deps: ")[2].partition("\n")[0]
    asked_for = (LAUNCH_SH.parent / "llava_core/engines/transformers/constrain.py").read_text()
    assert f"pip install --no-deps {pins}" in asked_for, "the error for a missing package names the same versions"


def test_an_installation_that_failed_is_said_and_tried_again(tree: Path) -> None:
    (tree / "pip-fails").touch()
    failed = launch(tree / "launch.sh", cwd=tree)
    assert failed.returncode == 1
    assert "no such version" in failed.stderr
    assert "could not install torch==2.0" in failed.stderr
    (tree / "pip-fails").unlink()
    assert launch(tree / "launch.sh", cwd=tree).returncode == 0


def test_it_works_from_another_folder_through_links_and_passes_its_arguments_on(tree: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "absolute").symlink_to(tree / "launch.sh")
    (elsewhere / "relative").symlink_to("absolute")
    ran = launch("./relative", "--model", "a b", "--port", "1", cwd=elsewhere)
    assert ran.stdout.strip() == str([str(elsewhere), "--model", "a b", "--port", "1"]), ran.stderr


def test_without_a_python_it_says_what_to_install(tree: Path, tmp_path: Path) -> None:
    shutil.rmtree(tree / ".venv")
    bare = tmp_path / "bin"
    bare.mkdir()
    for tool in ("bash", "dirname", "readlink", "cat", "grep", "env"):
        (bare / tool).symlink_to(shutil.which(tool) or "")
    (bare / "python3").write_text("#!/bin/bash\nexit 1\n")
    (bare / "python3").chmod(0o755)
    ran = launch(bare / "bash", tree / "launch.sh", cwd=tree, PATH=str(bare))
    assert ran.returncode == 1
    assert "Python 3.11 or newer is needed" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_a_python_without_venv_is_named_with_the_package_that_is_missing(tree: Path, tmp_path: Path) -> None:
    shutil.rmtree(tree / ".venv")
    crippled = tmp_path / "python-without-venv"
    crippled.write_text(f'#!/bin/bash\n[[ "$2" == *ensurepip* ]] && exit 1\nexec "{sys.executable}" "$@"\n')
    crippled.chmod(0o755)
    ran = launch(tree / "launch.sh", cwd=tree, PYTHON=str(crippled))
    assert ran.returncode == 1
    assert "python3-venv" in ran.stderr
    assert str(crippled) in ran.stderr


@pytest.mark.parametrize("failing", ["ruff", "pyright", "pytest"])
def test_every_check_runs_and_any_that_fails_fails_the_whole(tree: Path, tmp_path: Path, failing: str) -> None:
    good = launch(tree / "launch.sh", "test", "-k", "some test", cwd=tmp_path)
    assert good.returncode == 0, good.stderr
    checks = (tree / "checks").read_text().splitlines()
    assert checks[-1] == "-m pytest -k some test"
    bad = launch(tree / "launch.sh", "test", cwd=tmp_path, FAILING=failing)
    assert bad.returncode == 1
    assert failing in bad.stderr.splitlines()[-1]
    assert len((tree / "checks").read_text().splitlines()) == 2 * len(checks)


@pytest.mark.slow
def test_an_environment_that_is_broken_is_made_anew(tree: Path) -> None:
    (tree / ".venv/bin/python").unlink()
    (tree / ".venv/bin/python").symlink_to("/nowhere/python3")
    (tree / "requirements.txt").write_text("torch==0.0.0\n")
    ran = launch(tree / "launch.sh", cwd=tree, PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert "could not install torch==0.0.0" in ran.stderr
    assert subprocess.run([tree / ".venv/bin/python", "-c", ""]).returncode == 0
