# `make run` and `make test` do all the set-up on a machine that has Python 3.11 to 3.14 and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OLDEST = .venv-oldest
LOCKED ?= --constraint requirements.lock # empty: the newest libraries

.PHONY: run docs test test-all test-oldest lint lock test-machine clean

run: $(VENV)/installed
	$(BIN)/python -m experiments.no_aug

# The quick tests: they need no root and nothing outside of $(VENV). The tests of a file share what
# one worker has trained.
QUICK = -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not machine and not browser"
test: lint
	$(BIN)/python -m pytest $(QUICK)

# All tests, or those of some marks: MARKS="slow or machine or browser" are those that `test` leaves
# out. Three workers suit two cores: tests wait for machines to boot or to end.
test-all: lint test-machine
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "$(MARKS)"

# The quick tests with the oldest libraries that setup.cfg allows; these have wheels for Python 3.11.
test-oldest: $(OLDEST)/installed-test
	$(OLDEST)/bin/python -m pytest $(QUICK)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, into build/docs: a warning is an error.
docs: $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet $(LOCKED) --editable '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

# Locks the newest libraries, for every Python and system, but for backports.strenum: its newest
# release refuses these Pythons, which uv overlooks and pip does not.
lock: $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --no-annotate \
	    --custom-compile-command "make lock" --no-emit-package backports-strenum \
	    --extra test --extra docs setup.cfg -o requirements.lock

# What the tests of remote training boot as "the instance", what fetches clips, and what opens the
# pages; tests are skipped where it cannot be had. Only Debian has a Chromium that is no snap.
MACHINE = openssh-client rsync iproute2 mmdebstrap systemd-container git-lfs
BROWSER = chromium chromium-driver
test-machine:
	@packages="$(MACHINE)"; \
	if grep -qsx ID=debian /etc/os-release; then packages="$$packages $(BROWSER)"; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg -s $$packages >/dev/null 2>&1; then \
	    apt-get update && apt-get install -y --no-install-recommends $$packages; \
	fi

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "needs the venv module: apt-get install python3-venv"; exit 1; }

$(VENV)/installed: $(VENV)/bin/python setup.cfg pyproject.toml requirements.lock
	$(BIN)/python -m pip install --quiet $(LOCKED) --editable .
	touch $@

$(OLDEST)/installed-test: $(VENV)/bin/python setup.cfg pyproject.toml
	rm -rf $(OLDEST)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --quiet --seed --python 3.11 $(OLDEST)
	$(BIN)/uv pip install --quiet --python $(OLDEST) --resolution lowest-direct --editable '.[test]'
	touch $@

$(VENV)/installed-test: $(VENV)/bin/python setup.cfg pyproject.toml requirements.lock
	$(BIN)/python -m pip install --quiet $(LOCKED) --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) runs build *.egg-info
