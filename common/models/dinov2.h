/* dinov2: DINOv2 (Oquab et al. 2023), with or without registers (Darcet et al. 2023), any size, read off the weights.
 *
 * Names are facebook's (blocks.N.attn.qkv; prefix "", "model.", "backbone.", "teacher.backbone." or "module.") or those
 * of transformers' Dinov2Model and Dinov2WithRegistersModel (encoder.layer.N.attention.attention.query; prefix "",
 * "dinov2." or "dinov2_with_registers."). What to do with it: vit.h. A clip's frames go through one by one; class token
 * and registers are left out of the result. */
#ifndef MA_DINOV2_H
#define MA_DINOV2_H

#include "vit.h"

extern const vit_kind dinov2_kind;

#endif
