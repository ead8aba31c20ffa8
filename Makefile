# Every target sets up its own .venv from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete

# Most tests wait for processes, so more workers than cores keep the cores busy.
WORKERS ?= $(shell echo $$(( 2 * $$(nproc) )))
PYTEST := $(BIN)/pytest
SIDE_BY_SIDE := -n $(WORKERS) --dist worksteal

.PHONY: demo test test-fast test-slow check coverage bench compare random-rewinds endurance soak docs \
	postgres-versions clean

demo: $(STAMP)
	$(BIN)/clonepool demo

# All standard tests, on the newest PostgreSQL and the oldest on which clones are rewound.
test: check
	-PYTHONPATH=tests $(BIN)/python -m support.postgres_versions 14 15
	$(PYTEST) $(SIDE_BY_SIDE) -m "not slow and not alone"
	$(PYTEST) -m "alone and not slow"

# Tests that need no server.
test-fast: check
	CLONEPOOL_TEST_LANE=fast $(PYTEST) -n auto -m "not server and not slow and not long and not alone" \
		tests/unit tests/property

# The slow and long tests, on every PostgreSQL from 14 to 18.
test-slow: check postgres-versions
	CLONEPOOL_TEST_LANE=slow $(PYTEST) $(SIDE_BY_SIDE) -m "(slow or long) and not alone"
	CLONEPOOL_TEST_LANE=slow $(PYTEST) -m "alone and (slow or long)"

# Daemons and commands are separate processes; each writes a data file, and these are combined.
coverage: $(STAMP)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(SIDE_BY_SIDE) -m "not slow and not alone"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered

postgres-versions: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m support.postgres_versions 14 15 16 17 18

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	@command -v cc >/dev/null || { echo "make bench needs a C compiler named cc" >&2; exit 1; }
	$(BIN)/python -m bench
	$(BIN)/python docs/refresh.py

# Compare this tree with an earlier one, in one run: make compare BASE=v0.1.0
compare: $(STAMP)
	$(BIN)/python -m bench.compare $(BASE)

random-rewinds: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m support.random_rewinds

endurance: $(STAMP)
	CLONEPOOL_ENDURANCE_LEASES=20000 $(BIN)/pytest --timeout 7200 tests/acceptance/test_endurance.py

soak: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m soak --minutes 5

docs: $(STAMP)
	$(BIN)/python docs/refresh.py

clean:
	rm -rf $(VENV) bench/build .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[embedded,dev]'
	touch $(STAMP)
