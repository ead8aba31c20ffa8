# Every target sets up its own .venv from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete

.PHONY: demo test check bench random-rewinds endurance soak docs clean

demo: $(STAMP)
	$(BIN)/clonepool demo

test: check
	$(BIN)/pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m bench
	$(BIN)/python docs/refresh.py

random-rewinds: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m support.random_rewinds

endurance: $(STAMP)
	CLONEPOOL_ENDURANCE_LEASES=20000 $(BIN)/pytest --timeout 7200 tests/acceptance/test_endurance.py

soak: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m soak --minutes 5

docs: $(STAMP)
	$(BIN)/python docs/refresh.py

clean:
	rm -rf $(VENV) bench/build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[embedded,dev]'
	touch $(STAMP)
