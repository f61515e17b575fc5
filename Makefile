# ma-tools. See README.md.
#   make deps       install what is missing (Debian, apt-get)     make demo      the whole pipeline on toy clips
#   make            build the tools into build/                   make check     the tests
#   make install    into DESTDIR, PREFIX (/usr/local)             make clean
# Variables: CC, MARCH (native), SAN=1 (ASan and UBSan), WERROR=1, V=1 (show commands), O (build folder), SHARED (assets
# for tests), QUICK=1 (make check without the slow tests).

CC      := $(if $(filter default,$(origin CC)),gcc,$(CC))
SAN     ?=
Q       := $(if $(V),,@)
O       ?= $(if $(SAN),build/san,build)
PREFIX  ?= /usr/local
MARCH   ?= native
SHARED  ?= ../shared
# The first that has NumPy: another python3 may stand before Debian's.
PYTHON  ?= $(shell for p in python3 /usr/bin/python3; do $$p -c 'import numpy' 2>/dev/null && echo $$p && break; done || echo python3)

# ---- what is here ----
FLOORS  := libavformat=58.76 libavcodec=58.134 libavutil=56.70 libswscale=5.9 libarchive=3.6 \
           libzstd=1.4.8 openblas=0.3 libcjson=1.7.10 zlib=1.2 sentencepiece=0.1.96
PKGS    := $(foreach f,$(FLOORS),$(firstword $(subst =, ,$f)))
# The last two: sentencepiece's own headers or .pc ask for them, its package does not (protobuf on Debian 13, absl later).
DEBS    := gcc g++ make pkg-config libavcodec-dev libavformat-dev libavutil-dev libswscale-dev \
           libarchive-dev libzstd-dev libopenblas-dev libcjson-dev zlib1g-dev libsentencepiece-dev \
           libprotobuf-dev libabsl-dev
DEBS_CHECK := perl zstd ffmpeg mandoc python3 python3-numpy xz-utils

