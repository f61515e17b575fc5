# table.mk: the paper's ablation in the toy world: a base, its fine-tuned variants, clips of each, scores.
#   make -f pipelines/toy/table.mk -j64 DEVICES='cuda:0 cuda:1 cuda:2 cuda:3' JOBS=3 THREADS=5 RANKS=4 CARD='4x H200'
#
# Goals: all (default)  OUT/table.md, and whatever it needs
#        data           clips with latents and text embeddings: `pretrain` for the base, `finetune`, `prompts`
#        teacher        stage 1 over the clips of `finetune`: encoder's tokens, motion subspace by exact flow, motion
#        base           OUT/base: the transformer, trained from nothing
#        tuned          OUT/runs/VARIANT-SEED: the base, trained on
#        samples        OUT/samples/VARIANT-SEED.tar.zst: a clip a prompt
#        scores         OUT/flow/VARIANT-SEED.tar.zst: the samples with their flow; OUT/scores/VARIANT-SEED.csv
#        help           this text
# Where: OUT=build/toy-table  DEVICES='cuda:0 cuda:1'  JOBS=N trainings or samplings at a time on each
#        THREADS=N of the CPU for each  RANKS=N GPUs for the base, together  MA=FOLDER with the tools
# Sizes: CLIP, WORLD (options of ma-toy), BASE_WORLD (the same, for the clips that the base learns), SHARD_SIZE,
#        PRETRAIN and FINETUNE (shards), PROMPTS, SEEDS='1 2 3', VARIANTS and BASES (rows)
#        BASE_STEPS, BASE_LR, BASE_BATCH (in all), STEPS, LR, BATCH, MOTION_STEPS, LAYER, LAMBDA, GUIDANCE, SAMPLE_STEPS
#        PASS, the score that passes: less asks for motion that is about right, more for what is exact
#        TINY=1: all of it in miniature, for a look at the machinery; the scores mean nothing
# What:  BASE=FOLDER        a base that is trained already, such as pipelines/toy/base as shipped
#        FORM=FOLDER        configurations of the base that is trained, another width say (pipelines/toy/base)
#        T5= VIDEOMAE=      encoders, as ma-extract's t5= and videomae= have them; RAFT=FILE, for scores
#        CARD=TEXT          named in the table
# Killed, the same command goes on: outputs appear whole or not at all, training resumes from its checkpoint. What another
# variable changes is made anew, and what depends on it. Variants of a seed get the same clips in the same order, noise and
# times, and are sampled from the same noise.
# Needs GNU make 4.2, bash, flock.

here   := $(dir $(lastword $(MAKEFILE_LIST)))
OUT    ?= build/toy-table
MA     ?= $(patsubst %/ma-align,%,$(wildcard $(here)../../build/ma-align))
tools  := $(if $(MA),$(MA:/=)/)
script := bash $(here)table.sh
SHELL  := bash
comma  := ,
.DELETE_ON_ERROR:

all:

DEVICES ?= cpu
JOBS    ?= 1
THREADS ?= 2
RANKS   ?= 1
CARD    ?= $(DEVICES)

ifdef TINY
CLIP ?= 9x16x16@12
SHARD_SIZE ?= 4
PRETRAIN ?= 2
FINETUNE ?= 2
PROMPTS ?= 4
SEEDS ?= 1 2
BASE_STEPS ?= 4
BASE_BATCH ?= 2
STEPS ?= 2
BATCH ?= 2
MOTION_STEPS ?= 10
SAMPLE_STEPS ?= 2
endif
CLIP         ?= 17x48x48@12
WORLD        ?= --balls 2 --pan 0
BASE_WORLD   ?= $(WORLD)
SHARD_SIZE   ?= 512
PRETRAIN     ?= 64
FINETUNE     ?= 8
PROMPTS      ?= 300
SEEDS        ?= 1 2 3
FORM         ?= $(here)base
BASE_STEPS   ?= 9680
BASE_BATCH   ?= 64
BASE_LR      ?= 1e-3
STEPS        ?= 1200
LR           ?= 3e-4
BATCH        ?= 32
MOTION_STEPS ?= 4000
LAYER        ?= 4
LAMBDA       ?= 0.5
GUIDANCE     ?= 3
PASS         ?= 0.5
SAMPLE_STEPS ?= 25

