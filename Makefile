# Each target calls one well-known program, or .venv/bin/prefect-hamilton, which has --help for each command.
# Requires Python 3.11, 3.12 or 3.13 and make. uv is installed into .cache/uv if it is not on PATH.
.DEFAULT_GOAL := help
.PHONY: help up down status login logs env demo kind kind-push kind-env kind-demo kind-down test test-cluster test-teams test-faults test-gitops test-monitoring generate render screenshots lint clean

# The newest of these on the machine; a Python is never downloaded.
PYTHON := $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& command -v $$p && break; done)
UV := $(or $(shell uv --version >/dev/null 2>&1 && command -v uv),.cache/uv/bin/uv)
RUN := .venv/bin/prefect-hamilton
# FLOWS: the folder of your flows repository.
FOLDER = $(if $(FLOWS),--flows '$(FLOWS)')
TEAMS := tests/cluster/test_team.py tests/cluster/test_two_teams.py
export UV_PYTHON_DOWNLOADS := never
# Without cached bytecode, every command and every flow run would compile Prefect first.
unexport PYTHONDONTWRITEBYTECODE

help: ## List all commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

up: .venv/run.stamp ## Start the Prefect server, a worker and the Hamilton UI; your flows: FLOWS=../my-flows; OPTIONS='--port 4200 --api-port 4210'
	@$(RUN) up $(FOLDER) $(OPTIONS)

down: .venv/run.stamp ## Stop them; stored data is kept
	@$(RUN) down

status: .venv/run.stamp ## Show what is running, and its address
	@$(RUN) status

login: .venv/run.stamp ## Print the password of the Prefect UI
	@$(RUN) login

logs: .venv/run.stamp ## Follow their output until Ctrl-C; of one process: OPTIONS=worker
	@$(RUN) logs --follow $(OPTIONS)

env: .venv/run.stamp ## Print shell settings for a terminal: eval "$(make -s env)"
	@$(RUN) env $(OPTIONS)

demo: .venv/run.stamp ## Start everything, run the example flows, check the results; KEEP=1 leaves it running
	@$(RUN) demo $(if $(KEEP),--keep) $(OPTIONS)

kind: .venv/run.stamp ## Install everything on a kind cluster (Docker, kind, helm, kubectl); your flows: FLOWS=../my-flows; with Prometheus and others: MONITORING=1
	@$(RUN) kind up $(FOLDER) $(if $(MONITORING),--monitoring) $(OPTIONS)

kind-push: .venv/run.stamp ## Push the working tree (or FLOWS=../my-flows) to the Git server in the cluster and register its deployments
	@$(RUN) kind push $(FOLDER) $(OPTIONS)

kind-env: .venv/run.stamp ## Print shell settings for the server in the cluster: eval "$(make -s kind-env)"
	@$(RUN) kind env $(OPTIONS)

kind-demo: .venv/run.stamp ## Run every -k8s deployment as pods, check the results
	@$(RUN) kind demo $(OPTIONS)

kind-down: .venv/run.stamp ## Delete the kind cluster and its data
	@$(RUN) kind down $(OPTIONS)

test: .venv/dev.stamp ## Run lint and all tests without a cluster; some tests: OPTIONS='tests/local -k down'
	@$(MAKE) --no-print-directory lint
	@# Three at once on two cores: most tests wait for servers and processes.
	@.venv/bin/pytest -n 3 --dist loadfile --no-loadscope-reorder $(OPTIONS)

test-cluster: .venv/dev.stamp ## Build and test the images, test the chart on kind; on another cluster: KUBECONFIG=file VALUES=file
ifeq ($(origin KUBECONFIG),command line)
	@TEST_KUBECONFIG=$(abspath $(KUBECONFIG)) TEST_VALUES=$(VALUES) .venv/bin/pytest -m cluster tests/cluster $(OPTIONS)
else
	@docker buildx bake --load
	@.venv/bin/pytest -m cluster tests/images tests/cluster $(addprefix --ignore ,$(TEAMS)) $(OPTIONS)
endif

test-teams: .venv/dev.stamp ## Test a team's own repository, and two teams in one release, on a kind cluster
	@docker buildx bake --load
	@.venv/bin/pytest -m cluster $(TEAMS) $(OPTIONS)

test-faults: .venv/dev.stamp ## Test flow runs under load while pods and processes are killed; LOCAL=1: local profile only; options: tests/faults/conftest.py
	@$(if $(LOCAL),,docker buildx bake --load prefect flows)
	@.venv/bin/pytest -n 0 -m '$(if $(LOCAL),faults,cluster or faults)' tests/faults $(OPTIONS)

test-gitops: .venv/dev.stamp ## Test syncs from Git on a kind cluster with Argo CD and optionally Flux: KIND_CLUSTER=name
	@.venv/bin/pytest -m cluster tests/gitops $(OPTIONS)

test-monitoring: .venv/dev.stamp ## Test metrics, alerts, logs and traces on a kind cluster with the Prometheus Operator: KIND_CLUSTER=name
	@.venv/bin/pytest -n 0 -m cluster tests/monitoring $(OPTIONS)

generate: .venv/run.stamp ## Generate values.yaml, its schema, the table of values and kustomize/base; only check: OPTIONS=--check
	@$(RUN) generate $(OPTIONS)

render: .venv/run.stamp ## Render kustomize/base from the chart; only check: OPTIONS=--check; your base: VALUES=file OUTPUT=folder
	@$(RUN) render $(if $(VALUES),--values '$(VALUES)') $(if $(OUTPUT),--output '$(OUTPUT)') $(OPTIONS)

screenshots: .venv/dev.stamp ## Write docs/images/ from a running demo (make demo KEEP=1); needs Chromium
	@$(RUN) screenshots $(OPTIONS)

lint: .venv/dev.stamp ## Check style, types, imports, generated files, lock file and the docs site
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@.venv/bin/python -m charts.schema.generate --check
	@if command -v helm >/dev/null; then $(RUN) render --check; fi
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build
	@$(UV) lock --check --quiet --python .venv/bin/python && echo 'uv.lock fits pyproject.toml.'

clean: ## Stop the local profile; delete its data, .venv and caches
	@if [ -x $(RUN) ]; then $(RUN) down; fi
	@rm -rf .venv .state .cache .mypy_cache .pytest_cache .ruff_cache

# The packages to run everything; with development tools if these are already installed.
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
	@echo 'No Python 3.11, 3.12 or 3.13 found on PATH: install one of them.' >&2; exit 1
endif

.cache/uv/bin/uv:
	@echo 'Installing uv into .cache/uv'
	@$(PYTHON) -m venv .cache/uv && .cache/uv/bin/pip install --quiet 'uv>=0.9,<0.14'
