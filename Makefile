# `make demo` and `make test` set everything up in .venv on their own; nothing but python3 >= 3.11 with venv is needed.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: demo test test-slow test-network bench bench-engine bench-scale lint clean

demo: $(READY)
	$(VENV)/bin/sparcl run

test: $(READY)
	$(VENV)/bin/python -m pytest -m "not slow and not network"

test-slow: $(READY)
	$(VENV)/bin/python -m pytest -m slow

# Needs root and iproute2: two network namespaces, one of which is cut off.
test-network: $(READY)
	$(VENV)/bin/python -m pytest -m network

bench: $(READY)
	$(VENV)/bin/python -m benchmarks.codec

bench-engine: $(READY)
	$(VENV)/bin/python -m benchmarks.engine

bench-scale: $(READY)
	$(VENV)/bin/python -m benchmarks.scale

lint: $(READY)
	$(VENV)/bin/uv pip install -q --python $(VENV)/bin/python -e ".[lint]"
	$(VENV)/bin/ruff check .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .ruff_cache

# The stamp is newer than pyproject.toml as long as the installed dependencies are the declared ones.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is too old: Python 3.11 or newer is needed (make PYTHON=python3.12 ...)"; exit 2; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/python -m uv pip install --python $(VENV)/bin/python -e ".[test]"
	@touch $(READY)
