# The whole developer interface. Every target does the set-up it needs, on a machine with Python 3.11 or 3.12, a C++20 compiler and make.
#   PYTHON=python3.12 make setup     another interpreter        TORCH=torch==2.12.1 make setup     another torch
#   VENV=/path make …                another environment
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CORE := $(VENV)/.core
EMBEDDED := examples/stdlib-coder/model
ARTIFACT := build/stdlib-coder
CORE_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.hpp' 2>/dev/null) CMakeLists.txt

.PHONY: setup core artifact demo test check bench format clean

setup: $(CORE)
core: $(CORE)

# torch is installed first and pinned: a bare requirement would bring the newest build with every CUDA library.
$(READY): pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "setuptools>=77" "nanobind>=2.4" "cmake>=3.25" ninja
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -e ".[compile,serve,dev]"
	touch $@

$(CORE): $(READY) $(CORE_SOURCES)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

artifact: $(ARTIFACT)/manifest.json
$(ARTIFACT)/manifest.json: $(CORE) $(wildcard $(EMBEDDED)/*) $(shell find friendli_compile -name '*.py')
	$(BIN)/fmo compile $(EMBEDDED) --output-dir $(ARTIFACT) --force

demo: artifact
	$(BIN)/python examples/demo.py $(ARTIFACT)

test: $(CORE)
	$(BIN)/python -m pytest

check: $(CORE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format --dry-run --Werror

format: $(CORE)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format -i

bench: $(CORE)
	$(BIN)/python bench/kernels/kernels.py
	$(BIN)/python bench/engine/run.py

clean:
	rm -rf build $(VENV) runtime/_core*.so