# What the repository does not have yet is drawn.
T5       ?= $(if $(wildcard $(here)base/text_encoder/config.json),$(here)base,random:64x2),length=32
VIDEOMAE ?= $(or $(wildcard $(here)weights/videomae.safetensors),random:192x6$(comma)patch=8)
RAFT     ?= $(here)weights/raft-small.safetensors
reads    := $(if $(findstring random:,$(T5)),,$(firstword $(subst $(comma), ,$(T5))))

# ---- the rows: what each variant asks of ma-align, and its title
BASES    ?= base static
VARIANTS ?= none repa videorepa raw hard moalign layer2 layer5 lambda0.1 lambda2 half rawhalf lora
soft     := --loss soft-trd --target motion
at       := --layer $(LAYER) --lambda $(LAMBDA)
half     := --align-steps $(shell echo $$(($(STEPS) / 2)))

asks_none      := --loss none
asks_repa      := --loss repa --target videomae $(at)
asks_videorepa := --loss trd --target videomae $(at)
asks_raw       := --loss soft-trd --target videomae $(at)
asks_hard      := $(soft) --tau 1e6 $(at)
asks_moalign   := $(soft) $(at)
asks_layer2    := $(soft) --layer 2 --lambda $(LAMBDA)
asks_layer5    := $(soft) --layer 5 --lambda $(LAMBDA)
asks_lambda0.1 := $(soft) --layer $(LAYER) --lambda 0.1
asks_lambda2   := $(soft) --layer $(LAYER) --lambda 2
asks_half      := $(soft) $(at) $(half)
asks_rawhalf   := --loss soft-trd --target videomae $(at) $(half)
asks_lora      := $(soft) $(at) $(half) --train lora --lora-rank 16 --lora-alpha 16 --lr 1e-3

define ROWS
real|true clips
base|base
static|base, first frame repeated
none|fine-tuned only
repa|REPA (encoder tokens)
videorepa|VideoREPA (trd, encoder tokens)
raw|MoAlign, raw encoder tokens
hard|MoAlign, without the soft weighting (τ = 1e6)
moalign|MoAlign
layer2|MoAlign, layer 2
layer5|MoAlign, layer 5
lambda0.1|MoAlign, λ = 0.1
lambda2|MoAlign, λ = 2
half|MoAlign, in the first half of the steps
rawhalf|MoAlign, raw encoder tokens, in the first half
lora|MoAlign, in the first half, LoRA of rank 16
endef
export ROWS OUT DEVICES JOBS THREADS RANKS CARD BASE_BATCH PASS
export MA_SCORE := $(tools)ma-score
export COMMAND := make -f pipelines/toy/table.mk $(MAKEOVERRIDES)

# ---- the options of each stage, in a file that is written when they change
stages        := pretrain finetune prompts latents text teacher base $(VARIANTS:%=tuned-%) sample flow score table
train         := --save-type f16 --drop-text 0.1 $(if $(reads),,--empty-text zeros) --recompute off
text_pretrain := --clip $(CLIP) $(BASE_WORLD) -n $(SHARD_SIZE) --seed 1000
text_finetune := --clip $(CLIP) $(WORLD) -n $(SHARD_SIZE) --seed 2000
text_prompts  := --clip $(CLIP) $(WORLD) -n $(PROMPTS) --seed 3000
text_latents  := --clip $(CLIP) --batch 16 -e pixel=2 -e t5=$(T5) --drop mp4 --drop flow.npy
text_text     := -e t5=$(T5) --drop mp4 --drop flow.npy
text_teacher  := ENCODER=videomae=$(VIDEOMAE) 'EXTRACT=--clip $(CLIP) --batch 16 -e pixel=2 -e t5=$(T5)' \
                 'TRAIN=--hidden 128 --width 64 --steps $(MOTION_STEPS) --batch $(BATCH) --lr 1e-3 --window 1024 --seed 1' \
                 'APPLY=--batch 16 --drop mp4 --drop flow.npy'
