PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-processes test-benchmarks test-parity lint venv venv-dev venv-parity

demo: venv  ## train and evaluate SAOL on scenes of handwritten digits
	$(BIN)/python main.py --config=configs/digits_saol.py --workdir=runs/digits

# In the order of tests/conftest.py: by number of tests, xdist's own, the long files would come last, alone.
test: venv-dev  ## the test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	  --ignore=tests/processes --ignore=tests/bench --ignore=tests/parity

test-processes: venv-dev  ## runs that are stopped, killed or out of disk, and runs of several processes: minutes of waiting
	$(BIN)/python -m pytest tests/processes

test-benchmarks: venv-dev  ## the scripts that measure, with tiny sizes
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/bench

test-parity: venv-parity  ## the same features as PyTorch's libraries compute; installs PyTorch
	$(BIN)/python -m pytest -n 2 tests/parity

lint: venv-dev  ## style and common mistakes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

venv: $(VENV)/installed
venv-dev: $(VENV)/installed-dev
venv-parity: $(VENV)/installed-parity

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

$(VENV)/installed-parity: requirements-parity.txt requirements-parity-alone.txt $(VENV)/installed-dev
	$(BIN)/pip install --quiet -r requirements-parity.txt
	$(BIN)/pip install --quiet --no-deps -r requirements-parity-alone.txt
	touch $@