ifneq ($(filter-out clean deps deps-check help,$(or $(MAKECMDGOALS),all)),)
MISSING := $(shell for f in $(subst =,:,$(FLOORS)); do \
             pkg-config --atleast-version=$${f#*:} $${f%:*} 2>/dev/null || echo "$${f%:*}>=$${f#*:}"; done)
PKG_C   := $(if $(MISSING),,$(shell pkg-config --cflags $(PKGS)))
PKG_L   := $(if $(MISSING),,$(shell pkg-config --libs $(PKGS); \
             pkg-config --atleast-version=0.2.1 sentencepiece && pkg-config --libs absl_status))
NVCC    := $(shell command -v nvcc 2>/dev/null || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
$(info ma-tools: $(shell $(CC) -dumpfullversion -dumpversion 2>/dev/null | sed 's/^/$(notdir $(CC)) /'), \
FFmpeg $(shell pkg-config --modversion libavcodec 2>/dev/null), \
libarchive $(shell pkg-config --modversion libarchive 2>/dev/null), \
OpenBLAS $(shell pkg-config --modversion openblas 2>/dev/null), \
CUDA $(if $(NVCC),found,not found (tools run on the CPU))$(if $(MISSING), -- MISSING: $(MISSING): run 'make deps'))
ifneq ($(MISSING),)
ifeq ($(filter demo check,$(MAKECMDGOALS)),)
$(error missing: $(MISSING): run 'make deps')
endif
endif
endif

# ---- how it is built ----
# What a designated initialiser leaves out is zero; gcc 11 warns of it all the same.
WARN    := -Wall -Wextra -Wshadow -Wno-missing-field-initializers $(if $(WERROR),-Werror)
comma   := ,
OPT     := $(if $(SAN),-O1 -fsanitize=address$(comma)undefined -fno-omit-frame-pointer -fno-sanitize-recover=undefined,-O3)
CFLAGS  ?= -g
# gcc 12.1 and 12.2 (Debian 12's) store wide constants such as {1,1,1,0,0,0,0,0} as eight ones where AVX-512 is there;
# kept to 16 bytes a store they do not.
SAFE    := $(if $(filter 12.%,$(shell $(CC) -dumpfullversion 2>/dev/null)),$(shell \
             $(CC) -mmove-max=128 -mstore-max=128 -E -x c /dev/null >/dev/null 2>&1 && echo -mmove-max=128 -mstore-max=128))
ALL_CFLAGS := -std=c17 -D_GNU_SOURCE $(OPT) -march=$(MARCH) $(SAFE) -fno-math-errno -ffp-contract=off -fopenmp $(WARN) \
             $(CFLAGS) $(PKG_C)
# The one C++ file, around a library that is C++. vptr checks would need the C++ compiler to link.
CXX_FLAGS  := $(patsubst -std=%,-std=c++17,$(ALL_CFLAGS)) $(if $(SAN),-fno-sanitize=vptr)
LIBS    := -Wl,--as-needed $(PKG_L) -lstdc++ -ldl -lpthread -lm

SRC     := $(wildcard common/*.c common/models/*.c kernels/cpu/*.c)
OBJ     := $(SRC:%.c=$O/obj/%.o) $(patsubst %.cc,$O/obj/%.o,$(wildcard common/*.cc))
TOOLS   := $(patsubst tools/%.c,$O/%,$(wildcard tools/ma-*.c))
TESTS_C := $(patsubst tests/%.c,$O/tests/%,$(filter-out tests/bench/% tests/gpu/%,$(wildcard tests/*/*.c)))
TESTS_G := $(patsubst tests/%.c,$O/tests/%,$(wildcard tests/gpu/*.c))
TESTS_B := $(patsubst tests/%.c,$O/tests/%,$(wildcard tests/bench/*.c))
GOLDEN  := $(filter $O/tests/golden/%,$(TESTS_C))
TESTS_T := $(filter-out tests/gpu/%,$(wildcard tests/*/*.t))

all: $(TOOLS)

# For a make within make: as many jobs as processors, unless the user said how many.
JOBS     = $(if $(filter -j%,$(MAKEFLAGS)),,-j$(shell nproc))

include kernels/cuda/build.mk

$O/obj/%.o: %.c
	@mkdir -p $(@D)
	@echo "  CC   $<"
	$Q$(CC) $(ALL_CFLAGS) -MMD -MP -c $< -o $@

$O/obj/%.o: %.cc
	@mkdir -p $(@D)
	@echo "  CXX  $<"
	$Q$(CC) $(CXX_FLAGS) -MMD -MP -c $< -o $@

$O/libma.a: $(OBJ)
	@rm -f $@
	$Qar rcs $@ $^

$O/ma-%: $O/obj/tools/ma-%.o $O/libma.a
	@echo "  LINK $@"
	$Q$(CC) $(ALL_CFLAGS) $(LDFLAGS) $^ -o $@ $(LIBS)

$O/tests/%: $O/obj/tests/%.o $O/libma.a
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$Q$(CC) $(ALL_CFLAGS) $(LDFLAGS) $^ -o $@ $(LIBS)

.PRECIOUS: $O/obj/%.o
-include $(shell find $O/obj -name '*.d' 2>/dev/null)

# ---- what it does ----
apt = @need=; for p in $(1); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || need="$$need $$p"; done; \
	[ -z "$$need" ] || { echo "installing$$need"; sudo=; [ $$(id -u) = 0 ] || sudo=sudo; \
	export DEBIAN_FRONTEND=noninteractive; $$sudo apt-get update -qq && $$sudo apt-get install -y -qq --no-install-recommends $$need >/dev/null; }

deps:
	$(call apt,$(DEBS))

deps-check: deps
	$(call apt,$(DEBS_CHECK))

demo: deps
	@$(MAKE) --no-print-directory $(JOBS) all
	@O=$O bash pipelines/demo

check: deps-check
	@$(MAKE) --no-print-directory $(JOBS) all check-programs
	@O=$O SHARED=$(SHARED) PYTHON=$(PYTHON) QUICK=$(QUICK) CC="$(CC)" prove --timer -e '' $(sort $(TESTS_C)) $(TESTS_T)

check-programs: $(TESTS_C) $(TESTS_G) $(TESTS_B)

# Tests lie deeper than the tools, beside which libma-cuda.so is looked for.
ON_GPU  = LD_LIBRARY_PATH=$O:$$LD_LIBRARY_PATH

# On a machine with a GPU: ops against the CPU's, the golden networks there, the tools, memory and races.
check-gpu: all $(TESTS_G) $(GOLDEN)
	@$(ON_GPU) O=$O SHARED=$(SHARED) PYTHON=$(PYTHON) prove --timer -e '' $(TESTS_G) $(wildcard tests/gpu/*.t)
	@$(ON_GPU) MA_TEST_DEVICE=cuda SHARED=$(SHARED) prove --timer -e '' $(GOLDEN)
	$(ON_GPU) compute-sanitizer --tool memcheck --error-exitcode 1 $O/tests/gpu/parity small >/dev/null
	$(ON_GPU) compute-sanitizer --tool racecheck --error-exitcode 1 $O/tests/gpu/parity small >/dev/null

bench-cpu: $O/tests/bench/cpu
	$O/tests/bench/cpu

bench: all $(foreach b,gpu t5 vae,$O/tests/bench/$b)
	@{ printf '# Benchmarks\n\nWritten by `make bench` on %s; card and driver: %s; %s.\n\n```\n' "$$(date +%F)" \
	"$$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -n 1)" "$$($(NVCC) --version | tail -n 1)"; \
	$(ON_GPU) $O/tests/bench/gpu && $(ON_GPU) $O/tests/bench/t5 && $(ON_GPU) $O/tests/bench/vae bf16 tiles && printf '```\n'; } | \
	tee BENCHMARKS.md

install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/man/man5
	install -m 755 $(TOOLS) $(DESTDIR)$(PREFIX)/bin
	install -m 644 $(wildcard man/*.1) $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 $(wildcard man/*.5) $(DESTDIR)$(PREFIX)/share/man/man5
	install -d $(addprefix $(DESTDIR)$(PREFIX)/share/ma-tools/,presets slurm toy/weights)
	install -m 644 $(wildcard pipelines/*.mk pipelines/*.sh) $(DESTDIR)$(PREFIX)/share/ma-tools
	install -m 755 pipelines/plot-log $(DESTDIR)$(PREFIX)/share/ma-tools
	install -m 644 $(wildcard pipelines/presets/*) $(DESTDIR)$(PREFIX)/share/ma-tools/presets
	install -m 644 $(wildcard pipelines/toy/weights/*.safetensors) $(DESTDIR)$(PREFIX)/share/ma-tools/toy/weights
	install -m 755 pipelines/slurm/stage1 pipelines/slurm/stage1.sbatch $(DESTDIR)$(PREFIX)/share/ma-tools/slurm
	$(if $(CUDA_LIBRARY),install -d $(DESTDIR)$(PREFIX)/lib/ma-tools && install -m 755 $(CUDA_LIBRARY) $(DESTDIR)$(PREFIX)/lib/ma-tools)

clean:
	rm -rf $O

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

.PHONY: all deps deps-check demo check check-programs check-gpu bench bench-cpu install clean help
