# make            build the kernel and an image, boot it and show its console
# make test       everything CI checks
# make help       all targets

CARGO ?= cargo
RUSTC ?= rustc
# A build's name: `7.3` is the default selection of the default series.
BUILD ?= 7.3
# The packaged kernel's: all workloads but debug.
PACKAGED ?= 7.3-packaged
FUZZ_SECONDS ?= 600
MDBOOK = 0.5.4
CARGO_NEXTEST = 0.9.143
BOOTS ?= 1000

# Where .cargo/config.toml has cargo put it.
PROGRAM = target/x86_64-unknown-linux-gnu/debug/vmmlinux
DIST = target/x86_64-unknown-linux-gnu/dist
IMAGE = out/$(BUILD)/minimal.img
# With --workspace and not -p, so that nothing is compiled twice: cargo unites features over the packages it is told.
# The profiles are in .config/nextest.toml.
NEXTEST = $(CARGO) nextest run --locked --workspace

.DEFAULT_GOAL := guest
.PHONY: guest help bootstrap program setup kernel image vmmcid-deb doctor kernel-packages openbsd-port release book nextest lint unit models check-openbsd check e2e test check-config check-series check-patches long-test fuzz bench boot-test

# Without a terminal, the guest is stopped through vmmci once it is ready, and terminal control sequences of the firmware
# and the boot loader are removed from the output.
guest: image ## Build the kernel and an image, boot it in the vmd machine, show its console (leave with ~.)
	@if [ -t 0 ]; then $(PROGRAM) run -i $(IMAGE); else \
	  { $(PROGRAM) run -i --name make $(IMAGE) </dev/null; echo "exit status $$?"; } \
	  | sed -u 's/\x1b\[[0-9;?]*[A-Za-z]//g; s/\x1b[()].//g; s/\x1b[a-zA-Z0-9]//g; s/\r//g' \
	  | { ready=; while IFS= read -r line; do case $$line in \
	      "exit status 0") [ "$$ready" ] && echo "guest booted and was stopped: OK" && exit 0;; \
	      "exit status "*) echo "$$line";; \
	      *) printf '%s\n' "$$line"; case $$line in *"vmmlinux: ready"*) ready=1; $(PROGRAM) ctl make stop;; esac;; \
	    esac; done; echo "guest booted and was stopped: FAILED"; exit 1; }; fi

help: ## Show the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

bootstrap: ## What the program itself needs before it can be built: a C linker and libc
	@if ! command -v cc >/dev/null; then \
	  if command -v apt-get >/dev/null; then \
	    echo "installing: gcc libc6-dev"; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	    $$sudo apt-get update -q && $$sudo apt-get install -y -q --no-install-recommends gcc libc6-dev; \
	  else echo "install a C compiler and a static libc first"; exit 1; fi; fi

program: bootstrap # The program, what it starts, and the guests' daemon, as the tests use them too
	@$(CARGO) build --locked -p vmmlinux -p bench -p vmmcid -p doctor

setup: program ## Install what kernels, images and the machine need
	@$(PROGRAM) setup

kernel: setup ## Build the kernel: out/7.3
	@$(PROGRAM) build --name $(BUILD)

# A newer kernel makes a new image; an image that is up to date keeps what its guest wrote.
image: kernel ## Make the disk image: out/7.3/minimal.img
	@if [ -e $(IMAGE) ] && ! [ out/$(BUILD)/bzImage -nt $(IMAGE) ]; then echo "$(IMAGE) is up to date"; \
	  else $(PROGRAM) image out/$(BUILD) --output $(IMAGE) --force; fi

vmmcid-deb: program ## Pack the daemon for guests with stock kernels: out/vmmcid_*.deb, out/vmmcid-*.tar.xz
	$(CARGO) build --locked --profile dist -p vmmcid
	$(PROGRAM) package vmmcid

doctor: bootstrap ## The doctor as a small static program, to be copied into guests: out/vmmlinux-doctor
	$(CARGO) build --locked --profile dist -p doctor
	mkdir -p out && cp $(DIST)/vmmlinux-doctor out/vmmlinux-doctor.new && mv out/vmmlinux-doctor.new out/vmmlinux-doctor

openbsd-port: program ## The directory of a port for OpenBSD: out/openbsd-port
	$(PROGRAM) package openbsd-port

# All that is in it bears the time of the newest commit.
release: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
release: kernel-packages ## Everything to publish, with checksums and bills of materials: out/release
	$(PROGRAM) image out/deb/$(PACKAGED) --format qcow2 --force
	$(CARGO) build --locked --profile dist -p vmmcid
	$(CARGO) build --locked --profile dist-cli -p vmmlinux -p bench -p doctor
	$(PROGRAM) package release --kernel out/deb/$(PACKAGED) --kernel out/tar/$(PACKAGED)

# The reference is made anew each time, so it is not kept in docs/.
book: program ## The book, as HTML: out/book
	command -v mdbook >/dev/null || $(CARGO) install --locked --version $(MDBOOK) mdbook
	rm -rf out/book-source && mkdir -p out && cp -R docs out/book-source
	$(PROGRAM) config list --markdown >out/book-source/reference/configuration-reference.md
	mdbook build --dest-dir $(CURDIR)/out/book out/book-source

