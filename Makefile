# One door. `make help` tells what each command does.
#   make demo CNI=ptp BACKEND=iptables     the demo on another CNI and kernel backend
#   make test ARGS="-k smuggl"             some of the tests
#   make cluster CNI=ptp PROXY=iptables    a real Kubernetes of another kind; NAME=x NODES=3: a second one, larger

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CNI    ?= bridge
BACKEND ?= auto
PROXY  ?= nftables
NAME   ?= kube
NODES  ?= 2
IMAGES ?=
ARGS   ?=
IMAGE  ?= docker.io/l7proxy/l7proxy:dev
# One test more at a time than there are cores: tests of labs mostly wait. Those that share a lab run in one process
# (tests/conftest.py).
JOBS   ?= $(shell expr $$(nproc) + 1)
LABS   := tests/lab tests/attacks
PURE_AND_CONTRACT := -n $(JOBS) --dist worksteal $(LABS:%=--ignore=%)
IN_LABS := -n $(JOBS) --dist loadgroup $(LABS)
# pytest's exit code when ARGS select no test
NONE   := 5


.DEFAULT_GOAL := help
.PHONY: help setup compiled tools demo cluster cluster-down image chart test test-all test-kube test-kube-quick check bench clean

help: ## Show this help
	@echo "l7proxy: L7 policy on any CNI. Commands:"
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1@\2/' | column -t -s '@'

setup: $(VENV)/.ready tools ## Make .venv, install what is missing

$(VENV)/.ready: pyproject.toml
	@PYTHON=$(PYTHON) sh deploy/setup/venv.sh $(VENV)
	@touch $@
	@$(BIN)/python -m l7proxy.compiled_build --if-possible

compiled: $(VENV)/.ready ## Compile the hot modules, if there is a C compiler (an edit puts the build out of use)
	@$(BIN)/python -m l7proxy.compiled_build --if-possible

tools:
	@sh deploy/setup/tools.sh

demo: setup ## Two nodes, real pods, a real policy: see each verdict (CNI=bridge|ptp BACKEND=auto|nftables|iptables)
	@$(BIN)/python -m l7proxy.lab.demo --cni $(CNI) --backend $(BACKEND)

cluster: setup ## A real Kubernetes of two nodes on this machine, as root (CNI=bridge|ptp PROXY=nftables|iptables)
	@$(BIN)/python -m deploy.cluster --name $(NAME) up --cni $(CNI) --proxy $(PROXY) --nodes $(NODES) $(IMAGES:%=--image %)

cluster-down: $(VENV)/.ready ## End it and remove all of it but the cache of its parts
	@$(BIN)/python -m deploy.cluster --name $(NAME) down

check: $(VENV)/.ready ## Format, lint, types, import contracts, all unit tests but the slow ones: under a minute
	@$(BIN)/python -m tests.check

test: setup ## Everything one machine can run, the lab included (attacks: in five of twelve labs)
	@sh deploy/setup/programs.sh $(VENV) nginx wrk
	@$(BIN)/python -m tests.check --no-tests
	@$(BIN)/pytest -m "not full_product" $(PURE_AND_CONTRACT) $(ARGS) || [ $$? = $(NONE) ]
	@$(BIN)/pytest -m "alone and not full_product" $(LABS) $(ARGS) || [ $$? = $(NONE) ]
	@$(BIN)/pytest -m "not alone and not full_product" $(IN_LABS) $(ARGS) || [ $$? = $(NONE) ]

test-all: setup ## As test, with every combination: attacks and kernel rules by CNI, backend, address family and case
	@sh deploy/setup/programs.sh $(VENV) nginx wrk
	@$(BIN)/python -m tests.check --no-tests
	@$(BIN)/pytest $(PURE_AND_CONTRACT) $(ARGS) || [ $$? = $(NONE) ]
	@$(BIN)/pytest -m alone $(LABS) $(ARGS) || [ $$? = $(NONE) ]
	@$(BIN)/pytest -m "not alone" $(IN_LABS) $(ARGS) || [ $$? = $(NONE) ]

test-kube: setup image ## Tests on a real Kubernetes of this machine, as root (CNI=bridge|ptp PROXY=nftables|iptables)
	@programs=$$($(BIN)/python -m deploy.cluster parts) && \
	    CNI=$(CNI) PROXY=$(PROXY) L7PROXY_KUBE_BIN=$$programs $(BIN)/pytest tests/kube $(ARGS)

test-kube-quick: setup ## The part of them that CI runs, with limits of time (L7PROXY_SKIP_KUBE=1 leaves it out)
	@$(BIN)/python -m tests.kube.stage $(ARGS)

bench: setup compiled ## Every figure in one table: ours beside Envoy, HAProxy and nginx (ARGS="--quick")
	@sh deploy/setup/programs.sh $(VENV) nginx wrk haproxy
	@$(BIN)/python -m bench $(ARGS)

image: $(VENV)/.ready ## The image as an OCI archive in build/, without a registry (as root, on Debian; IMAGE=name:tag)
	@command -v mmdebstrap >/dev/null || { apt-get update -qq && apt-get install -y -qq mmdebstrap; } >/dev/null
	@$(BIN)/python -m deploy.image.build --name $(IMAGE)

chart: $(VENV)/.ready ## Check the Helm chart, and write deploy/install.yaml from it (needs helm)
	@helm lint --strict deploy/helm/l7proxy
	@$(BIN)/python -m deploy.helm.generate

clean: ## Remove .venv and caches (labs: `l7proxy lab down --all`)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
