# `make demo` runs a pretrained network, `make test` the tests. Both set up what they need in .venv on a machine that has
# Python 3.11-3.13, a C compiler and make. Another interpreter: make test PYTHON=/path/to/python3.12
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
JOBS ?= 2
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3 python3.12 python3.13 python3.11; do \
	$$python -c '$(SUITABLE)' >/dev/null 2>&1 && { command -v $$python; break; }; done)
PARTS := setup.cfg pyproject.toml README.md LICENSE saaug_keras tflm_export $(wildcard zoo)
SOURCES := $(shell find $(PARTS) -type f -not -path '*/__pycache__/*' 2>/dev/null)

# Cross compilers and emulators for the tests that run kernels on microcontroller cores: command, Debian package.
TOOLS := arm-none-eabi-gcc:gcc-arm-none-eabi riscv64-unknown-elf-gcc:gcc-riscv64-unknown-elf \
	qemu-system-arm:qemu-system-arm qemu-system-riscv32:qemu-system-misc clang:clang
LIBRARIES := libnewlib-arm-none-eabi picolibc-riscv64-unknown-elf

.PHONY: help demo demo-train test lint site tools clean

help:
	@echo 'make demo        a pretrained shift network classifies images on TFLite Micro; writes build/demo/sheet.png'
	@echo 'make demo-train  train a small shift network, export it, run it; writes build/demo-train/report.json'
	@echo 'make test        lint, then every test against the installed wheel'
	@echo 'make site        the documentation as a site; writes build/site/index.html'
	@echo 'make clean       remove .venv and build'

demo: $(VENV)/.demo
	cd build && $(BIN)/python -m saaug_keras.demo --out demo

demo-train: $(VENV)/.demo
	cd build && $(BIN)/python -m saaug_keras.demo_train --out demo-train

test: tools lint
	@mkdir -p build/test
	cd build/test && $(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS) $(CURDIR)/tests

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# What is switched off is a notice of the theme about its successor. (With --quiet, --strict would pass over warnings.)
site: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Debian's clang leaves the runtime of its sanitizers to a package that bears its version.
tools:
	@missing=(); packages=(); \
	for pair in $(TOOLS); do \
		command -v $${pair%%:*} >/dev/null || { missing+=($${pair%%:*}); packages+=($${pair##*:}); }; \
	done; \
	[ $${#missing[@]} -eq 0 ] || packages+=($(LIBRARIES)); \
	if command -v clang >/dev/null && ! clang -fsanitize=address -x c - -o /dev/null <<<'int main(void) { return 0; }' \
			2>/dev/null; then \
		missing+=("the sanitizers of clang"); packages+=(libclang-rt-$$(clang -dumpversion | cut -d. -f1)-dev); \
	fi; \
	[ $${#missing[@]} -eq 0 ] && exit 0; \
	install() { apt-get install -y -qq --no-install-recommends $${packages[@]} >/dev/null </dev/null; }; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing $${packages[*]}"; \
		install || { apt-get update -qq </dev/null && install; } && exit 0; \
	fi; \
	printf 'not found: %s\n' "$${missing[@]}"; \
	echo "The tests that need them are skipped or check less. On Debian or Ubuntu: apt-get install $${packages[*]}"

$(VENV)/bin/python:
	@[ -n "$(PYTHON)" ] || { echo 'No Python 3.11, 3.12 or 3.13 with venv was found. Set PYTHON=/path/to/python.'; exit 1; }
	$(PYTHON) -m venv $(VENV)

.demo-extras := run,plot
.docs-extras := docs
.test-extras := test

# A built wheel, not an editable install: what is tested is what a user gets. It is built from a fresh copy, so that no
# module deleted since lives on in it.
$(VENV)/.demo $(VENV)/.docs $(VENV)/.test: $(VENV)/bin/python $(SOURCES)
	@rm -rf build/source && mkdir -p build/source && cp -R $(PARTS) build/source
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		'./build/source[$($(@F)-extras)]'
	@touch $@

clean:
	rm -rf $(VENV) build
