# mmlab: `make book` and `make test` do everything by themselves, from any clean state.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PORT ?= 8000
SERVE ?= 1
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help book test oldest lab lint format bench data checkpoints lock screenshots clean

help:  ## show this list
	@echo "make book [SERVE=0] [PORT=8000]   install, run every chapter, build the site, serve it"
	@echo "make test [ARGS='-k vit']         install, run every test"
	@echo
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | grep -vE '^(book|test|help):' \
	  | awk -F ':.*## ' '{printf "make %-29s %s\n", $$1, $$2}'

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "mmlab needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	       "Name another with: make PYTHON=python3.12 ..." >&2; exit 2; }
	@echo "==> Making the environment in $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV) || { \
	  echo "Python's venv module is missing (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 2; }
	@touch $@

# An extra is installed again only when what it is made from has changed, so that later runs need
# no network. The tests' extra holds the book's.
$(VENV)/.installed-%: $(VENV)/.created pyproject.toml constraints.txt
	@echo "==> Installing mmlab[$*] into $(VENV) (once; PyTorch is large, allow some minutes)"
	@$(PY) -m pip install --disable-pip-version-check --progress-bar on -c constraints.txt -e ".[$*]" \
	  | grep --line-buffered -E '^(Collecting|Downloading|Installing|Successfully|ERROR)' ; exit $${PIPESTATUS[0]}
	@touch $@ $(if $(filter test,$*),$(VENV)/.installed-book)

book: $(VENV)/.installed-book  ## build and serve the book
	@$(PY) scripts/build_book.py
ifneq ($(SERVE),0)
	@$(PY) scripts/serve.py --port $(PORT)
endif

test: $(VENV)/.installed-test  ## run every test
	$(PY) -m pytest $(ARGS)

# Without the tests that need transformers, which wants newer versions of its own.
oldest: pyproject.toml constraints-oldest.txt  ## test the package with the oldest versions it allows
	$(PYTHON) -m venv --clear $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install -q -c constraints-oldest.txt ".[photos]" \
	  pytest beartype hypothesis scipy nbclient ipykernel resvg-py
	$(VENV)-oldest/bin/python -m pytest -m "not slow and not browser" \
	  tests/nn tests/models tests/analysis tests/datasets tests/hub tests/widgets \
	  --ignore tests/datasets/test_tokenizer.py

lab: $(VENV)/.installed-book  ## open the chapters in JupyterLab
	$(PY) -m jupyterlab book

lint: $(VENV)/.installed-test  ## check style and formatting
	$(PY) -m ruff check . && $(PY) -m ruff format --check .

format: $(VENV)/.installed-test  ## mend style and formatting
	$(PY) -m ruff check --fix . && $(PY) -m ruff format .

bench: $(VENV)/.installed-test  ## measure speed side by side with what else you could use
	$(PY) benchmarks/all.py

data: $(VENV)/.installed-test  ## rebuild the emoji set from its npm packages, byte for byte
	$(PY) data/build_emoji.py

checkpoints: $(VENV)/.installed-test  ## train the mini checkpoints whose recipe or data has changed
	$(PY) scripts/make_checkpoints.py

lock: $(VENV)/.created  ## resolve the newest versions into constraints.txt
	$(PYTHON) scripts/lock.py

screenshots: $(VENV)/.installed-test  ## take the README's pictures from the built site
	$(PY) scripts/build_book.py && $(PY) scripts/screenshots.py

clean:  ## remove the built site (the environment stays)
	rm -rf _build
