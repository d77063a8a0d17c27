# Each target does its own set-up: on a machine with Python 3.11 or newer, one command is enough.
#   make quickstart   generate text, fine-tune a teacher, distil it, compare; ends with a report
#   make check test   what CI runs
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTHONS := python3.11 python3 python3.12 python3.13 python3.14
CODE := xdray jobs tests benchmarks
SAMPLE := sample/quickstart
FUZZ := 10000
SEED := 0

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# else pyright asks PyPI whether there is a newer pyright
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help install quickstart test test-fast test-all test-faults soak fuzz check check-deps fix clean

help:
	@sed -n 's/^#   //p' Makefile
	@echo "targets: install quickstart test test-fast test-all test-faults soak fuzz check check-deps" \
	  "fix clean"

install: $(INSTALLED)

$(BIN)/python:
	@for python in $(PYTHONS); do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "$(VENV): made with $$($$python --version)"; \
	    $$python -m venv $(VENV) && exit 0; \
	    rm -rf $(VENV); \
	    echo "make: $$python cannot make a virtual environment; install its venv module" \
	      "(Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; \
	  fi; \
	done; \
	echo "make: no Python 3.11 or newer among: $(PYTHONS)" \
	  "(python3 is $$(python3 --version 2>&1 || true)); install one" >&2; exit 1

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=24'  # older ones cannot build seqeval
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[quickstart,search,onnx,dev]'
	@touch $@

quickstart: $(INSTALLED)
	$(BIN)/xdray sample quickstart $(SAMPLE)
	HF_HUB_OFFLINE=1 $(BIN)/python jobs/distill.py configs/quickstart.yaml

test: $(INSTALLED)  # with real Ray, under 12 minutes on two cores
	$(BIN)/python -m pytest -m 'not slow and not faults'

test-fast: $(INSTALLED)  # without Ray, under a minute
	$(BIN)/python -m pytest -m 'not cluster and not slow and not faults'

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -m 'not faults'

test-faults: $(INSTALLED)  # SIGKILL, damage, full disks; ends with a table of what was survived
	$(BIN)/python -m pytest -m faults

MINUTES := 15
soak: $(INSTALLED)  # annotate, train, kill, again: make soak MINUTES=2
	$(BIN)/python benchmarks/soak.py $(MINUTES)

fuzz: $(INSTALLED)  # so many damaged inputs a reader, others with another SEED; prints the counts
	XDRAY_FUZZ=$(FUZZ) $(BIN)/python -m pytest tests/test_fuzz.py tests/test_fuzz_files.py tests/test_fuzz_models.py \
	  --hypothesis-seed=$(SEED)

check: $(INSTALLED)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/pyright

check-deps: $(INSTALLED)  # known holes in what is installed; 2: no source of advisories answered
	@$(BIN)/python jobs/check_deps.py

fix: $(INSTALLED)
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

clean:  # runs, targets and sample text stay
	rm -rf $(VENV) dist build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
