# Needs Python 3.11 or newer with its venv module, and make; nothing else. `make demo` and
# `make test` build the environment in .venv first where it is missing or out of date.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
# A folder of scans and labels for `make demo`; generated anatomy where it is empty.
DATA ?=
# A package index with CPU builds of PyTorch; without one, pip's own configuration decides.
TORCH_INDEX ?=

PYTHON ?= $(shell for candidate in python3.11 python3 python3.12 python3.13 python; do \
	"$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { echo "$$candidate"; break; }; done)

# An absolute path, since pip builds packages in folders of its own.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
PIP := $(BIN)/python -m pip install --quiet
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

.PHONY: setup demo test test-slow audit lint docs clean

setup: $(STAMP)

# What the clinic's pages are built from.
WEB := $(wildcard hatch_build.py web/package-lock.json web/src/* web/src/*/* src/qinjing/serve/static/*.js)

$(STAMP): pyproject.toml constraints.txt $(WEB)
	@test -n "$(PYTHON)" || { \
	  echo "Qinjing needs Python 3.11 or newer: install it, or name it with PYTHON=/path/to/python." >&2; exit 2; }
	@echo "setup 1/3: an environment in $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv "$(VENV)" >"$(VENV).log" 2>&1 || { rm -rf "$(VENV)"; \
	  "$(PYTHON)" -m virtualenv --quiet "$(VENV)" >>"$(VENV).log" 2>&1; } || { rm -rf "$(VENV)"; \
	  virtualenv --quiet -p "$(PYTHON)" "$(VENV)" >>"$(VENV).log" 2>&1; } || { rm -rf "$(VENV)"; \
	  echo "$(PYTHON) cannot build an environment: install its venv module (Debian: python3-venv) or virtualenv; see $(VENV).log" >&2; exit 2; }
	@rm -f "$(VENV).log"
	@echo "setup 2/3: PyTorch"
	@$(BIN)/python -c 'import importlib.metadata as m; assert "torch==" + m.version("torch").split("+")[0] == "$(TORCH)"' 2>/dev/null || \
	  $(PIP) $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") "$(TORCH)+cpu" 2>/dev/null || { \
	  echo "  no CPU build at hand; taking the standard one (about 3 GB on Linux)"; $(PIP) "$(TORCH)"; }
	@echo "setup 3/3: Qinjing and the tools of its tests"
	@$(PIP) --editable '.[dev]'
	@test -f src/qinjing/serve/static/clinic/main.js || \
	  echo "  the clinic's pages were not built: npm's registry cannot be reached; the rest is there"
	@# The client class alone is tested against, unchanged; the package's own dependencies are not wanted.
	@$(BIN)/python -m pip download --quiet --no-deps --dest "$(VENV)/clients" monailabel==0.8.5
	@touch $@
	@echo "done: $(BIN)/qinjing"

demo: $(STAMP)
	$(BIN)/qinjing demo $(if $(DATA),-i "$(DATA)")

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# Known vulnerabilities in what is installed and bundled; asks PyPI's and npm's databases.
audit: $(STAMP)
	$(PIP) pip-audit
	$(BIN)/pip-audit --skip-editable
	cd web && npm audit --omit=dev

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/codespell

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site build dist web/node_modules src/qinjing/serve/static/clinic .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
