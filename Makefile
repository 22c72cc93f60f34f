# The two main commands are `make demo` and `make test`. Both install everything first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint golden messages clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "qseek needs Python 3.11; $(PYTHON) is not a command. Run make PYTHON=COMMAND." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[demo,dev]"
	touch $@

demo: setup  ## Index photos, search them, and say how to open the page. PHOTOS=folder uses your own photos.
	@BIN=$(BIN) PHOTOS="$(PHOTOS)" sh tests/demo/demo.sh

test: setup  ## Run the tests in two processes. TESTS="tests/engine -n 0" runs some of them in one process.
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(TESTS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

golden: setup  ## Compute the recorded numbers in tests/golden again. Read the diff before you commit it.
	PYTHONPATH=. $(BIN)/python tests/support/golden_small.py
	PYTHONPATH=. $(BIN)/python tests/support/golden_losses.py

messages: setup  ## Print every help text, error and note that a person can meet.
	@PYTHONPATH=. $(BIN)/python tests/support/print_messages.py

clean:
	rm -rf $(VENV) .demo
