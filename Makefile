# Thin: each target calls one well-known program or a script with its own --help.
# A fresh machine needs Python 3.11, 3.12 or 3.13 and make; uv is fetched when it is not there.
.DEFAULT_GOAL := help
.PHONY: help up down status login logs env demo kind kind-push kind-env kind-demo kind-down test test-cluster test-faults test-gitops render lint clean

# Never fetches a Python: the newest of these that the machine has.
PYTHON := $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& command -v $$p && break; done)
UV := $(or $(shell uv --version >/dev/null 2>&1 && command -v uv),.cache/uv/bin/uv)
RUN := .venv/bin/python -m
# FLOWS: the folder of another flows repository.
FOLDER = $(if $(FLOWS),--flows '$(FLOWS)')
export UV_PYTHON_DOWNLOADS := never
# Without cached bytecode every command, and every flow run, compiles Prefect first.
unexport PYTHONDONTWRITEBYTECODE

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

up: .venv/run.stamp ## Start Prefect server, worker and Hamilton UI; other flows: FLOWS=../my-flows; OPTIONS='--port 4200 --api-port 4210'
	@$(RUN) scripts.local up $(FOLDER) $(OPTIONS)

down: .venv/run.stamp ## End them; what they stored stays
	@$(RUN) scripts.local down

status: .venv/run.stamp ## Say what runs and where
	@$(RUN) scripts.local status

login: .venv/run.stamp ## Print the password of Prefect's UI
	@$(RUN) scripts.local login

logs: .venv/run.stamp ## Follow their output (Ctrl-C ends it); one of them: OPTIONS=worker
	@$(RUN) scripts.local logs --follow $(OPTIONS)

env: .venv/run.stamp ## Print settings for a terminal: eval "$(make -s env)"
	@$(RUN) scripts.local env $(OPTIONS)

demo: .venv/run.stamp ## Show it all: set up, run the flows, check the results; KEEP=1 leaves it up
	@$(RUN) scripts.demo $(if $(KEEP),--keep) $(OPTIONS)

kind: .venv/run.stamp ## Run it all on a kind cluster (Docker, kind, helm, kubectl); other flows: FLOWS=../my-flows; OPTIONS='--port 4200'
	@$(RUN) scripts.kind up $(FOLDER) $(OPTIONS)

kind-push: .venv/run.stamp ## Push the working tree (of FLOWS=../my-flows) to the cluster's Git server and register it
	@$(RUN) scripts.kind push $(FOLDER) $(OPTIONS)

kind-env: .venv/run.stamp ## Print settings for a terminal that uses the cluster's server: eval "$(make -s kind-env)"
	@$(RUN) scripts.kind env $(OPTIONS)

kind-demo: .venv/run.stamp ## Run every -k8s deployment as pods and check the results
	@$(RUN) scripts.kind demo $(OPTIONS)

kind-down: .venv/run.stamp ## Delete the kind cluster and its data
	@$(RUN) scripts.kind down $(OPTIONS)

test: .venv/dev.stamp ## Lint, types, lock file and all tests; some tests: OPTIONS='tests/local -k down'
	@$(MAKE) --no-print-directory lint
	@.venv/bin/pytest -n 2 --dist loadfile $(OPTIONS)

test-cluster: .venv/dev.stamp ## Build the images, test them, test the chart on kind; elsewhere: KUBECONFIG=file VALUES=file
ifeq ($(origin KUBECONFIG),command line)
	@TEST_KUBECONFIG=$(abspath $(KUBECONFIG)) TEST_VALUES=$(VALUES) .venv/bin/pytest -m cluster tests/cluster $(OPTIONS)
else
	@docker buildx bake --load
	@.venv/bin/pytest -m cluster tests/images tests/cluster $(OPTIONS)
endif

test-faults: .venv/dev.stamp ## Flow runs under load while pods die; LOCAL=1: local profile only; options: tests/faults/conftest.py
	@$(if $(LOCAL),,docker buildx bake --load prefect flows)
	@.venv/bin/pytest -n 0 -m '$(if $(LOCAL),faults,cluster or faults)' tests/faults $(OPTIONS)

test-gitops: .venv/dev.stamp ## Test syncs from Git on a kind cluster that has Argo CD, perhaps Flux: KIND_CLUSTER=name
	@.venv/bin/pytest -m cluster tests/gitops $(OPTIONS)

render: .venv/run.stamp ## Write what of kustomize/ follows from the chart; only look: OPTIONS=--check
	@$(RUN) scripts.render $(OPTIONS)

lint: .venv/dev.stamp ## Lint, format, types, imports and lock file only
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@$(UV) lock --check --quiet --python .venv/bin/python && echo 'uv.lock fits pyproject.toml.'

clean: ## End the local profile and remove its data, .venv and caches
	@if [ -x .venv/bin/python ]; then $(RUN) scripts.local down; fi
	@rm -rf .venv .state .cache .mypy_cache .pytest_cache .ruff_cache

# What running needs; with the tools of development where they are already.
.venv/run.stamp: pyproject.toml uv.lock | $(UV)
	@$(UV) sync --frozen --quiet --compile-bytecode --python $(PYTHON) $(if $(wildcard .venv/dev.stamp),,--no-group dev)
	@touch $@

.venv/dev.stamp: pyproject.toml uv.lock | $(UV)
	@$(UV) sync --frozen --quiet --compile-bytecode --python $(PYTHON)
	@touch $@ .venv/run.stamp

ifeq ($(PYTHON),)
$(UV): no-python
.PHONY: no-python
no-python:
	@echo 'No Python 3.11, 3.12 or 3.13 found on PATH: install one (this never fetches a Python).' >&2; exit 1
endif

.cache/uv/bin/uv:
	@echo 'Fetching uv into .cache/uv'
	@$(PYTHON) -m venv .cache/uv && .cache/uv/bin/pip install --quiet 'uv>=0.9,<0.14'
