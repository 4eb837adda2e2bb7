#!/usr/bin/env bash
# Writes requirements.lock: every package of pyproject.toml and its `dev` extra, pinned for Linux and
# the Pythons of `requires-python`. Needs uv (`pip install uv`), for this only. Run it by `make lock`.
set -euo pipefail
cd "$(dirname "$0")/.."
uv pip compile --quiet --universal --upgrade --python-version 3.11 --extra dev \
    --no-header --no-annotate pyproject.toml -o requirements.lock
# What holds for every line (see `environments` in pyproject.toml) need not stand in each.
always="python_full_version < '3.15' and sys_platform == 'linux'"
sed -i -e "s/ ; $always\$//" -e "s/ and $always//" -e "s/ and sys_platform == 'linux'//g" \
    -e "s/python_full_version < '3.15' and //" -e "s/ and python_full_version < '3.15'//" \
    -e '1i # Made by `make lock` from pyproject.toml; installed by tools/setup.sh with --no-deps.' requirements.lock
