# Every command of the project; `make` alone lists them. Nothing here needs more than Debian's python3, python3-venv and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch comes first and alone: unpinned, or as a dependency, pip would take the newest build with gigabytes of CUDA.
# Its CPU wheel lies on PyTorch's own index; --no-deps and --retries 1 let pip go on within seconds where that cannot be reached.
TORCH := $(shell grep '^torch==' constraints.txt)
TORCH_INDEX := https://download.pytorch.org/whl/cpu
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

.DEFAULT_GOAL := help
.PHONY: help install demo up browser promtool test fuzz chaos check audit format constraints docs docs-site docs-serve env images release clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: Python 3.11 or newer is needed; name one with PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "make: python3 -m venv failed: apt-get install python3-venv" >&2; exit 1; }

# pip in its own words, so that a long download or a build is seen, and the time that each step took
timed_install = @echo "== installing $(1) into $(VENV)"; began=$$(date +%s); \
	$(BIN)/pip install $(2) && echo "== installed $(1) in $$(($$(date +%s) - began)) s"

$(VENV)/.torch: constraints.txt | $(BIN)/python
	$(call timed_install,$(TORCH),--no-deps --retries 1 --extra-index-url $(TORCH_INDEX) '$(TORCH)')
	@touch $@

$(VENV)/.embedded: pyproject.toml constraints.txt $(VENV)/.torch
	$(call timed_install,the platform,-c constraints.txt -e '.[embedded]')
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.torch
	$(call timed_install,the platform and what tests it,-c constraints.txt -e '.[dev]')
	$(call timed_install,trackio without its older pillow,--no-deps -c constraints.txt trackio)
	@touch $(VENV)/.embedded $@

install: $(VENV)/.dev ## Make .venv with everything, pinned; does nothing when nothing changed

demo: $(VENV)/.embedded ## Train on this machine and see before and after
	$(BIN)/dipole demo

up: $(VENV)/.embedded ## Run the whole platform on this machine until Ctrl-C
	$(BIN)/dipole up

browser: ## Install Chromium, which the tests of the pages drive, where it is missing
	@command -v chromium >/dev/null || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends chromium; \
	else echo "make: the tests of the pages need Chromium and will fail without it: apt-get install chromium" >&2; fi

# out of Debian's package and not by installing it, which would start a Prometheus
promtool: install ## Fetch promtool, which plays the alerts in the tests, where it is missing
	@command -v promtool >/dev/null || test -x $(BIN)/promtool || ( cd $(BIN) && rm -f prometheus_*.deb && \
		{ apt-get download -qq prometheus 2>/dev/null || { apt-get update -q && apt-get download -qq prometheus; }; } && \
		dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x --strip-components=3 ./usr/bin/promtool && rm prometheus_*.deb ) || \
		echo "make: no test plays the alerts without promtool: put it into the PATH" >&2

test: install browser promtool ## Run every test, a file at a time on each of two cores
	$(BIN)/pytest -n 2 --dist loadfile

$(VENV)/.fuzz: pyproject.toml constraints.txt $(VENV)/.dev
	$(BIN)/pip install --quiet -c constraints.txt -e '.[fuzz]'
	@touch $@

fuzz: $(VENV)/.fuzz ## Send thousands of odd requests to the real servers: no 5xx, no hang (eight minutes)
	$(BIN)/python scripts/fuzz

SEED ?= 1
MINUTES ?= 30
chaos: install ## Kill, freeze and starve the real processes for half an hour (SEED=1 MINUTES=30), and check what is left
	@ls /usr/lib/*/faketime/libfaketime.so.1 >/dev/null 2>&1 || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends faketime; \
	else echo "make: clocks of Redis and PostgreSQL will not jump: apt-get install faketime" >&2; fi
	$(BIN)/python -m tests.chaos --seed $(SEED) --minutes $(MINUTES)

check: install promtool ## Lint, format, types, import contracts, and the truth of docs and manifests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -q tests/contracts

audit: $(BIN)/python ## Ask the package index which pinned packages have known weaknesses
	@test -x $(VENV)-audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/pip install --quiet pip-audit; }
	$(VENV)-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

format: install ## Mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: install ## Write constraints.txt from what is installed; upgrade packages first with .venv/bin/pip
	@{ echo "# Every installed package's exact version, written by 'make constraints'. torch carries no +cpu: a GPU build fits too."; \
		$(BIN)/pip freeze --exclude-editable | grep -vi '^dipole[ =@]' | sed 's/+cpu$$//'; } > constraints.tmp
	@mv constraints.tmp constraints.txt
	@touch $(VENV)/.embedded $(VENV)/.dev

docs: install ## Write the reference pages from the code: docs/SETTINGS.md, docs/REFERENCE.md
	$(BIN)/python scripts/write-reference

docs-site: install ## Build the docs site into out/docs-site, offline; a broken link is a failure
	$(BIN)/python scripts/build-docs

docs-serve: docs-site ## Build the docs site and show it at http://localhost:8500 until Ctrl-C
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory out/docs-site 8500

env: ## Write .env for docker compose: random keys, and who owns what the cli writes; adds what an existing one lacks
	@scripts/write-env .env

images: env ## Build every image of docker-compose.yml; CUDA=1: with torch for NVIDIA GPUs, under the tag V-cu130
	$(if $(CUDA),DIPOLE_TAG=$(VERSION)-cu130 )docker compose -f docker-compose.yml$(if $(CUDA), -f docker-compose.gpu.yml) --profile '*' build

release: install ## Make wheel, source, manifests, SBOMs, licences and checksums of this version in out/release
	$(BIN)/python scripts/release

clean: ## Remove caches, .venv and out/; jobs in .dipole/ stay
	rm -rf $(VENV) out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
