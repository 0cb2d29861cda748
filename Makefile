# `make demo` and `make test` set everything up in .venv on their own; nothing but python3 >= 3.11 with venv is needed.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
# Bytecode of the tests is kept, or each process would compile them again: with half of the time that `make test-fast` has.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(VENV)/bin/python -m pytest
JOBS ?= auto
# Files of tests are dealt out to as many processes as there are cores; what starts a Ray stays in one of them: see tests/conftest.py.
SHARED := -n $(JOBS) --maxprocesses 4 --dist loadfile

.PHONY: demo test test-fast test-rare test-slow test-network test-sanitize bench bench-engine bench-scale bench-kernels bench-costs bench-scenarios lint clean

demo: $(READY)
	$(VENV)/bin/sparcl run

test: $(READY)
	$(PYTEST) $(SHARED) -m "not rare and not slow and not network"

# Within a minute, something of every room: what tests/fast.txt lists.
test-fast: $(READY)
	$(PYTEST) $(SHARED) -m "not ray and not rare and not slow and not network" @tests/fast.txt

# What seldom breaks and waits for minutes: clusters, killed drivers.
test-rare: $(READY)
	$(PYTEST) -m rare

test-slow: $(READY)
	$(PYTEST) -m slow

# Needs root and iproute2: two network namespaces, one of which is cut off.
test-network: $(READY)
	$(PYTEST) -m network

# The kernels' tests with bounds and undefined behaviour checked. libstdc++ comes along because AddressSanitizer looks for the throw of
# PyTorch's exceptions when it starts; only Python's own output is captured, so that the report is seen when it ends the process.
SANITIZE := -O1 -g -fsanitize=address,undefined -fno-omit-frame-pointer
CACHED := $(CURDIR)/build/kernels-sanitized

test-sanitize: $(READY)
	@test -f "$$(cc -print-file-name=libasan.so)" || { echo "libasan is missing: install gcc with its sanitizers (Debian: gcc)"; exit 2; }
	mkdir -p "$(CACHED)" && chmod 700 "$(CACHED)"
	CC=cc SPARCL_KERNELS=sparse SPARCL_KERNEL_CACHE="$(CACHED)" SPARCL_KERNEL_FLAGS="$(SANITIZE)" \
	LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	$(PYTEST) --capture=sys -m "not slow" tests/sparcl_core/kernels

bench: $(READY)
	$(VENV)/bin/python -m benchmarks.codec

bench-engine: $(READY)
	$(VENV)/bin/python -m benchmarks.engine

bench-scale: $(READY)
	$(VENV)/bin/python -m benchmarks.scale

bench-kernels: $(READY)
	$(VENV)/bin/python -m benchmarks.kernels

bench-scenarios: $(READY)
	$(VENV)/bin/python -m benchmarks.scenarios

bench-costs: $(READY)
	$(VENV)/bin/python -m benchmarks.costs

lint: $(READY)
	$(VENV)/bin/uv pip install -q --python $(VENV)/bin/python -e ".[lint]"
	$(VENV)/bin/ruff check .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .ruff_cache

# The stamp is newer than pyproject.toml as long as the installed dependencies are the declared ones. At the end, what runs import is imported
# once, so that its bytecode is there: without it each process takes twice as long to start.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is too old: Python 3.11 or newer is needed (make PYTHON=python3.12 ...)"; exit 2; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/python -m uv pip install --python $(VENV)/bin/python -e ".[test]"
	env -u PYTHONDONTWRITEBYTECODE $(VENV)/bin/python -m simulations.bytecode
	@touch $(READY)
