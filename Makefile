# `make run` and `make test` do all the set-up on a machine that has Python 3.11 to 3.13 and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: run test test-machine clean

run: $(VENV)/installed
	$(BIN)/python -m experiments.no_aug

# Three workers suit two cores: much of the time tests wait for machines to boot or to end.
test: $(VENV)/installed-test test-machine
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 3 --dist worksteal

# What the tests of remote training boot as "the instance", what speaks and fetches clips, and what
# opens the pages; tests are skipped where it cannot be had. Only Debian has a Chromium that is no
# snap.
MACHINE = openssh-client rsync iproute2 mmdebstrap systemd-container espeak-ng git-lfs
BROWSER = chromium chromium-driver
test-machine:
	@packages="$(MACHINE)"; \
	if grep -qsx ID=debian /etc/os-release; then packages="$$packages $(BROWSER)"; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg -s $$packages >/dev/null 2>&1; then \
	    apt-get update && apt-get install -y --no-install-recommends $$packages; \
	fi

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "needs the venv module: apt-get install python3-venv"; exit 1; }

$(VENV)/installed: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
