# stage1.mk: from videos to motion shards, the first stage of MoAlign over a data set.
#   make -f pipelines/stage1.mk VIDEOS=clips OUT=work ENCODER=vit_b.pth RAFT=raft-things.pth -j2
#
# Goals: all (default)  motion shards, OUT/motion/NAME.tar.zst, and whatever they need
#        features, flow, train, apply   that stage, and whatever it needs
#        status         what is done, running or missing, samples, bad samples     help   this text
# Input: VIDEOS=FOLDER       videos (and a.txt beside a.mp4), or
#        LIST=FILE           CSV, JSON lines or names, see ma-extract(1); CAPTIONS=FILE goes with it, or
#        SHARDS='A.tar …'    shards or WebDataset tars; each makes one of ours
#        SHARD_SIZE=N        videos a shard (1000)
# Work:  OUT=FOLDER          where everything goes
#        ENCODER=WHAT        as ma-extract's -e has it: videomae=FILE,norm=unit, vjepa2=FILE …; without a kind, videomae
#        RAFT=WEIGHTS        for the flow to train on; none: the SHARDS have their flow
#        MOTION=FILE         a subspace that is trained already: no flow, no training
#        PRESET=NAME|FILE    the method's numbers (moalign-2b); empty: none
#        EXTRACT= FLOW= TRAIN= APPLY=    more options of that stage's tool (APPLY: --drop of the encoder's tokens);
#                            features and flow are kept with -z -1, as packing takes processors from decoding
#        FLAGS=              options of all tools that do not change what comes out: -d cuda:1 -j 8
#        SHARD=I/N           part I, from 0, of N machines: features and flow; then train without SHARD on one of
#                            them; then apply with SHARD again. OUT is a folder that they share.
#        MA=FOLDER           where the tools are (build/ of this tree if it is there, else PATH)
# What is there is not made again; what a weight file, an option, a list or a video that changed has made, is. A bad
# sample is left out, named in OUT/log, counted in the status, and no error; a tool that fails is. Names that make reads
# (OUT, SHARDS, weights) have no blanks in them; videos may be called anything.
# Needs GNU make 4.2, bash, flock.

SHARD_SIZE ?= 1000
PRESET     ?= moalign-2b
APPLY      ?= --drop $(kind).npy

here   := $(dir $(lastword $(MAKEFILE_LIST)))
script := bash $(here)stage1.sh
MA     ?= $(patsubst %/ma-extract,%,$(wildcard $(here)../build/ma-extract))
tools  := $(if $(MA),$(MA:/=)/)
goal   := $(or $(MAKECMDGOALS),all)
comma  := ,
export OUT FLAGS
# Before make 4.4 what is exported is so in recipes only.
ask     = $(shell OUT='$(OUT)' VIDEOS='$(VIDEOS)' LIST='$(LIST)' CAPTIONS='$(CAPTIONS)' $(script) $(1) || echo FAILED)
SHELL  := bash
.SECONDEXPANSION:
.DELETE_ON_ERROR:

all:

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

status:
	@$(script) status

ifneq ($(filter-out help status,$(goal)),)
# ---- what is asked for
need = $(if $($(1)),,$(error $(1)= is not given (make -f $(here)stage1.mk help)))
$(call need,OUT)
$(call need,ENCODER)
$(if $(RAFT)$(MOTION),,$(error give RAFT=WEIGHTS, to train a motion subspace, or MOTION=FILE))
ifneq ($(words $(foreach v,VIDEOS LIST SHARDS,$(if $($(v)),1))),1)
$(error give one of VIDEOS=FOLDER, LIST=FILE and SHARDS='FILE …')
endif

# The input of shard NAME is from_NAME. Lists are looked at anew each time: $(OUT)/list/now has what there is,
# $(OUT)/list what the shards are made of.
ifdef SHARDS
names := $(foreach s,$(SHARDS),$(firstword $(subst .tar, ,$(patsubst %.tgz,%,$(notdir $(s))))))
$(foreach s,$(SHARDS),$(eval from_$(firstword $(subst .tar, ,$(patsubst %.tgz,%,$(notdir $(s))))) := $(s)))
ifneq ($(words $(sort $(names))),$(words $(SHARDS)))
$(error SHARDS: two have one name: $(names))
endif
else
listed := $(call ask,list $(tools)ma-extract $(SHARD_SIZE))
ifneq ($(filter FAILED,$(listed)),)
$(error the list of videos could not be made)
endif
names := $(patsubst %*,%,$(listed))
new   := $(patsubst %*,%,$(filter %*,$(listed)))
$(foreach n,$(names),$(eval from_$(n) := $(OUT)/list/$(n).jsonl))
$(new:%=$(OUT)/list/%.jsonl): $(OUT)/list/%.jsonl: FORCE
	@$(script) take $(OUT)/list/now/$*.jsonl $@
