# `make run` and `make test` need nothing but Python 3.11+ and make; everything else they install into .venv.
PYTHON ?= python3
BIN := .venv/bin
JOB ?= language-model

.PHONY: run check test test-all test-recipes bench bench-throughput bench-recovery bench-data bench-storage bench-checkpoint bench-scheduling bench-plan bench-tracking clean

run: .venv/installed
	$(BIN)/drivetrain run $(JOB)

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/pytest -m "not slow and not recipe"

test-all: check
	$(BIN)/pytest -m "not recipe"

test-recipes: .venv/installed
	$(BIN)/pytest -m recipe

bench: bench-throughput bench-recovery bench-data bench-storage bench-checkpoint bench-scheduling bench-plan bench-tracking

bench-data: .venv-mosaicml/installed

bench-throughput bench-recovery bench-data bench-storage bench-checkpoint bench-scheduling bench-plan bench-tracking: bench-%: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python -m tests.benchmarks.$*

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Drivetrain needs Python 3.11 or newer')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# MosaicML Streaming wants an older numpy than we do, and clients of four clouds that nothing here calls.
.venv-mosaicml/installed:
	$(PYTHON) -m venv .venv-mosaicml
	.venv-mosaicml/bin/pip install --quiet torch==2.13.0 "numpy<2.2" "transformers<5" "xxhash<4" "zstd<2" \
		Brotli python-snappy catalogue boto3 psutil matplotlib pyarrow
	.venv-mosaicml/bin/pip install --quiet --no-deps mosaicml-streaming==0.13.0
	touch $@

clean:
	rm -rf .venv .venv-mosaicml build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
