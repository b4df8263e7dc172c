#!/usr/bin/env bash
# Prepares .venv and starts LLaVA Serve; `./launch.sh test` runs the checks and the tests instead.
# ./launch.sh [--model PATH_OR_ID[@GPUS][:4bit|:8bit]]... [--help]   or   ./launch.sh test [PYTEST ARGUMENTS]
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }
fail() {
  say "launch.sh: $*"
  exit 1
}

# The folder this file is in, also when it is called through a symbolic link.
source_path=${BASH_SOURCE[0]}
while [ -L "$source_path" ]; do
  link_folder=$(cd -P "$(dirname "$source_path")" && pwd)
  source_path=$(readlink "$source_path")
  case $source_path in /*) ;; *) source_path=$link_folder/$source_path ;; esac
done
root=$(cd -P "$(dirname "$source_path")" && pwd)
venv=$root/.venv
python=$venv/bin/python
stamp=$venv/.requirements-installed

# 3.11 first: the pins were tried together on it.
find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  fail "Python 3.11 or newer is needed and none was found. Install it (Debian and Ubuntu: apt install python3 python3-venv; macOS: brew install python@3.11), or name it: PYTHON=/path/to/python ./launch.sh"
}

make_venv() {
  local base
  base=$(find_python)
  if ! "$base" -c 'import venv, ensurepip' >/dev/null 2>&1; then
    fail "$base cannot make virtual environments. Install its venv package (Debian and Ubuntu: apt install python3-venv) and start again."
  fi
  say "Making $venv with $("$base" --version)"
  # --clear: an interpreter that no longer starts may lie there (the folder was moved, or Python was upgraded).
  "$base" -m venv --clear "$venv"
}

# What must not have changed for an installation to be still good: the pins and the interpreter.
wanted_stamp() {
  "$python" -c 'import hashlib, pathlib, sys
print(hashlib.sha256(pathlib.Path(sys.argv[1]).read_bytes()).hexdigest(), sys.version.split()[0])' "$root/requirements.txt"
}
is_prepared() {
  "$python" -c '' >/dev/null 2>&1 && [ "$(cat "$stamp" 2>/dev/null)" = "$(wanted_stamp)" ]
}

pip_install() {
  # pip shows no progress bar when it is quiet.
  local words=(--quiet)
  [ ! -t 2 ] || words=(--progress-bar on)
  "$python" -m pip install --disable-pip-version-check --no-input "${words[@]}" "$@" >&2
}

install_requirements() {
  local torch_pin
  # torch goes first and alone, under its plain name, so that pip takes the build this machine's index offers.
  torch_pin=$(grep -E '^torch==' "$root/requirements.txt") || fail "requirements.txt has no line torch==VERSION."
  say "Installing $torch_pin (the largest part; it can take some minutes)"
  pip_install "$torch_pin" || fail "pip could not install $torch_pin; its own words stand above."
  say "Installing the rest of requirements.txt"
  pip_install -r "$root/requirements.txt" || fail "pip could not install requirements.txt; its own words stand above."
  local bare
  bare=$(sed -n 's/^# --no-deps: //p' "$root/requirements.txt")
  # shellcheck disable=SC2086
  [ -z "$bare" ] || pip_install --no-deps $bare ||
    say "Going on without $bare, which only answers held to a JSON schema or pattern need."
}

prepare() {
  is_prepared && return
  # Two that start at once must not install into the same folder; where flock is missing (macOS) that is left to luck.
  exec 9<"$root/requirements.txt"
  ! command -v flock >/dev/null 2>&1 || flock 9
  if ! is_prepared; then
    "$python" -c '' >/dev/null 2>&1 || make_venv
    install_requirements
    wanted_stamp >"$stamp"
  fi
  exec 9<&-
}

check_and_test() {
  cd "$root"
  local failed=""
  say "ruff"
  "$python" -m ruff check . || failed+=" ruff"
  "$python" -m ruff format --check --quiet . || failed+=" ruff-format"
  say "shellcheck"
  "$venv/bin/shellcheck" launch.sh .ci/run .ci/audit || failed+=" shellcheck"
  say "pyright"
  "$python" -m pyright || failed+=" pyright"
  say "pytest"
  "$python" -m pytest "$@" || failed+=" pytest"
  [ -z "$failed" ] || fail "failed:$failed"
}

prepare
# The caller's folder stays the working folder, so that relative paths on the command line mean what they say.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
if [ "${1:-}" = test ]; then
  shift
  check_and_test "$@"
else
  exec "$python" -m serve.launch "$@"
fi
