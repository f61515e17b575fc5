/* videomae: VideoMAE and VideoMAEv2 encoders (Tong et al. 2022, Wang et al. 2023), any size, read off the weights.
 *
 * From OpenGVLab's names (blocks.N.attn.qkv.weight; prefix "", "model.", "encoder." or "module.") or transformers'
 * (encoder.layer.N.attention.attention.query.weight; prefix "" or "videomae."). What the functions do: vit.h. Tokens
 * are the last block's: before OpenGVLab's norm and fc_norm, after transformers' final `layernorm` where the file has
 * one.
 *
 * Positions are a sin-cos table over a grid's flat index. OpenGVLab's form makes it for the grid of pretraining (16
 * frames of 224×224) and interpolates, bicubic in space and linear in time; transformers' form makes it for the grid at
 * hand. They agree where the grids do. */
#ifndef MA_VIDEOMAE_H
#define MA_VIDEOMAE_H

#include "vit.h"

extern const vit_kind videomae_kind;

#endif
