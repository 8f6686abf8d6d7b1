# Two commands matter: `make demo` shows a region at work, `make test` runs everything that must pass.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: demo test check bench faults messages images requirements clean help

help:
	@echo "make demo      start a hub and three hospitals on this machine and play one study's whole life"
	@echo "make test      everything that must pass: ruff, mypy, architecture, all tests"
	@echo "make bench     speed beside Orthanc and storescp, where they are installed"
	@echo "make faults    kills, full disks and hostile input at full length; about an hour"
	@echo "make messages  check that every string has its Chinese and English wording"
	@echo "make requirements  renew docs/requirements.md: which tests claim which requirement"
	@echo "make images    play the portal in Chromium and renew the picture that the README shows"

# torch goes first and by its exact version: an open range would pull gigabytes of GPU libraries.
$(STAMP): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=24" "setuptools>=77"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[learning,test]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/accord demo

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --tb=native --requirements

bench: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench

# The fault tests at full length: 500 kills, 10,000 mutations of each kind; about an hour.
faults: $(STAMP)
	OMP_NUM_THREADS=1 ACCORD_CRASH_ROUNDS=500 ACCORD_HOSTILE_CASES=10000 ACCORD_STRACE_TRIALS=60 ACCORD_CALL_TRIALS=1000 \
		ACCORD_KEY_CRASH_ROUNDS=50 ACCORD_SLOW_PEERS=full \
		$(BIN)/python -m pytest tests/faults --tb=native -s

messages: $(STAMP)
	$(BIN)/python -m node.web.portal.messages check

images: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/journeys/test_portal_journey.py
	$(BIN)/python -m tests.support.pictures test-output/viewer.png docs/images/portal.png

requirements: $(STAMP)
	$(BIN)/python -m tests.support.requirements_page

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
