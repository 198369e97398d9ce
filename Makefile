.PHONY: help check static format lint types layers language test docs families families-on-all
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -E '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

check: static test  ## All that CI runs

static: lint types layers language  ## Check all that needs no test run

format:  ## Format the code and apply safe fixes
	ruff format .
	ruff check --fix .

lint:  ## Check format and lint
	ruff format --check .
	ruff check .

types:  ## Check types strictly
	mypy

layers:  ## Check that imports point one way
	lint-imports

language:  ## Check the English of code and documentation
	python tools/check_language.py

test:  ## Run every test
	pytest

test-%:  ## Run the tests of one package, such as test-trace
	pytest tests/$*

docs:  ## Write the real output of the documentation's commands below them
	python tools/refresh_docs.py

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
		$$venv/bin/python -m pytest tests/anatomy tests/families tests/tracing; \
	done
