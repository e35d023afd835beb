# make train: set up .venv and train the CURVES autoencoder.   make test: set up .venv and run all checks.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip -qq
INPUTS := pyproject.toml constraints.txt

.PHONY: train test clean

train: $(VENV)/installed-plots
	$(BIN)/gncompile train examples/curves_autoencoder.toml

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy --no-error-summary
	$(BIN)/python -m pytest --quiet

clean:
	rm -rf $(VENV) build dist *.egg-info

# One stamp for each extra, so that nothing is installed again until the requirements change.
$(VENV)/installed-%: $(INPUTS) | $(BIN)/python
	@echo "installing gncompile[$*] into $(VENV)"
	@$(PIP) install --constraint constraints.txt --editable '.[$*]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -m venv $(VENV)

.PRECIOUS: $(VENV)/installed-%
