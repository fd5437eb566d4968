# The one task runner; every target is what a person could type.
PYTHON ?= python3
BIN := .venv/bin
VLLM_BIN := .venv-vllm/bin
CONTAINER_TOOL ?= docker
SCENARIO ?= configs/scenarios/qwen-chat.yaml

# tests start hundreds of processes: each would compile the project anew
export PYTHONDONTWRITEBYTECODE :=

SOURCES := $(shell find estimator loadtest tests benchmarks configs dashboards docker docs pyproject.toml -type f -not -name '*.pyc' 2>/dev/null)

.PHONY: help demo test check lint types layers vllm validate bench dashboards dashboards-check dashboards-pictures image image-check fix clean

help:
	@echo "make demo     predict, load, observe and sign against the simulated server (under 3 minutes)"
	@echo "make test     all hermetic tests"
	@echo "make check    format, lint, types, layers, tests: what CI runs"
	@echo "make vllm     the same sign-off against a real vLLM on the CPU (3.4 GB, builds its own venv)"
	@echo "make validate every load of docs/validation, the twin against that vLLM (15 minutes)"
	@echo "make bench    the benchmarks; findings go to benchmarks/LOG.md"
	@echo "make image    the container image, with docker, podman or buildah (CONTAINER_TOOL)"
	@echo "make image-check  the same without daemon or registry, tried out (root, mmdebstrap and buildah; 10 minutes)"
	@echo "make dashboards       write dashboards/*.json again from Python"
	@echo "make dashboards-check ask a real Prometheus everything the boards ask (1 minute, part of check)"
	@echo "make dashboards-pictures  the boards as pictures (10 minutes; node, npm, chromium, Prometheus)"
	@echo "make fix      format and mend what can be mended by machine"

demo: .venv/installed
	$(BIN)/ullage signoff --scenario $(SCENARIO)

# what computes, two at a time; what mostly waits, two at a time; journeys alone, because they judge the client
define RUN_TESTS
	$(BIN)/pytest -n 2 tests/estimator tests/laws tests/loadtest tests/dashboards tests/docker
	ULLAGE_PURE_PYTHON=1 $(BIN)/pytest -n 2 tests/loadtest/workers tests/loadtest/test_stream_counts.py
	$(BIN)/pytest -n 2 --dist loadfile tests/faults tests/processes
	$(BIN)/pytest tests/journeys
	@touch .tests-passed
endef

test: .venv/installed
	$(RUN_TESTS)

check: lint types layers .tests-passed .dashboards-checked

# newer than every file it was made from, or the tests run again
.tests-passed: .venv/installed $(SOURCES)
	$(RUN_TESTS)

.dashboards-checked: .venv/installed $(SOURCES)
	@$(MAKE) --no-print-directory dashboards-check
	@touch $@

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/installed
	$(BIN)/mypy

layers: .venv/installed
	$(BIN)/lint-imports

vllm: .venv/installed .venv-vllm/installed
	$(BIN)/pytest tests/vllm --timeout 900 -s

validate: .venv/installed .venv-vllm/installed
	ULLAGE_VALIDATE=1 $(BIN)/pytest tests/vllm/test_twin.py --timeout 900 -s

bench: .venv/installed
	$(BIN)/python benchmarks/estimator_accuracy.py
	$(BIN)/python benchmarks/twin_speed.py
	$(BIN)/python benchmarks/metrics_page.py
	$(BIN)/python benchmarks/rows.py
	$(BIN)/python benchmarks/memory.py --seconds 60

image:
	$(CONTAINER_TOOL) build --file docker/Dockerfile --tag ullage:0.1.0 .

image-check:
	docker/check-image.sh

dashboards: .venv/installed
	$(BIN)/python -B dashboards/generate.py

dashboards-check: .venv/installed
	$(BIN)/python -B dashboards/generate.py --check
	@dashboards/check.sh $(BIN)/python

dashboards-pictures: .venv/installed
	$(BIN)/python -B dashboards/photograph.py

fix: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-vllm .tests-passed .dashboards-checked build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

.venv-vllm/installed: tests/vllm/install.py
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/python tests/vllm/install.py
	@touch $@