endif
ifneq ($(call ask,names '$(names)'),)
$(error $(OUT) is of another data set)
endif

# SHARD=I/N: shards from the I/N-th on.
part  := $(subst /, ,$(or $(SHARD),0/1))
mine  := $(wordlist $(shell echo $$(($(words $(names)) * $(word 1,$(part)) / $(word 2,$(part)) + 1))),$(shell \
         echo $$(($(words $(names)) * ($(word 1,$(part)) + 1) / $(word 2,$(part))))),$(names))

# ---- the options of each stage, in a file that is written when they change
preset := $(if $(PRESET),$(if $(findstring /,$(PRESET)),$(PRESET),$(here)presets/$(PRESET)))
use    := $(if $(preset),--preset $(if $(findstring /,$(preset)),,./)$(preset))

encoder          := $(if $(filter videomae=% vjepa2=% dinov2=%,$(ENCODER)),,videomae=)$(ENCODER)
kind             := $(firstword $(subst =, ,$(encoder)))
options_features := -z -1 -e $(encoder) $(EXTRACT)
options_flow     := -z -1 -m $(RAFT) $(FLOW)
options_train    := --features $(kind) $(TRAIN)
options_motion   := --features $(kind) $(APPLY)
tool_features    := ma-extract
tool_flow        := ma-flow
tool_train       := ma-subspace
tool_motion      := ma-subspace
stages           := features flow train motion $(more_stages)

# Files that options name (KIND=FILE,SETTING too): what they make depends on them.
files  = $(sort $(wildcard $(foreach w,$(1),$(lastword $(subst =, ,$(firstword $(subst $(comma), ,$(w))))))))
text   = $(strip $(options_$(1)) $(if $(preset),$(call ask,section $(preset) $(tool_$(1)))))
$(foreach s,$(stages),$(eval text_$(s) := $$(call text,$(s))))
same   = $(if $(wildcard $(OUT)/options/$(1)),$(if $(subst x$(text_$(1))x,,x$(file <$(OUT)/options/$(1))x),,yes))
$(foreach s,$(stages),$(eval $(OUT)/options/$(s): export TEXT := $$(text_$(s))))
$(stages:%=$(OUT)/options/%): $(OUT)/options/%: $$(if $$(call same,$$*),,FORCE)
	@$(script) stamp $@
stamp  = $(OUT)/options/$(1) $(call files,$(options_$(1)))

# ---- the stages
shards   = $(mine:%=$(OUT)/$(1)/%.tar.zst)
everyone = $(names:%=$(OUT)/$(1)/%.tar.zst)
motion  := $(or $(MOTION),$(OUT)/motion.safetensors)
teacher := $(if $(filter none,$(RAFT)),features,flow)

features: $(call shards,features)
flow: $(if $(MOTION),,$(call shards,$(teacher)))
train: $(motion)
apply: $(call shards,motion)

$(call everyone,features): $(OUT)/features/%.tar.zst: $$(from_$$*) $(call stamp,features)
	@$(script) run $@ $(tools)ma-extract $(use) $(options_features) $(if $(SHARDS),,--list) $<

$(call everyone,flow): $(OUT)/flow/%.tar.zst: $(OUT)/features/%.tar.zst $(call stamp,flow)
	@$(script) run $@ $(tools)ma-flow $(use) $(options_flow) $<

$(call everyone,motion): $(OUT)/motion/%.tar.zst: $(OUT)/features/%.tar.zst $(motion) $(call stamp,motion)
	@$(script) run $@ $(tools)ma-subspace apply $(use) -m $(motion) $(options_motion) $<

ifdef MOTION
all: apply
else ifdef SHARD
# The other machines' shards are not ours to make.
all: $(if $(wildcard $(motion)),apply,flow)
$(motion):
	@echo "$@ is not there: when all machines have their flow, 'make train' on one of them, without SHARD" >&2; false
else
all: apply
$(motion): $(call everyone,$(teacher)) $(call stamp,train)
	@$(script) train $@ $(teacher) $(tools)ma-subspace train $(use) $(options_train)
endif
endif

FORCE:
.PHONY: all features flow train apply status help FORCE
