VENV := .venv
BIN := $(VENV)/bin
TOOLS := .venv-tools

.DEFAULT_GOAL := help
.PHONY: help install run test lint format table deployment rehearsal faults soak server-soak lock sbom audit docker-demo clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | awk -F ':.*  ## ' '{ printf "%-12s %s\n", $$1, $$2 }'

install: $(VENV)/.installed  ## make the virtual environment and install the project with its tools

$(VENV)/.installed: pyproject.toml constraints/highest.txt
	python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints/highest.txt --editable '.[dev]'
	touch $@

run: install  ## run the default simulation
	$(BIN)/hyperlora run

test:  ## install and run all tests: the README's test command
	python3 -m venv .venv && .venv/bin/pip install --quiet --constraint constraints/highest.txt --editable '.[dev]' && .venv/bin/pytest

lint: install  ## check style, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install  ## format the code and repair what ruff can repair
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

table: install  ## run the digits benchmark and print its table
	$(BIN)/python -m benchmarks digits

deployment: install  ## rehearse separate machines: SuperLink and SuperNodes as processes, with and without TLS
	$(BIN)/pytest -n 0 -m deployment tests/integration

rehearsal: install  ## before a release: every test that the plain test run leaves out, some 25 minutes
	$(BIN)/pytest -n 0 -m "long or deployment or slow"

faults: install  ## try every fault, 20,000 mutated records, 2,000 damaged files and 200 kills, print a table
	$(BIN)/python -m tests.faults

server-soak: install  ## 200 rounds of the server with 10,000 clients without a model
	$(BIN)/python -m benchmarks.server_soak

soak: install  ## 200 rounds of 100 clients with random faults: nothing grows, leaks or gets worse
	$(BIN)/python -m benchmarks.soak

# Versions that stand in the lock stay as they are; `make lock UPGRADE=--upgrade` takes the newest that the bounds allow.
lock: $(TOOLS)/.installed  ## lock what pyproject.toml asks for and all that it brings, for every platform (uv; network)
	$(TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-annotate $(UPGRADE) \
	  --custom-compile-command "make lock" --output-file constraints/highest.txt pyproject.toml

$(TOOLS)/.installed:
	python3 -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet cyclonedx-bom pip-audit uv
	touch $@

sbom: install $(TOOLS)/.installed  ## write sbom.json: every installed package with version and licence (CycloneDX)
	$(TOOLS)/bin/cyclonedx-py environment $(BIN)/python --output-reproducible --of JSON -o sbom.json

audit: install $(TOOLS)/.installed  ## look all installed packages up among the known vulnerabilities (pip-audit; network)
	$(TOOLS)/bin/pip-audit --path $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

docker-demo: install  ## make keys, run a federation of three sites in containers, collect the results, stop
	docker/demo.sh

clean:  ## remove caches and builds; keep the environment and the runs
	rm -rf build dist *.egg-info *.fab .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +
