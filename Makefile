.PHONY: help check format lint types layers test
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

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