lint: bootstrap ## Format, clippy and documentation, warnings as errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked
	$(CARGO) clippy --package run-control --features loom --tests --locked
	$(CARGO) doc --workspace --no-deps --locked --quiet

# A runner is as quick unoptimised, and compiled in half the time.
nextest: bootstrap # The runner of the tests
	@$(CARGO) nextest --version >/dev/null 2>&1 || $(CARGO) install --locked --debug --version $(CARGO_NEXTEST) cargo-nextest

unit: setup nextest ## Unit tests
	$(NEXTEST)

# A feature of one package, so that nothing else is compiled anew.
models: bootstrap ## Check the vCPUs' run control in all interleavings of its threads, up to three preemptions
	$(CARGO) test --locked --package run-control --features loom --test models

# rustup has no standard library for OpenBSD: cargo makes it of the sources. Nothing is linked, so nothing of OpenBSD's is
# needed. In a directory of its own: RUSTC_BOOTSTRAP has build scripts and procedural macros compiled anew.
check-openbsd: bootstrap ## Type-check the host's half of the program for OpenBSD
	@test -d "$$($(RUSTC) --print sysroot)/lib/rustlib/src/rust/library" || rustup component add rust-src
	RUSTC_BOOTSTRAP=1 $(CARGO) check --locked -Zbuild-std --target x86_64-unknown-openbsd --target-dir target/openbsd --package vmmlinux

check: lint unit models ## What to run before a commit: format, clippy, documentation, unit tests, models

e2e: kernel nextest ## Boot guests in the vmd machine, ours and Debian's, and hold it against a real vmd
	VMMLINUX_TEST_BUILD=$(abspath out/$(BUILD)) $(NEXTEST) --profile e2e --run-ignored only

# The kernel is compiled beside the checks. Its output waits until it is done.
test: program nextest ## All that CI checks
	+$(MAKE) --jobs 2 --output-sync=target --no-print-directory kernel check
	+$(MAKE) --no-print-directory check-patches
	+$(MAKE) --no-print-directory e2e

# Applies, names the blobs of the tree, pleases checkpatch.pl: seconds for each series once its source is there.
check-patches: setup
	$(PROGRAM) series check --no-compile

check-series: setup ## Check every kernel patch by itself, on every series: it applies, compiles, pleases checkpatch.pl
	$(PROGRAM) series check

check-config: setup ## Resolve every selection of the kernel configuration for every series
	$(PROGRAM) config check

# Two outputs of one build directory: a build has one kind of package.
kernel-packages: setup ## Our kernel for guests that exist, as packages: out/deb, out/tar
	$(PROGRAM) setup --for package
	$(PROGRAM) build --name $(PACKAGED) --package deb --out out/deb
	$(PROGRAM) build --name $(PACKAGED) --package tar --out out/tar

long-test: kernel kernel-packages check-config nextest ## What takes longer than CI should: BOOTS (1000) boots, two identical kernels, Debian images
	VMMLINUX_TEST_BUILD=$(abspath out/$(BUILD)) VMMLINUX_TEST_BOOTS=$(BOOTS) CCACHE_DISABLE=1 \
	  VMMLINUX_TEST_DEB=$$(ls $(abspath out/deb/$(PACKAGED))/linux-image-*.deb) \
	  VMMLINUX_TEST_PACKAGED=$(abspath out/deb/$(PACKAGED)) \
	  VMMLINUX_TEST_TAR=$$(ls $(abspath out/tar/$(PACKAGED))/linux-*.tar.xz) \
	  $(NEXTEST) --profile long --run-ignored only
	$(MAKE) boot-test KERNEL=out/$(BUILD)/bzImage

fuzz: bootstrap ## Fuzz the device models, FUZZ_SECONDS (600) each, with rustup's nightly compiler
	command -v cargo-fuzz >/dev/null || $(CARGO) install --locked cargo-fuzz
	$(CARGO) +nightly --version >/dev/null || rustup toolchain install --profile minimal nightly
	set -e; for target in $$($(CARGO) +nightly fuzz list); do \
	  $(CARGO) +nightly fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS); done

bench: kernel ## Our kernel beside Debian's: boot, idle, disk, net, size, and an hour or two of clocks: out/bench
	$(PROGRAM) bench all --kernel ours=out/$(BUILD) --out out/bench
	$(PROGRAM) bench clock --kernel ours=out/$(BUILD) --out out/bench

boot-test: setup ## Boot images of KERNEL=bzImage in QEMU, grow them, take them down (INITRD=, MODULES= as needed)
	@test -n "$(KERNEL)" || { echo "say which kernel: make boot-test KERNEL=out/7.3/bzImage"; exit 1; }
	VMMLINUX_TEST_KERNEL=$(abspath $(KERNEL)) \
	  $(if $(INITRD),VMMLINUX_TEST_INITRD=$(abspath $(INITRD))) \
	  $(if $(MODULES),VMMLINUX_TEST_MODULES=$(abspath $(MODULES))) \
	  $(CARGO) test --locked -p image --test boot -- --ignored --nocapture --test-threads=1
