# make demo and make test do everything on a fresh clone; they need python3 (3.11 or newer) and make.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check format clean

demo: .venv/ready
	$(BIN)/python -m benchmarks.demo $(CHECKPOINT)

test: .venv/ready
	$(BIN)/python -m pytest

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layout.py

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The lock pins every version; torch's pin keeps pip from its newest, multi-gigabyte CUDA build.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "m3rt needs python 3.11 or newer; found $$($(PYTHON) --version): make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,openvino,tensorrt-rtx,export,parquet,eval,serve,grpc,otel]' --group dev
	@touch $@

clean:
	rm -rf .venv .demo build dist *.egg-info
