# The front door. `make book` and `make test` need Python 3.11+, git and make; all else is installed
# into .venv. PROFILE chooses what the book shows; bench renders the committed evidence.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
PROFILE ?= embedded
BIN := .venv/bin
READY := .venv/.ready
METHOD := gliznet/[!_]*.py,gliznet/data/*.py
BOOK := _build/html/index.html
BUILT := _build/.built-$(PROFILE)
# Folders too: their date changes when a file goes. Not book itself: that is a target.
BOOK_INPUTS = $(shell find book _config.yml results/$(PROFILE)/notebooks -not -path book \
  -not -name '*.tmp' -not -path '*__pycache__*' 2>/dev/null)

.PHONY: help book html test lint clean

help: ## print this list
	@echo "make TARGET [PROFILE=smoke|embedded|bench|paper] [PYTHON=python3.11]"
	@sed -n 's/^\([a-z]*\):.*## /  \1\t/p' $(MAKEFILE_LIST)

book: $(READY) ## run the notebooks of PROFILE that are not up to date, then build the book
	@$(BIN)/python -m gliznet.lab.run --profile $(PROFILE) $(if $(filter bench,$(PROFILE)),--render-only)
	@test -d results/$(PROFILE)/notebooks || { echo "error: results/$(PROFILE)/notebooks is not" \
	  "there: this profile has not been run yet, see book/reproduce.md" >&2; exit 1; }
	@target=../results/$(PROFILE)/notebooks; \
	if [ "$$(readlink book/chapters || true)" != "$$target" ]; then \
	  rm -rf book/chapters; ln -s "$$target" book/chapters; fi
	@$(MAKE) --no-print-directory html

# A second make, because the notebooks that it looks at have only just been written.
html: $(BUILT)
	@echo "Book: $(BOOK)"

# --all: an incremental build would not repeat the warnings of pages that it skips, and would keep
# another profile's pages.
$(BUILT): $(READY) $(BOOK_INPUTS)
	@rm -f _build/.built-*
	@PYTHONDONTWRITEBYTECODE=1 $(BIN)/jupyter-book build book --all -n -W --keep-going -q
	@test -f $(BOOK) || { echo "error: jupyter-book wrote no $(BOOK)" >&2; exit 1; }
	@touch $@

test: lint ## lint, then the whole test suite
	@$(BIN)/pytest --cov=gliznet --cov-report=
	@$(BIN)/coverage report --include='$(METHOD)' --fail-under=95

lint: $(READY) ## style and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

clean: ## remove what was made, but for .venv and the committed results
	rm -rf _build book/chapters results/smoke results/embedded .snakemake .pytest_cache .ruff_cache

# The mark is written last: an interrupted installation has none and starts from an empty folder.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	    "Name another one: make PYTHON=python3.11" >&2; exit 1; }
	@echo "Installing into .venv (several minutes the first time)"
	@test -f $@ || $(PYTHON) -m venv --clear .venv
	@rm -f $@
	@# Modules are compiled when they are first imported: most never are.
	@$(BIN)/python -m pip install -q --no-compile --disable-pip-version-check -c constraints.txt -e '.[book,peers,test]'
	@touch $@
