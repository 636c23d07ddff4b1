# `make help` lists the targets. Every one that needs Python makes .venv first (tools/bootstrap.sh).

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PY := .venv/bin/python
PYTEST := $(PY) -m pytest
# A component that is missing is a failure there, not a skip.
E2E := $(PYTEST) -p tools.no_skips tests/e2e
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' sidecar/__init__.py)

CHECKED := $(wildcard sidecar adapters lab demo bench tools tests)
SCRIPTS := .ci/run $(wildcard tools/*.sh)

# What `make run` passes on: make run ARGS="--engine fake --config-dir examples"
ARGS ?=
# What every pytest run gets on top: make test PYTEST_ARGS="-k readiness -x"
PYTEST_ARGS ?=
IMAGE ?= model-sidecar:$(VERSION)
DOCKER ?= docker
UV_COMPILE := .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

.PHONY: help
help: ## This list
	@sed -n 's/^\([a-z][a-z0-9-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  %-14s %s\n", $$1, $$2}'

.PHONY: venv
venv: ## .venv with everything for development; instant when it is current
	@tools/bootstrap.sh

.PHONY: check
check: venv ## Format, lint, types, import contracts, generated documents, versions
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy --explicit-package-bases $(CHECKED)
	.venv/bin/lint-imports
	$(PY) -m tools.docs --check
	$(PY) -m tools.check_changelog
	@if [ -x .venv/bin/shellcheck ]; then set -x; .venv/bin/shellcheck $(SCRIPTS); \
	else echo "shellcheck: no wheel for this platform, not run"; fi
	@if [ -x .venv/bin/hadolint ]; then set -x; .venv/bin/hadolint Dockerfile; \
	else echo "hadolint: no wheel for this platform, not run"; fi

.PHONY: format
format: venv ## Format the code, and fix what the linter can fix
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

.PHONY: test
test: venv ## The fast tests: no network, no engine, no cluster
	$(PYTEST) -n auto tests/unit tests/contract $(PYTEST_ARGS)

.PHONY: coverage
coverage: venv ## The fast tests again, with the coverage of the decisions and of the engine port
	$(PY) -m coverage run -m pytest -q tests/unit tests/contract $(PYTEST_ARGS)
	$(PY) -m coverage report --show-missing --skip-covered --fail-under=100

.PHONY: e2e
e2e: venv image-check ## All tests with real components, which it installs once
	$(PY) -m lab install all
	$(E2E) $(PYTEST_ARGS)

.PHONY: e2e-triton
e2e-triton: venv ## Those with a real Triton
	$(PY) -m lab install triton
	$(E2E) -m "triton and not sources" $(PYTEST_ARGS)

.PHONY: e2e-vllm
e2e-vllm: venv ## Those with a real vLLM, on CPU
	$(PY) -m lab install vllm
	$(E2E) -m "vllm and not sources and not epp and not kube" $(PYTEST_ARGS)

.PHONY: e2e-kube
e2e-kube: venv ## Those with a real kube-apiserver and etcd, one of them with a real vLLM
	$(PY) -m lab install kube
	$(PY) -m lab install vllm
	$(E2E) -m "kube and not epp" $(PYTEST_ARGS)

.PHONY: e2e-picker
e2e-picker: venv ## Those with the real endpoint picker (a binary that you have), Envoy and two vLLM
	$(PY) -m lab install vllm
	$(PY) -m lab install kube
	$(PY) -m lab install picker
	$(E2E) -m epp $(PYTEST_ARGS)

.PHONY: e2e-sources
e2e-sources: venv ## Those with real S3, GCS, Azure and OCI servers
	$(PY) -m lab install sources
	$(E2E) -m "sources and not triton and not vllm" $(PYTEST_ARGS)

.PHONY: e2e-monitoring
e2e-monitoring: venv ## Those of alerts and dashboard: real Prometheus, API server, Grafana's types
	$(PY) -m lab install kube
	$(PY) -m lab install prometheus
	$(E2E) -m monitoring $(PYTEST_ARGS)

# A demo keeps everything in the checkout; tests and benchmarks share the user's cache.
demo demo-vllm: export MODEL_SIDECAR_LAB := $(or $(MODEL_SIDECAR_LAB),$(CURDIR)/.lab)

.PHONY: demo
demo: venv ## A real Triton and the agent: edit a file, watch it converge
	$(PY) -m demo.triton

.PHONY: demo-vllm
demo-vllm: venv ## A real vLLM on CPU and the agent: LoRAs come and go
	$(PY) -m demo.vllm_lora

.PHONY: lab
lab: venv ## A whole pool by hand: two real vLLM with agents, the endpoint picker and Envoy
	$(PY) -m demo.picker

.PHONY: bench
bench: venv ## The benchmarks
	$(PY) -m bench

.PHONY: bench-picker
bench-picker: venv ## The endpoint picker reading engines or agents, side by side: make bench-picker ARGS="scraping"
	$(PY) -m bench.picker $(ARGS)

.PHONY: run
run: venv ## The agent, from the checkout: make run ARGS="..."
	$(PY) -m sidecar run $(ARGS)

.PHONY: docs
docs: venv ## Write the generated documents anew
	$(PY) -m tools.docs

.PHONY: lock
lock: venv ## Pin the newest allowed versions, with hashes
	$(UV_COMPILE) --upgrade pyproject.toml -o requirements.lock
	$(UV_COMPILE) --upgrade --group build -o requirements-build.lock
	$(UV_COMPILE) --upgrade --group dev pyproject.toml -o requirements-dev.lock

.PHONY: image
image: ## The container image: make image IMAGE=name:tag DOCKER=podman
	$(DOCKER) build --build-arg VERSION=$(VERSION) --tag $(IMAGE) .

.PHONY: image-check
image-check: venv ## The steps of the Dockerfile, run without a container engine
	$(PY) -m tools.check_image

.PHONY: clean
clean: ## Remove caches and build results; .venv and the lab stay
	rm -rf dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage
	find $(CHECKED) -type d -name __pycache__ -prune -exec rm -rf {} +
