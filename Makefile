# make train: set up .venv and train the CURVES autoencoder.   make test: set up .venv and run all checks.
# make check: lint, types, the import contract and the quick tests, below a minute and a half.
# make docs: the documentation as a site in build/site, with links checked.
# make kernels: the part of make test that checks the Triton kernels without a GPU, interpreted and compiled.
# make bench: set up .venv-bench and time the step against autograd and BackPACK.
# make convergence: set up .venv-bench and compare optimisers on ten problems, for hours.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip -qq
INSTALL := install --no-compile --constraint constraints.txt
BENCH  := .venv-bench
INPUTS := pyproject.toml constraints.txt

# Bytecode is written at a file's first import: pip would compile all of torch before anything else can start.
unexport PYTHONDONTWRITEBYTECODE

# Triton is there for Linux only.
KERNELS := $(if $(filter Linux,$(shell uname -s)),kernels)

# The plain tests in two halves, so that two cores have as much to do.
PLAIN  := $(filter-out tests/gpu/ tests/support/ tests/triton/,$(wildcard tests/*/)) $(wildcard tests/test_*.py)
FIRST  := $(addprefix tests/,app/ base/ benchmarks/ derivation/ frontends/)
SECOND := $(filter-out $(FIRST),$(PLAIN))

# One quick file of each room at least.
QUICK  := $(addprefix tests/,base/ solvers/ test_house.py test_package.py app/test_run_folder.py app/test_standings.py \
	derivation/test_new_node_kind.py derivation/test_oracle_4_kfra.py derivation/test_step_sizes.py emit/test_golden.py \
	frontends/test_model_file.py functions/test_expressions.py functions/test_parsing.py functions/test_primitives.py \
	graph/test_fuse_pointwise.py graph/test_piecewise_linear.py program/test_buffers.py program/test_program_check.py \
	runtime/test_linalg.py runtime/test_scalars.py runtime/test_source_check.py training/test_batches.py \
	tuning/test_tuning_search.py tuning/test_tuning_store.py)

.PHONY: train test check docs lint plain plain-first plain-second kernels interpreted compiled bench convergence bench-env clean

train: $(VENV)/installed-plots
	$(BIN)/gncompile train examples/curves_autoencoder.toml

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-logo --no-cache

check: lint
	$(BIN)/python -m pytest --quiet $(QUICK)

# Two at a time from the first to the last: lint, then the long ones first, so that both end together.
test: $(VENV)/installed-test
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint plain $(KERNELS) docs

docs: $(VENV)/installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

plain: plain-second plain-first

plain-first: $(VENV)/installed-test
	$(BIN)/python -m pytest --quiet $(FIRST)

plain-second: $(VENV)/installed-test
	$(BIN)/python -m pytest --quiet $(SECOND)

kernels: interpreted compiled

interpreted: $(VENV)/installed-test
	TRITON_INTERPRET=1 $(BIN)/python -m pytest --quiet tests/triton

compiled: $(VENV)/installed-test
	$(BIN)/python -m pytest --quiet tests/triton

# Options of the benchmark: make bench ARGS="--model curves --rounds 5"
bench: bench-env
	$(BENCH)/bin/python -m pytest --quiet benchmarks/peers
	$(BENCH)/bin/python -m benchmarks.cpu_step $(ARGS)

# Options as for bench: make convergence ARGS="--problems stiff --budget 10s"
convergence: bench-env
	$(BENCH)/bin/python -m benchmarks.convergence $(ARGS)

bench-env: $(BENCH)/installed

# BackPACK, which curvlinops wants, declares torchvision, which only its examples import and which would bring
# another torch.
$(BENCH)/installed: $(INPUTS)
	@echo "installing gncompile[bench] and BackPACK into $(BENCH)"
	@$(PYTHON) -m venv $(BENCH)
	@$(BENCH)/bin/python -m pip -qq $(INSTALL) --editable '.[bench]'
	@$(BENCH)/bin/python -m pip -qq $(INSTALL) --no-deps backpack-for-pytorch \
	    curvlinops-for-pytorch==3.0.1 einconv linear_operator jaxtyping wadler-lindig tqdm
	@touch $@

clean:
	rm -rf $(VENV) $(BENCH) build dist *.egg-info

# One stamp for each extra, so that nothing is installed again until the requirements change.
$(VENV)/installed-%: $(INPUTS) | $(BIN)/python
	@echo "installing gncompile[$*] into $(VENV)"
	@$(PIP) $(INSTALL) --editable '.[$*]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -m venv $(VENV)

.PRECIOUS: $(VENV)/installed-%