text_base     := $(train) --loss none --steps $(BASE_STEPS) --batch $(BASE_BATCH) --lr $(BASE_LR) --warmup 400 --window 2048 --seed 1
tuned         := $(train) --steps $(STEPS) --batch $(BATCH) --lr $(LR) --warmup 50 --window 1024
$(foreach v,$(VARIANTS),$(eval text_tuned-$(v) := $(tuned) $(asks_$(v))))
text_sample   := --shard --format shard --crf 8 --clip $(CLIP) --steps $(SAMPLE_STEPS) --guidance $(GUIDANCE)
text_flow     := -m $(RAFT) --clip $(CLIP) --out-size native --batch 64
text_score    :=
text_table    := --pass $(PASS)
more_teacher  := of $(FINETUNE) shards
more_base     := of $(PRETRAIN) shards$(if $(filter-out $(here)base,$(FORM)), in the form of $(FORM))
more_sample   := $(BASE:%=from %)
$(foreach v,$(VARIANTS),$(eval more_tuned-$(v) := $(more_sample)))

told   = $(strip $(text_$(1)) $(more_$(1)))
same   = $(if $(wildcard $(OUT)/options/$(1)),$(if $(subst x$(told)x,,x$(file <$(OUT)/options/$(1))x),,yes))
$(foreach s,$(stages),$(eval $(OUT)/options/$(s): export TEXT := $$(call told,$(s)))\
$(eval $(OUT)/options/$(s): $(if $(call same,$(s)),,FORCE)))
$(stages:%=$(OUT)/options/%):
	@$(script) stamp $@
stamp = $(OUT)/options/$(1)

