.PHONY: help check format lint types layers test families families-on-both
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

check: lint types layers test  ## All that CI runs

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

test:  ## Run every test
	pytest

families:  ## Prove every family on the installed transformers
	pytest tests/anatomy tests/families

# The oldest transformers that is supported, in an environment of its own.
OLDEST := .venv-5.17
families-on-both: families  ## Prove them on the oldest supported transformers as well
	python -m venv $(OLDEST)
	sed -e 's/^transformers==.*/transformers==5.17.0/' -e '/^huggingface_hub==/d' \
		constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install -q -c $(OLDEST)/constraints.txt -e ".[dev]"
	$(OLDEST)/bin/python -m pytest tests/anatomy tests/families
