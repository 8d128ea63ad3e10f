# make            build the kernel and an image, boot it and show its console
# make test       everything CI checks
# make help       all targets

CARGO ?= cargo

.DEFAULT_GOAL := help
FUZZ_SECONDS ?= 600

.PHONY: help bootstrap lint unit test fuzz qemu e2e check-config
.PHONY: help bootstrap lint unit test boot-test

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

bootstrap: ## What the program itself needs before it can be built: a C linker and libc
	@if ! command -v cc >/dev/null; then \
	  if command -v apt-get >/dev/null; then \
	    echo "installing: gcc libc6-dev"; apt-get update -q && apt-get install -y -q --no-install-recommends gcc libc6-dev; \
	  else echo "install a C compiler and a static libc first"; exit 1; fi; fi

lint: bootstrap ## Format and clippy, warnings as errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked

unit: bootstrap ## Unit tests
	$(CARGO) test --workspace --locked

qemu: # QEMU 10, and SeaBIOS, for the tests that boot guests
	@if ! qemu-system-x86_64 --version 2>/dev/null | grep -Eq 'version [1-9][0-9]\.'; then \
	  . /etc/os-release; apt-get update -q && apt-get install -y -q --no-install-recommends \
	    $$(apt-cache policy qemu-system-x86 | grep -q backports && echo -t $$VERSION_CODENAME-backports) qemu-system-x86; fi

e2e: bootstrap qemu ## Boot guests in the helper VM and try what users do with them
	$(CARGO) build --locked -p vmmlinux
	$(CARGO) test --locked -p guest-tests --test run -- --ignored --test-threads 1

test: lint unit ## All that CI checks

check-config: bootstrap ## Resolve every selection of the kernel configuration for every series
	$(CARGO) run --locked -p vmmlinux -- config check

fuzz: bootstrap ## Fuzz the device models, FUZZ_SECONDS (600) each, with rustup's nightly compiler
	command -v cargo-fuzz >/dev/null || $(CARGO) install --locked cargo-fuzz
	$(CARGO) +nightly --version >/dev/null || rustup toolchain install --profile minimal nightly
	set -e; for target in $$($(CARGO) +nightly fuzz list); do \
	  $(CARGO) +nightly fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS); done
boot-test: bootstrap ## Boot images of KERNEL=bzImage in QEMU, grow them, take them down (INITRD=, MODULES= as needed)
	@test -n "$(KERNEL)" || { echo "say which kernel: make boot-test KERNEL=out/7.3/bzImage"; exit 1; }
	VMMLINUX_TEST_KERNEL=$(abspath $(KERNEL)) \
	  $(if $(INITRD),VMMLINUX_TEST_INITRD=$(abspath $(INITRD))) \
	  $(if $(MODULES),VMMLINUX_TEST_MODULES=$(abspath $(MODULES))) \
	  $(CARGO) test --locked -p image --test boot -- --ignored --nocapture --test-threads=1
