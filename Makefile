# make demo and make test set everything up; the other targets are described in docs/development.md.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
UV := VIRTUAL_ENV="$(CURDIR)/$(VENV)" $(BIN)/uv
IN_VENV = PATH="$(CURDIR)/$(BIN):$$PATH"
BENCH ?=
GPU_CHECK ?=

# Idle OpenMP threads sleep instead of spinning: this matters on machines with few cores.
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 0

# Python keeps what it has compiled: packages that uv installs are not, and every process of the tests would compile them.
unexport PYTHONDONTWRITEBYTECODE

# This build is for one architecture and, through its PTX, for later ones; pip install . is for all of them.
export CUDAARCHS ?= 80

# Figures are taken with OpenMP as it comes.
MEASURED := env -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT

SOURCES := setup.py pyproject.toml CMakeLists.txt $(shell find cmake csrc -type f)
CXX_FILES := $(shell find csrc examples tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')
SANITIZED := build/sanitized
EMULATED := build/emulated
# What a Python whose extension is built with AddressSanitizer needs, and the checks that are wanted of it.
SANITIZERS := LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libstdc++.so)" \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
# Paths and threads are those of the CPU kernels.
IN_EMULATED = cd $(EMULATED) && $(SANITIZERS) $(CURDIR)/$(BIN)/python -m pytest tests/kernels \
    --ignore=tests/kernels/test_paths_and_threads.py -p no:cacheprovider --capture=sys
# The tests that are repeated with the blocks and threads in other orders.
SCRAMBLED := shapes or misaligned or special

.PHONY: build demo demo-model test test-rest test-all test-slow test-sanitized test-emulated gpu-check bench bench-quick \
    docs wheel lint format clean

build: $(VENV)/.built

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	touch $@

# Not isolated: the extension is compiled against the torch that is installed.
$(VENV)/.built: $(VENV)/.torch $(SOURCES)
	$(BIN)/pip install --quiet uv
	$(UV) pip install --quiet "scikit-build-core[wheel-free-setuptools]>=0.11" "setuptools>=70.1" ninja cmake
	rm -f aimfair/_C*.so
	$(IN_VENV) $(UV) pip install --quiet --no-build-isolation --editable ".[dev]"
	touch $@

demo: build
	$(BIN)/aimfair demo

demo-model: build
	$(BIN)/python -m tools.digits_diffusion.train --out build/digits-diffusion
	$(BIN)/python -m tools.digits_diffusion.check build/digits-diffusion

# Two processes, each with whole files; then the gates whose inputs have changed.
test: build
	$(BIN)/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder
	$(IN_VENV) python -m tools.gates

# What make test leaves out.
test-rest: test-slow
	$(IN_VENV) python -m tools.gates --all

test-all: test test-rest

test-slow: build
	$(BIN)/python -m pytest tests -m slow -n 2 --dist loadfile --no-loadscope-reorder

# The kernel tests once more, with the extension built under AddressSanitizer and UndefinedBehaviorSanitizer.
test-sanitized: build
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	$(IN_VENV) AIMFAIR_CUDA=off AIMFAIR_SANITIZE=address,undefined \
	    $(BIN)/pip install --quiet --no-build-isolation --no-deps --target $(SANITIZED) .
	cp -r tests conftest.py pyproject.toml $(SANITIZED)
	cd $(SANITIZED) && $(SANITIZERS) $(CURDIR)/$(BIN)/python -m pytest tests/kernels -p no:cacheprovider --capture=sys

# The kernel tests on the CUDA kernels, run by the emulator (docs/development.md) under both sanitizers: all of them, and
# a selection with the blocks and threads in other orders. Rebuilt only if something changed.
test-emulated: build
	PATH="$(CURDIR)/$(BIN):$$PATH" && cmake -S . -B $(EMULATED)/cmake -G Ninja --log-level=WARNING \
	    -DCMAKE_INSTALL_MESSAGE=NEVER -DAIMFAIR_PYTHON=ON -DAIMFAIR_EMULATE_CUDA=ON -DAIMFAIR_SANITIZE=address,undefined \
	    -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python" && \
	    cmake --build $(EMULATED)/cmake
	rm -rf $(EMULATED)/aimfair $(EMULATED)/tests
	cp -r aimfair tests conftest.py pyproject.toml $(EMULATED)
	rm -f $(EMULATED)/aimfair/_C*.so
	PATH="$(CURDIR)/$(BIN):$$PATH" && cmake --install $(EMULATED)/cmake --prefix $(EMULATED)
	(for order in backward 1; do \
	    (export AIMFAIR_EMULATOR_ORDER=$$order; $(IN_EMULATED) -k "$(SCRAMBLED)") || exit; \
	done) > $(EMULATED)/scrambled.log 2>&1 & scrambled=$$!; \
	($(IN_EMULATED)); forward=$$?; \
	wait $$scrambled || { cat $(EMULATED)/scrambled.log; exit 1; }; \
	grep -E "passed|failed" $(EMULATED)/scrambled.log; exit $$forward

# On a machine with a GPU, with the Python that has torch for it; see docs/development.md.
gpu-check:
	$(PYTHON) -m tools.gpu_check $(GPU_CHECK)

bench: build
	$(MEASURED) $(BIN)/python -m pytest bench --save-results $(BENCH)

bench-quick: build
	$(MEASURED) $(BIN)/python -m pytest bench -m quick $(BENCH)

# A site in build/site, to be opened from disk or served from any folder.
docs: build
	$(IN_VENV) PYTHONPATH="$(CURDIR)" NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict

# A source distribution and the wheel that it makes, for this machine and all GPUs, into dist/.
wheel: build
	rm -rf dist
	$(IN_VENV) env -u CUDAARCHS python -m build --no-isolation --outdir dist

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy aimfair

format: build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf build dist $(VENV) aimfair/_C*.so
