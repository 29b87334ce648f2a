# BaRP Router: make install, make demo, make test. `make` alone lists the targets.
#
# Works from any directory (make -f path/to/Makefile demo); PYTHON=... names the interpreter that
# the environment is made from, ARGS=... is handed to `barp demo`.

SHELL := /bin/sh
PYTHON ?= python3
ARGS ?=

# One makefile, so the list is one path, which may hold spaces.
ROOT := $(shell cd "$$(dirname "$(strip $(MAKEFILE_LIST))")" && pwd -P)

ifneq ($(ROOT),$(CURDIR))

GOALS := $(or $(MAKECMDGOALS),help)
.PHONY: $(GOALS)
$(GOALS):
	@$(MAKE) --no-print-directory -C "$(ROOT)" $@

else

BIN := .venv/bin
STAMP := .venv/.installed

# What an editor or shell has set for other projects must not reach this one's interpreter.
unexport PYTHONPATH PYTHONHOME

.DELETE_ON_ERROR:
.PHONY: help install demo test fast test-slow test-cluster audit lint clean

help:
	@echo "make install    environment in .venv, developer tools included; again only when needed"
	@echo "make demo       the whole loop on this machine: route, learn, publish, roll back"
	@echo "make test       format, lint, types, all tests but the slow ones"
	@echo "make fast       the same without the tests that start Ray"
	@echo "make test-slow  the slow tests alone"
	@echo "make test-cluster  the loop on three Ray nodes of this machine, with a node that is lost"
	@echo "make audit      known holes in what it depends on, where advisories can be reached"
	@echo "make clean      removes .venv and caches; the state folder .barp stays"

install: $(STAMP)

demo: install
	@$(BIN)/barp doctor
	@$(BIN)/barp demo $(ARGS)

# A Ray cluster takes the machine for itself; everything else shares it.
test: fast
	$(BIN)/pytest -m "ray and not slow and not cluster"

fast: lint
	$(BIN)/pytest -m "not ray and not slow and not cluster" -n auto --maxprocesses=8 --dist=loadfile

test-slow: install
	$(BIN)/pytest -m slow

test-cluster: install
	$(BIN)/pytest -m cluster

# Asks a database of advisories, which it has to reach.
audit: install
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit -r constraints.txt --no-deps --disable-pip

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Debian's python3 has venv but, without its package python3-venv, no ensurepip. Then the pip that
# is there, whichever, puts another one into the bare environment; virtualenv is the last resort.
define MAKE_VENV
$(BIN)/python -m pip --version >/dev/null 2>&1 && exit 0; \
$(PYTHON) -m venv --clear .venv >/dev/null 2>&1 && exit 0; \
if $(PYTHON) -m venv --clear --without-pip .venv; then \
  for pip in "$(PYTHON) -m pip" pip3 pip; do \
    $$pip --python $(BIN)/python install --quiet pip && exit 0; \
  done; \
fi; \
rm -rf .venv; \
$(PYTHON) -m virtualenv --quiet .venv && exit 0; \
virtualenv --quiet --python "$(PYTHON)" .venv && exit 0; \
rm -rf .venv; \
echo "make: $(PYTHON) can make no environment: install its venv module (Debian: python3-venv)" >&2; \
exit 1
endef

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -I cluster/doctor.py --before-install
	@$(MAKE_VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

endif
