# `make run` and `make test` need nothing but Python 3.11 or newer, make and git.
VENV := .venv
BIN := $(abspath $(VENV))/bin
PYTHON ?= python3
WEIGHTS := artifacts/weights/tf_efficientnet_lite0.safetensors
export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := true
# Threads that spin for long while they wait slow a busy machine many times over; those that do not spin at all, a quiet one.
export GOMP_SPINCOUNT ?= 1000
# Tests start hundreds of processes: compiling what they import in each costs more than all that they do.
unexport PYTHONDONTWRITEBYTECODE

# `make image TARGET=gpu IMAGE=registry.example.com/team/cwbass BUILD_ARGS="--build-arg ..."`
TARGET := cpu
IMAGE := ghcr.io/cwbass/cwbass
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' cwbass/__init__.py)

.PHONY: install run run-local pipeline.yaml smoke test check lint lock image clean help

help:  ## Show this list
	@grep -hE '^[a-z.-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

install: $(VENV)/ready $(WEIGHTS)  ## Make the environment in .venv, and the weights that the parameters name

run: $(VENV)/ready $(WEIGHTS)  ## Prepare the default data and run all five stages
	cwbass --quiet synthesize > /dev/null
	dvc repro
	@cwbass --quiet report

run-local: $(VENV)/ready $(WEIGHTS)  ## The same as a Kubeflow pipeline, on this machine, without containers
	cwbass --quiet synthesize > /dev/null
	python -m pipeline run-local

pipeline.yaml: $(VENV)/ready  ## Compile the Kubeflow pipeline, with params.yaml as its defaults
	python -m pipeline compile --out $@

smoke: $(VENV)/ready $(WEIGHTS)  ## The same five stages on a handful of images, in about a minute
	scripts/smoke

test: $(VENV)/ready  ## Run the tests (CPU, offline)
	OMP_NUM_THREADS=1 pytest -q -n auto --dist loadfile $(PYTEST_ARGS)

check: $(VENV)/ready lint  ## Lint, types, and the shipped parameter files
	for file in params.yaml configs/*.yaml; do cwbass --quiet check --params-only --params $$file || exit; done

lint: $(VENV)/ready
	ruff check .
	ruff format --check .
	mypy cwbass

lock:  ## Pin every dependency again (needs uv)
	UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile pyproject.toml --all-extras --no-annotate -o constraints.txt
	UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile pyproject.toml --extra pipeline --extra export -c constraints.txt \
		--python-version 3.11 --python-platform linux --generate-hashes --no-annotate -o components/requirements.txt

image:  ## Build the container image (TARGET=cpu or gpu; needs Docker)
	DOCKER_BUILDKIT=1 docker build -f components/Dockerfile --target $(TARGET) --build-arg VERSION=$(VERSION) \
		--build-arg REVISION=$$(git describe --always --dirty --abbrev=40 --exclude '*') \
		--build-arg CREATED=$$(date -u +%Y-%m-%dT%H:%M:%SZ) $(BUILD_ARGS) -t $(IMAGE):$(VERSION)-$(TARGET) .

clean:  ## Delete what was made: environment, data, results
	rm -rf $(VENV) .smoke artifacts reports data

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cwbass needs Python 3.11 or newer; make PYTHON=python3.11 run")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipeline,dvc,export,bench,dev]'
	touch $@

$(WEIGHTS): $(VENV)/ready
	python benchmarks/lite0_weights.py --out $@
