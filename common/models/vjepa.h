/* vjepa: the encoder of V-JEPA 2 (Assran et al. 2025), any size, read off the weights.
 *
 * Names are those of transformers' VJEPA2Model, with prefix "" or "vjepa2.". What to do
 * with it: vit.h. Clips may have any size: positions are rotary, along three axes. */
#ifndef MA_VJEPA_H
#define MA_VJEPA_H

#include "vit.h"

extern const vit_kind vjepa_kind;

#endif
