#!/usr/bin/env bash
# Writes requirements.lock: every package of pyproject.toml and its `dev` extra, pinned for Linux and
# the Pythons of `requires-python`. Needs uv (`pip install uv`), for this only. Run it by `make lock`.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v uv >/dev/null || { echo 'lock: there is no uv here; pip install uv' >&2; exit 1; }
trap 'rm -f requirements.lock.new' EXIT
uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-header --no-annotate \
    pyproject.toml -o requirements.lock.new
# What holds for every line (see `environments` in pyproject.toml) need not stand in each.
always="python_full_version < '3.15' and sys_platform == 'linux'"
sed -i -e "s/ ; $always\$//" -e "s/ and $always//" -e "s/ and sys_platform == 'linux'//g" \
    -e "s/python_full_version < '3.15' and //" -e "s/ and python_full_version < '3.15'//" \
    -e '1i # Made by `make lock` from pyproject.toml; installed by tools/setup.sh with --no-deps.' requirements.lock.new
mv requirements.lock.new requirements.lock
