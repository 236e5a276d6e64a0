# What to run, and nothing else: each target is a few cargo commands.

CARGO ?= cargo
DIR ?= .
# The drivers of `jobs` that link no system library, each of which must build alone.
FEATURES := amqp beanstalk kafka local memory sqs
# Tools that cargo does not bring are installed here, once, at this version.
TOOLS := $(CURDIR)/.tools
DENY := $(TOOLS)/cargo-deny-0.20.2
# The networked drivers, whose tests start their brokers in containers.
BROKERS := amqp beanstalk kafka sqs

.PHONY: help demo test check features docs audit images bench

help:
	@echo 'make demo    checksum every file of this repository through a durable queue (DIR=… for another)'
	@echo 'make test    everything that must hold: check, features, docs, images, tests, audit'
	@echo 'make check   formatting and lints'
	@echo 'make docs    the documentation, in target/doc'
	@echo 'make audit   bans, licences and sources of dependencies'
	@echo 'make images  the container engine, the images that the tests start brokers from, and moto'
	@echo 'make bench   the drivers beside their bare clients, written to docs/benchmarks.md'

demo:
	$(CARGO) run --profile demo -p jobs --example quickstart -- $(DIR)

test: check features docs images
	$(CARGO) test --workspace --all-features --no-fail-fast
	$(MAKE) audit

check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings

features:
	$(CARGO) clippy -p jobs --no-default-features -- -D warnings
	for feature in $(FEATURES); do \
	    $(CARGO) clippy -p jobs --no-default-features --features $$feature -- -D warnings || exit 1; \
	done

docs:
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --all-features

audit: $(DENY)
	$(DENY)/bin/cargo-deny --all-features check bans licenses sources

$(DENY):
	@echo 'Installing cargo-deny into $(TOOLS): needed once, about a minute'
	$(CARGO) install cargo-deny --version 0.20.2 --locked --no-default-features --profile dev \
	    --root $(DENY)

images:
	compose/images $(BROKERS)
	compose/moto/install

bench: images
	$(CARGO) kit bench all --page docs/benchmarks.md
