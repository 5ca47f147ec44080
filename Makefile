# Every target first makes .venv complete (scripts/setup_env.sh), from nothing if need be; once it is,
# that costs a fraction of a second and no network.
#   PYTHON=/path/to/python3.12    the Python to build .venv with
#   EMBCACHE_DEVICE=cpu|cuda      which vLLM to install              (default: by the GPU found)
#   ARGS='...'                    passed on to demo, test, bench and bench-*, storm, ray-test, damage,
#                                 soak, fuzz, lock

PY := .venv/bin/python
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint check format bench bench-dtypes bench-memory bench-canaries bench-store bench-scaling bench-ray storm ray-test damage soak fuzz lock hooks clean distclean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

setup:  ## .venv with every pinned package (the other targets do this by themselves)
	@sh scripts/setup_env.sh

demo: setup  ## see it work: a real model, a cold run and a warm one
	@$(PY) scripts/demo.py $(ARGS)

# Coverage, and its floor (pyproject.toml), are of all tests: with ARGS it is not measured.
test: setup  ## the tests; ARGS='-k store' for some of them
	@$(PY) -m pytest $(or $(ARGS),--cov)

lint: setup  ## formatting, ruff, the direction of imports, mypy --strict
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@.venv/bin/lint-imports --no-cache
	@$(PY) -m mypy

check: lint test  ## what CI runs: lint, then the tests

format: setup  ## reformat, and fix what ruff can fix
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

bench: setup  ## embcache beside its peers on this machine: docs/benchmarks.md
	@$(PY) benchmarks/bench.py $(ARGS)

bench-dtypes: setup  ## what float32, bfloat16 and float16 cost on this machine
	@$(PY) benchmarks/dtypes.py $(ARGS)

bench-memory: setup  ## what memory warming takes: 100,000 and 1,000,000 texts, no engine
	@$(PY) benchmarks/warm_memory.py $(ARGS)

bench-canaries: setup  ## how far honest runs and changed models move the canaries
	@$(PY) benchmarks/canaries.py $(ARGS)

bench-ray: setup  ## what Ray costs a text, and what two replicas bring
	@$(PY) benchmarks/on_ray.py $(ARGS)

bench-store: setup  ## what a cache in an object store costs: seconds, requests, bytes
	@$(PY) benchmarks/object_store.py $(ARGS)

bench-scaling: setup  ## what 100 million texts and more cost; ARGS='--keys 1000000000', '--parts keys'
	@$(PY) benchmarks/scaling.py $(ARGS)

storm: setup  ## processes on one cache, killed at random; ARGS='--minutes 20 --kills 60', '--store --store-kills 3'
	@$(PY) benchmarks/storm.py $(ARGS)

ray-test: setup  ## kills on a Ray cluster of this machine; ARGS='--rounds 2', '--store', '--kinds node'
	@$(PY) benchmarks/cluster_kills.py $(ARGS)

damage: setup  ## damage a cache at random and mend it; ARGS='--trials 10000 --seed 1'
	@$(PY) benchmarks/damage.py $(ARGS)

soak: setup  ## random operations against a dict; ARGS='--minutes 30 --seed 1'
	@$(PY) benchmarks/soak.py $(ARGS)

fuzz: setup  ## made-up and damaged files, metadata and inputs; ARGS='--minutes 5 --seed 1'
	@$(PY) benchmarks/fuzz.py $(ARGS)

lock: setup  ## resolve requirements/*.txt again; ARGS=--upgrade takes the newest
	@$(PY) scripts/lock.py $(ARGS)

hooks: setup  ## run lint before each commit (pre-commit)
	@$(PY) -m pre_commit install

clean:  ## remove what tools leave behind (not .venv, not cache/)
	@rm -rf build dist .coverage .import_linter_cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv
	@rm -rf .venv
