# Every target sets up what it needs: Python >= 3.10, make and git are enough.
#   make demo | docs | test | slow | lint | format | examples | bench | figures | gpu | matrix | torture | clean
# ARGS goes to pytest: make test ARGS="tests/test_packaging.py -x"

# The first interpreter that really runs (a pyenv shim may exist and not run), is new enough and can make
# a venv. 3.11 leads because the project is developed on it. Override: make test PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.10 python3; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 \
	&& { echo $$p; break; }; done)

BIN := .venv/bin
INSTALLED := .venv/.installed
EXAMPLES = $(filter-out examples/demo.py examples/_%,$(sort $(wildcard examples/*.py)))
# These take an hour, or write gigabytes for a while: to be run by name.
LONG = benchmarks/figures.py benchmarks/gpu.py benchmarks/ladder_end_to_end.py benchmarks/ladder_scale.py benchmarks/report.py benchmarks/tab.py
BENCHMARKS = $(filter-out benchmarks/_% $(LONG),$(sort $(wildcard benchmarks/*.py)))

.DEFAULT_GOAL := test
.PHONY: demo docs test slow lint format examples bench figures gpu matrix torture clean

# The stamp goes first and comes back last: an install that fails half-way is done again.
$(INSTALLED): pyproject.toml constraints.txt
	@rm -f $@
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		python="$(PYTHON)"; \
		test -n "$$python" || { echo "isoflop needs Python >= 3.10 with venv: make PYTHON=/path/to/python" >&2; exit 1; }; \
		echo "$$python -m venv .venv"; "$$python" -m venv --clear .venv; }
	$(BIN)/python -m pip install -c constraints.txt -e ".[lightning,transformers,dev]"
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py

docs: $(INSTALLED)
	$(BIN)/python docs/build.py site

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow $(ARGS) || [ $$? -eq 5 ]  # 5: there is none yet

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src integrations
	PYTHONPATH=src:integrations $(BIN)/lint-imports --no-logo

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

examples: $(INSTALLED)
	@set -e; for f in $(EXAMPLES); do echo "== $$f"; ISOFLOP_EXAMPLE_QUICK=1 $(BIN)/python $$f; done

bench: $(INSTALLED)
	@set -e; for f in $(BENCHMARKS); do echo "== $$f"; $(BIN)/python $$f; done

# All of them again, into benchmarks/FIGURES.md: hours. ARGS="--only fit sizes": these alone.
figures: $(INSTALLED)
	$(BIN)/python benchmarks/figures.py $(ARGS)

# On one GPU, five minutes at most: what no CPU can show. ARGS="--json gpu.json" keeps the figures.
gpu: $(INSTALLED)
	$(BIN)/python benchmarks/gpu.py $(ARGS)

# Versions of torch, Lightning and transformers, each set in an environment of its own: an hour, most of it pip's.
matrix: $(INSTALLED)
	$(BIN)/python tests/matrix.py $(ARGS)

# Faults, kill -9 and fuzzing at full length (docs/promises.md): about 20 minutes on two free cores.
torture: $(INSTALLED)
	@set -e; cd tests; export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore; \
	../$(BIN)/python -m torture $(ARGS)

# Leaves .venv (minutes to make again) and runs/ (yours).
clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
