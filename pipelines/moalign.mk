# moalign.mk: from captioned videos and published weights to a tuned model and its clips: MoAlign, both stages.
#   make -f pipelines/moalign.mk VIDEOS=clips OUT=work ENCODER=vit_b.pth RAFT=raft-things.pth BASE=CogVideoX-2b \
#       PROMPTS=prompts.txt FLAGS='-d cuda'
#
# Goals: all (default)  samples, or without PROMPTS the tuned model, and whatever they need
#        latents        OUT/latents/NAME.tar.zst: latents, text embeddings and motion, without videos
#        align          OUT/tuned: the transformer that takes the base's place, or a LoRA; its log and checkpoints
#        sample         OUT/samples: a clip a line of PROMPTS, manifest.csv
#        features, flow, train, apply, status, help   as in stage1.mk
# Stage 1: its variables: VIDEOS, LIST or SHARDS, SHARD_SIZE, OUT, ENCODER, RAFT or MOTION, PRESET, EXTRACT, FLOW, TRAIN,
#        APPLY, FLAGS, SHARD, MA
# Stage 2: BASE=FOLDER        the model to tune, in diffusers' layout
#        PROMPTS=FILE         a prompt a line
#        CLIP=49x480x720      what the VAE sees; the frames are those of stage 1
#        LATENTS=             options of ma-extract (-e vae=BASE -e t5=BASE)
#        ALIGN=               more options of ma-align: --train lora, --loss soft-trd=0.5,repa=0.1
#        SAMPLE=              options of ma-sample
#        LAUNCH=              what is put before ma-align: mpirun -n 8, for eight GPUs
# Killed, the same command goes on: outputs appear whole or not at all, training resumes from its checkpoint. SHARD=I/N
# makes a part of the latents; then align without SHARD.

CLIP    ?= 49x480x720
LATENTS ?= -e vae=$(BASE) -e t5=$(BASE)

more_stages     := latents align sample
videos          := mp4 mkv webm mov avi
options_latents  = --clip $(CLIP) $(LATENTS) $(videos:%=--drop %)
options_align    = -b $(BASE) $(ALIGN)
options_sample   = -b $(BASE) $(SAMPLE)
tool_latents    := ma-extract
tool_align      := ma-align
tool_sample     := ma-sample
export STAGES   := latents

include $(dir $(lastword $(MAKEFILE_LIST)))stage1.mk

ifneq ($(filter-out help status features flow train apply,$(goal)),)
$(call need,BASE)
script2 := bash $(here)moalign.sh

latents: $(call shards,latents)
align: $(OUT)/tuned/done
sample: $(if $(filter sample,$(goal)),$(call need,PROMPTS)) $(OUT)/samples/done

$(call everyone,latents): $(OUT)/latents/%.tar.zst: $(OUT)/motion/%.tar.zst $(call stamp,latents)
	@$(script) run $@ $(tools)ma-extract $(use) $(options_latents) $<

$(OUT)/tuned/done: $(call everyone,latents) $(call stamp,align)
	@$(script2) align $@ $(LAUNCH) $(tools)ma-align $(use) $(options_align)

$(OUT)/samples/done: $(OUT)/tuned/done $(PROMPTS) $(call stamp,sample)
	@$(script2) sample $@ $(PROMPTS) $(tools)ma-sample $(options_sample)

ifdef SHARD
all: latents
else
all: $(if $(PROMPTS),sample,align)
endif
endif

.PHONY: latents align sample