# ---- the files
numbers   = $(shell seq -f %03g 0 $$(($(1) - 1)))
pretrain := $(addprefix pretrain-,$(call numbers,$(PRETRAIN)))
finetune := $(addprefix finetune-,$(call numbers,$(FINETUNE)))
prompts  := prompts
of        = $(foreach v,$(1),$(SEEDS:%=$(v)-%))
runs     := $(call of,$(VARIANTS))
model    := $(or $(BASE),$(OUT)/base)
model_is := $(if $(BASE),$(wildcard $(BASE)/transformer/*.safetensors),$(OUT)/base/done)
reader   := $(and $(reads),$(wildcard $(reads)/text_encoder/*.safetensors $(reads)/tokenizer/spiece.model))
seer     := $(wildcard $(firstword $(subst $(comma), ,$(VIDEOMAE))))
made      = $(2:%=$(OUT)/$(1)/%.tar.zst)
scores   := $(patsubst %,$(OUT)/scores/%.csv,real $(call of,$(BASES)) $(runs))

all: $(OUT)/table.md
data: $(call made,latents,$(pretrain)) $(call made,text,$(prompts))
teacher: $(OUT)/teacher/done
base: $(model_is)
tuned: $(runs:%=$(OUT)/runs/%/done)
samples: $(call made,samples,$(call of,base) $(runs))
scores: $(scores)
help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

# The clips of a set are numbered through its shards.
clips = @$(script) one $@ $(tools)ma-toy $(1) --first $$((10\#$(lastword $(subst -, ,$*)) * $(SHARD_SIZE)))
$(call made,clips,$(pretrain)): $(OUT)/clips/%.tar.zst: $(call stamp,pretrain)
	$(call clips,$(text_pretrain))
$(call made,clips,$(finetune)): $(OUT)/clips/%.tar.zst: $(call stamp,finetune)
	$(call clips,$(text_finetune))

$(call made,clips,$(prompts)): $(call stamp,prompts)
	@$(script) one $@ $(tools)ma-toy $(text_prompts)

$(call made,latents,$(pretrain)): $(OUT)/latents/%.tar.zst: $(OUT)/clips/%.tar.zst $(reader) $(call stamp,latents)
	@$(script) one $@ $(tools)ma-extract $(text_latents) $<

$(call made,text,$(prompts)): $(OUT)/text/%.tar.zst: $(OUT)/clips/%.tar.zst $(reader) $(call stamp,text)
	@$(script) one $@ $(tools)ma-extract $(text_text) $<

# Stage 1 as for any data set; the flow of these shards is exact.
$(OUT)/teacher/done: $(call made,clips,$(finetune)) $(reader) $(seer) $(call stamp,teacher)
	@$(script) slot teacher $@ 'SHARDS=$(filter %.tar.zst,$^)' $(text_teacher)

ifndef BASE
$(OUT)/base/done: $(call made,latents,$(pretrain)) $(reader) $(call stamp,base)
	@$(script) base $@ '$^' '$(reads)' $(tools)ma-align -b $(FORM) --from-scratch $(text_base)
endif

teachers := $(finetune:%=$(OUT)/teacher/motion/%.tar.zst)
variant = $(firstword $(subst -, ,$(1)))
seed    = $(lastword $(subst -, ,$(1)))
$(runs:%=$(OUT)/runs/%/done): $(OUT)/runs/%/done: $(model_is) $(OUT)/teacher/done
	@$(script) slot train $@ '$^ $(teachers)' $(tools)ma-align -b $(model) $(text_tuned-$(call variant,$*)) --seed $(call seed,$*)

# A variant's own options make it anew, not the others.
$(foreach v,$(VARIANTS),$(eval $(SEEDS:%=$(OUT)/runs/$(v)-%/done): $(call stamp,tuned-$(v))))

sample = @$(script) slot one $@ $(tools)ma-sample -b $(model) $(text_sample) --seed $(call seed,$*)
$(call made,samples,$(call of,base)): $(OUT)/samples/%.tar.zst: $(model_is) $(call made,text,$(prompts)) $(call stamp,sample)
	$(sample) $(call made,text,$(prompts))
$(call made,samples,$(runs)): $(OUT)/samples/%.tar.zst: $(OUT)/runs/%/done $(call made,text,$(prompts)) $(call stamp,sample)
	$(sample) -t $(OUT)/runs/$*$(if $(filter lora-%,$*),,/transformer) $(call made,text,$(prompts))

# Smoothness and the dynamic degree are of the flow.
$(call made,flow,$(call of,base) $(runs)): $(OUT)/flow/%.tar.zst: $(OUT)/samples/%.tar.zst $(RAFT) $(call stamp,flow)
	@$(script) slot one $@ $(tools)ma-flow $(text_flow) $<

score = @$(script) one $@ $(tools)ma-score $(text_score)
$(patsubst %,$(OUT)/scores/%.csv,$(call of,base) $(runs)): $(OUT)/scores/%.csv: $(OUT)/flow/%.tar.zst $(call stamp,score)
	$(score) $<
$(patsubst %,$(OUT)/scores/%.csv,$(call of,static)): $(OUT)/scores/static-%.csv: $(OUT)/samples/base-%.tar.zst $(call stamp,score)
	$(score) --static $<
$(OUT)/scores/real.csv: $(call made,clips,$(prompts)) $(call stamp,score)
	$(score) $<

$(OUT)/table.md: $(scores) $(here)results $(call stamp,table)
	@bash $(here)results > $@.new && mv $@.new $@ && cat $@

FORCE:
.PHONY: all data teacher base tuned samples scores help FORCE
