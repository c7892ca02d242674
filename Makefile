# `make run` and `make test` need nothing but Python 3.11+ and make; everything else they install into .venv.
PYTHON ?= python3
BIN := .venv/bin
UV := $(shell command -v uv)
JOB ?= language-model
PYTEST := $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 10
# PostgreSQL, Prometheus and Slurm as Debian has them, and what makes hosts out of namespaces (which takes root, too).
TEST_PACKAGES := postgresql prometheus slurmctld slurmd slurm-client munge iproute2 util-linux git
TESTS := tests/cluster tests/infra tests/unit tests/fuzz tests/contracts tests/chaos
LOCK := --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--constraints constraints.txt --extra recipes --extra cluster pyproject.toml
GPU_PACKAGES := torch triton $(filter-out nvidia-ml-py,$(shell sed -n 's/^\(nvidia-[a-z0-9-]*\|cuda-[a-z]*\)==.*/\1/p' infra/requirements.lock))

.PHONY: run check docs lock audit test test-all test-packages test-recipes bench bench-throughput bench-recovery bench-data bench-storage bench-checkpoint bench-scheduling bench-plan bench-tracking bench-growth clean

run: .venv/installed
	$(BIN)/drivetrain run $(JOB)

check: .venv/installed .venv-sbom/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@mkdir -p build
	.venv-sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-file build/sbom.json $(BIN)/python
	$(BIN)/hadolint infra/containers/Dockerfile
	git ls-files '*.sh' '*.sbatch' .ci/run | xargs $(BIN)/shellcheck

# The site in build/site; its reference pages are written from the code first.
docs: .venv/installed
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet

# What images are built from; the second is without torch and what only GPUs need.
lock: .venv/installed
	$(BIN)/uv pip compile $(LOCK) --output-file infra/requirements.lock
	$(BIN)/uv pip compile $(LOCK) $(addprefix --no-emit-package ,$(GPU_PACKAGES)) --output-file infra/requirements-cpu.lock

# Known vulnerabilities of what the images hold; asks the package index.
audit: .venv/installed
	$(BIN)/pip-audit --disable-pip --require-hashes --requirement infra/requirements.lock

# Two files of tests at a time, each with a separate Ray that its tests share.
test: check
	$(PYTEST) -m "not slow" $(TESTS)

test-all: check
	$(PYTEST) $(TESTS)

# Debian's packages without which some tests are skipped, and say so.
test-packages:
	apt-get update --quiet
	DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $(TEST_PACKAGES)

test-recipes: .venv/installed
	$(BIN)/pytest -m recipe

bench: bench-throughput bench-recovery bench-data bench-storage bench-checkpoint bench-scheduling bench-plan bench-tracking bench-growth

bench-data: .venv-mosaicml/installed

bench-throughput bench-recovery bench-data bench-storage bench-checkpoint bench-scheduling bench-plan bench-tracking bench-growth: bench-%: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[bench]"
	@# It asks for torchvision, which it does not need, and whose wheels do not go with a CPU build of torch.
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps litdata
	$(BIN)/python -m tests.benchmarks.$*

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Drivetrain needs Python 3.11 or newer')"
	@echo "Installing Drivetrain, its training packages (torch, DeepSpeed, Ray, MLflow) and its test tools into .venv:"
	@echo "3 GB on disk with a CPU build of torch, more with CUDA. A few minutes."
	$(if $(UV),$(UV) venv --quiet --clear --seed --python $(PYTHON) .venv,$(PYTHON) -m venv .venv)
	$(if $(UV),$(UV) pip install --python .venv,$(BIN)/pip install) --constraint constraints.txt --editable ".[dev]"
	touch $@

# In a separate environment: it needs rfc3987-syntax, which adds a second to every import of Ray.
.venv-sbom/installed: constraints.txt
	$(PYTHON) -m venv .venv-sbom
	.venv-sbom/bin/pip install --quiet --constraint constraints.txt cyclonedx-bom
	touch $@

# MosaicML Streaming wants an older numpy than we do, and clients of four clouds that nothing here calls.
.venv-mosaicml/installed:
	$(PYTHON) -m venv .venv-mosaicml
	.venv-mosaicml/bin/pip install --quiet torch==2.13.0 "numpy<2.2" "transformers<5" "xxhash<4" "zstd<2" \
		Brotli python-snappy catalogue boto3 psutil matplotlib pyarrow
	.venv-mosaicml/bin/pip install --quiet --no-deps mosaicml-streaming==0.13.0
	touch $@

clean:
	rm -rf .venv .venv-mosaicml .venv-sbom build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
