# make demo | test | lint | bench    (PYTHON=python3.12 make ... for another interpreter)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: demo test bench lint types

demo: $(STAMP)
	$(BIN)/mtfed simulate pneumonia --strategies bayesian fedavg alone -c rounds=8

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

bench: $(STAMP)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev,bench]"
	$(BIN)/python -m benchmarks

lint: $(STAMP) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not follow the mapping of strategies/ and clients/ into the package, so it checks a copy with them in place.
types: $(STAMP)
	rm -rf build/types && mkdir -p build/types
	cp -r mtfed build/types/mtfed
	cp -r strategies build/types/mtfed/strategies
	cp -r clients build/types/mtfed/clients
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p mtfed

# torch and torchvision are installed first, as the tested pair: through timm alone, pip would take the newest, with CUDA.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "mtfed needs Python 3.11 to 3.13, this is " + sys.version.split()[0] + "; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=24"
	$(BIN)/pip install --quiet -c constraints.txt torch torchvision
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(STAMP)
