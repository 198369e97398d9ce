.PHONY: help check static format lint types layers language scripts test docs kernels families families-on-all frameworks gguf
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -E '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

check: static test  ## All that CI runs

static: lint types layers language scripts  ## Check all that needs no test run

format: node_modules  ## Format the code and apply safe fixes
	ruff format .
	ruff check --fix .
	npx biome check --write

lint:  ## Check format and lint
	ruff format --check .
	ruff check .

types:  ## Check types strictly
	mypy

layers:  ## Check that imports point one way
	lint-imports

language:  ## Check the English of code and documentation
	python tools/check_language.py

scripts: node_modules  ## Check the page's scripts and style sheets
	npx biome ci
	npx tsc

# npm writes the list inside when it has installed all.
node_modules: node_modules/.package-lock.json

node_modules/.package-lock.json: package.json package-lock.json
	@command -v npm > /dev/null || { \
		echo "npm is missing; it comes with Node.js: apt-get install npm" >&2; exit 1; }
	npm ci
	@touch $@

test:  ## Run every test
	pytest

test-%:  ## Run the tests of one package, such as test-trace
	pytest tests/$*

kernels:  ## Compare the Triton kernels with plain torch in Triton's interpreter; needs triton
	TRITON_INTERPRET=1 pytest -n 0 tests/quantizing/kernels/in_interpreter.py

docs:  ## Write the real output of the documentation's commands below them
	python tools/refresh_docs.py

# The folder of llama.cpp in the source distribution of llama-cpp-python.
LLAMA_CPP := vendor/llama.cpp
gguf:  ## Compare with the gguf package and with llama.cpp itself, which docs/models/gguf.md says how to install
	python -m benchmarks.gguf.check_reader
	python -m benchmarks.gguf.compare_buffers
	python -m benchmarks.gguf.llama_cpp_devices qwen3_moe > /tmp/llama_cpp_devices.jsonl
	python -m benchmarks.gguf.check_receipts /tmp/llama_cpp_devices.jsonl
	python -m benchmarks.gguf.routing.demo $(LLAMA_CPP)
	python -m benchmarks.gguf.routing.families $(LLAMA_CPP)
	python -m benchmarks.gguf.routing.devices $(LLAMA_CPP)
	python -m benchmarks.gguf.routing.quantized $(LLAMA_CPP) --check

families:  ## Prove every family on the installed transformers
	pytest tests/anatomy tests/families

# The oldest transformers that is supported, and the last one whose caches are `past_key_values`,
# each in its own environment.
OLDER := 5.17.0 5.23.0
families-on-all: families  ## Prove them, and the recorder, on older supported transformers as well
	set -e; for version in $(OLDER); do \
		venv=.venv-$$version; \
		python -m venv $$venv; \
		sed -e "s/^transformers==.*/transformers==$$version/" -e '/^huggingface_hub==/d' \
			constraints.txt > $$venv/constraints.txt; \
		$$venv/bin/pip install -q -c $$venv/constraints.txt -e ".[dev]"; \
		$$venv/bin/python -m pytest tests/anatomy tests/families tests/quantizing/test_saving.py \
			tests/tracing; \
	done

# Without their dependencies, which ask for other versions of torch and for GPUs. The older torchtitan
# weighs what experts receive. Tutel is not on PyPI: TUTEL=URL-or-folder builds it for the CPU.
FRAMEWORKS := .venv-frameworks
frameworks:  ## Prove the layers of other frameworks, in a separate environment
	python -m venv $(FRAMEWORKS)
	$(FRAMEWORKS)/bin/pip install -q -c constraints.txt -e ".[dev]"
	$(FRAMEWORKS)/bin/pip install -q wheel setuptools
	DS_BUILD_OPS=0 $(FRAMEWORKS)/bin/pip install -q --no-deps --no-build-isolation \
		$$(python tools/list_extra.py frameworks)
	$(FRAMEWORKS)/bin/pip install -q --no-deps --target $(FRAMEWORKS)/older torchtitan==0.2.2
	$(if $(TUTEL),NO_CUDA=1 $(FRAMEWORKS)/bin/pip install -q --no-deps --no-build-isolation $(TUTEL))
	$(FRAMEWORKS)/bin/python -m tests.frameworks.prove
	PYTHONPATH=$(FRAMEWORKS)/older $(FRAMEWORKS)/bin/python -m tests.frameworks.prove score_before
