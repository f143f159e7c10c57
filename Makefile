# `make demo` and `make test` set up everything they need in .venv on a machine with Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A file's tests share models, so they stay together; in the order of the files, which ends with small ones.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder --durations=10

.PHONY: demo docs test test-all fuzz lint audit lock sbom release clean

# Only files whose SHA-256 the lock files have are installed. Where pip is configured to find a torch for CPUs among
# files at hand, it is taken; the one of the package index asks for CUDA's libraries on Linux, as `pip check` then says.
LOCKED := install --quiet --disable-pip-version-check --no-deps --require-hashes
$(VENV)/.installed: pyproject.toml requirements.lock requirements-cuda.lock
	$(PYTHON) -m venv $(VENV)
	sed -n '/^torch==/,/[^\\]$$/p' requirements.lock > $(VENV)/torch.lock
	$(BIN)/pip $(LOCKED) --no-index -r $(VENV)/torch.lock >/dev/null 2>&1 || true
	$(BIN)/pip $(LOCKED) -r requirements.lock
	if $(BIN)/pip check | grep '^torch .* not installed'; then $(BIN)/pip $(LOCKED) -r requirements-cuda.lock; fi
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: $(VENV)/.installed
	$(BIN)/tracelab report --bias gender --preset quick --out demo

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: $(VENV)/.installed
	$(BIN)/tracelab fetch
	HF_HUB_OFFLINE=1 $(BIN)/pytest $(PARALLEL)

# Which of the slow tests; `.ci/run` leaves out the nightly ones.
SLOW ?= slow
test-all: test
	HF_HUB_OFFLINE=1 $(BIN)/pytest -m "$(SLOW)" $(PARALLEL)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 TRACELAB_ANALYSES=small $(BIN)/pytest --nbmake --nbmake-timeout=900 -n 2 analyses

# Mutations of bundles; FUZZ=1000 makes a thousand of them.
FUZZ ?= 100000
fuzz: $(VENV)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.fuzz.campaign --count $(FUZZ)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m supply.audit

# Known vulnerabilities of what is locked; says so where no service that knows them can be reached.
audit: $(VENV)/.installed
	$(BIN)/python -m supply.audit

# Resolve anew, by uv; UPGRADE=--upgrade-package=NAME, or --upgrade, takes newer versions.
UPGRADE ?=
lock: $(VENV)/.installed
	$(BIN)/python -m supply.lock $(UPGRADE)

sbom: $(VENV)/.installed
	$(BIN)/python -m supply.sbom dist/tracelab.cdx.json

# dist/: the wheel, what it and its development are made of, and the SHA-256 of both.
release: lint sbom
	rm -f dist/*.whl
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
	cd dist && sha256sum *.whl *.cdx.json > SHA256SUMS

clean:
	rm -rf $(VENV) demo site build dist *.egg-info
