# make native: builds the fast operator for the TensorFlow in the environment.
# make core-test: its C++ tests; core-test-sanitized: shorter, with AddressSanitizer and UBSan;
# core-test-threads: with ThreadSanitizer; core-test-aarch64: for another processor, emulated.
# make fuzz: a million random and hostile calls, and programs of fused graphs; fuzz-short: fewer.
# SEED= begins elsewhere.
# make fuzz-graphs: COUNT random Keras graphs through apply, strip, fuse, files; from SEED on.
# make litert-test: the delegate for LiteRT against a runtime that is played, with sanitizers, CALLS
# spoiled calls; litert-test-aarch64: for another processor, built with CMake too, emulated;
# litert-python-aarch64: that in LiteRT's own wheel for it.
# make bazel: the operator and the C++ tests with Bazel 4 as Debian packages it.
# make cuda: libespace_cuda.so, the operators on GPUs without TensorFlow; needs nvcc, no GPU.
# make cuda-test: the GPU kernels on the CPU; cuda-test-races: a few calls, with ThreadSanitizer.
# make docs: the site, in build/site, warnings being errors; make pictures: those of docs/how.md;
# make notebooks: runs those of docs/notebooks and keeps what they print; NOTEBOOK_FLAGS=--short
# runs them with few images and keeps nothing.
# make wheel: the sources and a wheel, in dist; make wheel-test: tries them in fresh environments.
# make test-matrix: the quick tests with the oldest and the newest TensorFlow and Python.
# make demo: sets up and compresses the shipped network. make test: sets up and runs every test.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
DEMO_FLAGS ?=
NOTEBOOK_FLAGS ?=
export TF_CPP_MIN_LOG_LEVEL ?= 2

SANITIZED := BUILD=../../build/core_sanitized \
  EXTRA="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
SEED ?= 0
COUNT ?= 2000
AARCH64 := aarch64-linux-gnu
BAZEL := bazel --bazelrc=bazel/debian.bazelrc

.PHONY: setup native core-test core-test-sanitized core-test-threads core-test-aarch64 \
  litert-test litert-test-aarch64 litert-python-aarch64 \
  fuzz fuzz-short fuzz-graphs bazel cuda cuda-test cuda-test-races demo test lint clean \
  docs pictures notebooks wheel wheel-test test-matrix

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
	$(MAKE) -C kernels/core $(SANITIZED) ARGUMENTS=short

core-test-threads:
	$(MAKE) -C kernels/core BUILD=../../build/core_threads ARGUMENTS=threads EXTRA="-O1 -g -fsanitize=thread"

# ARGUMENTS=all runs all of it.
core-test-aarch64:
	@if command -v $(AARCH64)-g++ && command -v qemu-aarch64; then \
	  $(MAKE) -C kernels/core CXX=$(AARCH64)-g++ BUILD=../../build/core_aarch64 \
	    RUN="qemu-aarch64 -L /usr/$(AARCH64)" ARGUMENTS=$(or $(ARGUMENTS),short); \
	else \
	  echo "core-test-aarch64 is skipped: it needs $(AARCH64)-g++ and qemu-aarch64" \
	    "(Debian: apt-get install g++-aarch64-linux-gnu qemu-user)"; \
	fi

litert-test:
	$(MAKE) -C kernels/core -f ../litert/test.mk $(SANITIZED) CALLS=$(or $(CALLS),4000)

litert-test-aarch64:
	@if command -v $(AARCH64)-g++ && command -v qemu-aarch64 && command -v cmake; then \
	  $(MAKE) -C kernels/core -f ../litert/test.mk CXX=$(AARCH64)-g++ BUILD=../../build/core_aarch64 \
	    RUN="qemu-aarch64 -L /usr/$(AARCH64)" CALLS=$(or $(CALLS),400) && \
	  cmake -S kernels/litert -B build/litert_aarch64 -DCMAKE_SYSTEM_NAME=Linux \
	    -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(AARCH64)-g++ && \
	  cmake --build build/litert_aarch64; \
	else \
	  echo "litert-test-aarch64 is skipped: it needs $(AARCH64)-g++, qemu-aarch64 and cmake"; \
	fi

litert-python-aarch64: setup native
	@if [ -f build/litert_aarch64/libespace_litert.so ] && command -v apt-get && command -v dpkg; then \
	  PYTHONPATH=. $(PY) tests/litert_aarch64.py; \
	else \
	  echo "litert-python-aarch64 is skipped: it needs Debian's apt-get, and litert-test-aarch64 first"; \
	fi

fuzz:
	$(MAKE) -C kernels/core $(SANITIZED) fuzz CALLS=1000000 PROGRAMS=20000 SEED=$(SEED)

fuzz-short:
	$(MAKE) -C kernels/core $(SANITIZED) fuzz CALLS=60000 PROGRAMS=400 SEED=$(SEED)

fuzz-graphs: setup native
	PYTHONPATH=. $(PY) tests/fuzz_graphs.py --count=$(COUNT) --seed=$(SEED)

bazel: setup
	PYTHON_BIN_PATH=$(abspath $(PY)) $(BAZEL) test :channels_test :core_test :dense_test :fused_graph_test \
	  :delegate_test :fuzz_test :memory_test :pointwise_test :windows_test
	PYTHON_BIN_PATH=$(abspath $(PY)) $(BAZEL) build :native :libespace_litert.so

cuda:
	$(MAKE) -C kernels/core -f cuda.mk library

cuda-test:
	$(MAKE) -C kernels/core -f cuda.mk

cuda-test-races:
	$(MAKE) -C kernels/core -f cuda.mk BUILD=../../build/cuda_races ARGUMENTS=races \
	  EXTRA="-O1 -g -fsanitize=thread"

demo: setup native
	$(PY) demo/demo.py $(DEMO_FLAGS)

# In two processes, which takes 8 GB of memory: a test that computes seldom keeps two cores busy.
test: setup native
	$(PY) -m pytest --numprocesses=2 --dist=loadfile

docs: setup
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

pictures: setup native
	PYTHONPATH=. $(PY) docs/pictures/draw.py

notebooks: setup native
	PYTHONPATH=. $(PY) docs/notebooks/execute.py $(NOTEBOOK_FLAGS)

wheel: setup
	rm -f dist/espace_tf-*
	$(PY) release/build.py

wheel-test: wheel
	$(PY) release/try_out.py dist/*

test-matrix: setup
	$(PY) release/matrix.py

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean:
	rm -rf build dist out *.egg-info kernels/*.so bazel-*
