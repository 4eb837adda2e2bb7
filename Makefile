# The commands of this repository; `make` alone lists them.
run := .venv/bin/python

.PHONY: help setup demo test lint bench lock

help:
	@echo 'make setup   everything that is needed, in .venv (the others do this first); PYTHON=... names the Python'
	@echo 'make demo    write the sample, train a ResNet-20 on it, show the result: some minutes'
	@echo 'make test    the tests; ARGS=... goes to pytest'
	@echo 'make lint    ruff and mypy'
	@echo 'make bench   the benchmarks, half an hour; ARGS="--photos FOLDER" for photographs of yours'
	@echo 'make lock    write requirements.lock anew from pyproject.toml (needs uv)'

setup:
	@tools/setup.sh

demo: setup
	$(run) write_datasets.py
	$(run) train.py --config rn_configs/sample.yaml

test: setup
	$(run) -m pytest $(ARGS)

lint: setup
	$(run) -m ruff check .
	$(run) -m ruff format --check .
	$(run) -m mypy

bench: setup
	$(run) -m benchmarks $(ARGS)

lock:
	tools/lock.sh
