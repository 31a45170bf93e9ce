# make native: builds the fast operator for the TensorFlow in the environment.
# make core-test: its C++ tests; core-test-sanitized: shorter, with AddressSanitizer and UBSan.
# make demo: sets up and compresses the shipped network. make test: sets up and runs every test.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
DEMO_FLAGS ?=
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: setup native core-test core-test-sanitized demo test lint clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# Without a compiler this says so and leaves the plain TensorFlow backend in place.
native: setup
	$(PY) -W ignore setup.py --quiet build_ext --inplace
	$(PY) -c "from espace_tf import kernels; print(kernels.backend())"

core-test:
	$(MAKE) -C kernels/core

core-test-sanitized:
	$(MAKE) -C kernels/core BUILD=../../build/core_sanitized ARGUMENTS=short \
	  EXTRA="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"

demo: setup native
	$(PY) demo/demo.py $(DEMO_FLAGS)

test: setup native
	$(PY) -m pytest

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean:
	rm -rf build dist out *.egg-info kernels/*.so
