# `make demo` and `make test` set up all they need on a fresh Debian machine with CPython 3.11.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
SWIFT := swift-proxy swift-account swift-container swift-object
GSTREAMER := gstreamer1.0-plugins-bad gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly gstreamer1.0-nice \
  gir1.2-gst-plugins-bad-1.0 python3-gi
DEBIAN_PACKAGES := chromium espeak-ng ffmpeg iproute2 libgcrypt20 $(SWIFT)
# Tests that only compute run beside those that wait for clocks and browsers, and give way to them.
STILL := tests/compositor tests/forwarder tests/media tests/recorder
REAL := $(addprefix --ignore=,$(STILL))
PYTEST = $(BIN)/python -m pytest -o cache_dir=out/pytest
# Real time on two busy cores: what failed beside the others (exit code 1) is run once more, alone, and has to pass then.
alone = { test $(1) -eq 0 || { test $(1) -eq 1 && echo "Once more, alone: what failed" && \
	$(PYTEST)/$(2) --last-failed --last-failed-no-failures=none $(3); }; }
TEST_PACKAGES := coturn firefox-esr nftables $(GSTREAMER)

.PHONY: help demo serve doctor test unit e2e check lint format types arrows bench bench-peers lab fuzz aarch64 deps venv clean

help:  ## Show the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: venv deps  ## A 20 s call between two browsers: relayed, recorded, composed, sealed, verified
	$(BIN)/python -m bench.demo

serve: venv  ## Start the server and print the page's address
	$(BIN)/mediaserver serve

doctor: venv  ## Check this machine and say what to change
	$(BIN)/mediaserver doctor

test: DEBIAN_PACKAGES += $(TEST_PACKAGES)
test: venv deps  ## All tests: unit, integration, end to end
	@mkdir -p out; nice -n 19 $(PYTEST)/still $(STILL) >out/still.log 2>&1 & still=$$!; \
	$(PYTEST)/real $(REAL); real=$$?; \
	echo "Beside them, at low priority: $(STILL)"; wait $$still; still=$$?; cat out/still.log; \
	code=0; $(call alone,$$still,still,$(STILL)) || code=1; \
	$(call alone,$$real,real,$(REAL)) || code=1; exit $$code

unit: venv  ## The tests that need no browser and no second process
	$(BIN)/python -m pytest -m "not e2e"

e2e: DEBIAN_PACKAGES += $(TEST_PACKAGES)
e2e: venv deps  ## The tests that drive browsers and kill processes
	$(BIN)/python -m pytest -m e2e

# `deps` runs once: what the laboratory and the comparison need is installed with the tests' packages.
check: TEST_PACKAGES += janus
check: LAB := subset
check: lint types arrows test lab  ## Everything CI runs

lint: venv  ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: venv  ## Let ruff format the tree
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: venv  ## mypy, strict, on product, bench and tests
	$(BIN)/mypy recorder compositor mediaserver bench tests

arrows: venv  ## Who may import whom
	$(BIN)/python -m pytest -q tests/test_arrows.py

bench: DEBIAN_PACKAGES := ffmpeg libgcrypt20
bench: venv deps  ## Every benchmark once, under 10 minutes: out/bench/report.html
	$(BIN)/python -m bench all --quick

bench-peers: DEBIAN_PACKAGES := janus
bench-peers: deps  ## Install Janus, for the benchmarks to measure beside this server

# ip(8), Chromium, root and /dev/net/tun: where one is missing the laboratory fails, it skips nothing.
LAB ?= all
MINUTES ?= 30
LAB_TESTS = $(if $(filter soak,$(LAB)),-m soak,$(if $(filter subset,$(LAB)),-m "lab and not whole and not soak",-m "not soak"))
lab: DEBIAN_PACKAGES := chromium coturn espeak-ng iproute2 libgcrypt20 nftables $(if $(filter all,$(LAB)),janus)
lab: venv deps  ## Calls over bad lines in network namespaces; LAB=subset: under 6 minutes; LAB=soak MINUTES=30
	LAB=$(LAB) LAB_MINUTES=$(MINUTES) $(BIN)/python -m pytest tests/lab $(LAB_TESTS)

SECONDS ?= 60
fuzz: DEBIAN_PACKAGES := clang libclang-rt-dev
fuzz: venv deps  ## Fuzz all native parsers for SECONDS=60, under sanitizers, guided by coverage
	nice -n 19 $(BIN)/python -m tests.forwarder.fuzzing coverage $(SECONDS)

aarch64: DEBIAN_PACKAGES := gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
aarch64: venv deps  ## The forwarder's conformance suite on aarch64: cross-compiled, under qemu
	nice -n 10 $(BIN)/python -m tests.forwarder.aarch64

deps:
	@missing=""; for package in $(DEBIAN_PACKAGES); do \
	  dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	line="apt-get update && apt-get install -y --no-install-recommends$$missing"; \
	if [ "$$(id -u)" = 0 ]; then as=""; \
	elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then as="sudo"; \
	else echo "These Debian packages are missing; run as root:"; echo "  $$line"; exit 1; fi; \
	echo "Installing$$missing"; \
	$$as apt-get update -qq && \
	$$as env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing

venv: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "CPython 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:  ## Remove what building and running left here
	rm -rf .venv build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
