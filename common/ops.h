/* ops: the vocabulary that networks are written in. Every function checks shapes, makes its output on the activation
 * stack, runs it, and records it where a gradient is wanted. NULL in, NULL out; the context keeps the first error.
 * Shapes stand at the right margin. "i[…]" and "f[…]" tell kernels where the attributes are. in[] is in argument order.
 */
#ifndef MA_OPS_H
#define MA_OPS_H

#include "tensor.h"

/* act(x·wᵀ + b).   x (…, K)   w (N, K)   b (N) or NULL   → (…, N)
 * i[0] act; save[0]: x·wᵀ + b before silu, gelu, gelu_tanh. */
ma_tensor *ma_linear(ma_ctx *, ma_tensor *x, ma_tensor *w, ma_tensor *b, ma_act);

/* scale · a·bᵀ, batch by batch.   a (B, M, K)   b (B, N, K)   → (B, M, N).   f[0] scale */
ma_tensor *ma_matmul(ma_ctx *, ma_tensor *a, ma_tensor *b, double scale);

/* act(conv(x, w) + b), zeros outside.   x (B,T,H,W,C)   w (O,kt,kh,kw,C)   b (O) or NULL   → (B,T',H',W',O)
 * i[0..2] stride, i[3..5] padding before, i[6..8] padding after (t, h, w), i[9] act; save[0] as in linear.
 * PyTorch's weight is (O,C,kt,kh,kw): see MA_CONV in param.h. */
typedef struct ma_window {
    int64_t stride[3], before[3], after[3];
} ma_window;
ma_tensor *ma_conv(ma_ctx *, ma_tensor *x, ma_tensor *w, ma_tensor *b, ma_window, ma_act);
/* Same padding on both sides. */
#define MA_WINDOW(st, sh, sw, pt, ph, pw) ((ma_window){{st, sh, sw}, {pt, ph, pw}, {pt, ph, pw}})

/* act(transposed convolution + b).   x (B,T,H,W,C)   w (C,kt,kh,kw,O)   → T' = (T-1)·stride - before - after + kt, …
 * PyTorch's weight is (C,O,kt,kh,kw). Attributes as conv. */
ma_tensor *ma_conv_transpose(ma_ctx *, ma_tensor *x, ma_tensor *w, ma_tensor *b, ma_window, ma_act);

/* softmax(scale · q·kᵀ)·v, never as a whole matrix.   q (B,L,H,D)   k, v (B,M,H,D)   → (B,L,H,D)
 * f[0] scale; save[0]: log-sum-exp of the scaled scores, f32 (B,H,L). Backward also reads out. */
ma_tensor *ma_attention(ma_ctx *, ma_tensor *q, ma_tensor *k, ma_tensor *v, double scale);

/* Over the last dimension: (x - mean)/sqrt(var + eps)·g + b.   x (…, C)   g, b (C), both or neither NULL
 * f[0] eps; save[0] mean, save[1] 1/deviation, f32, one a row. */
ma_tensor *ma_layer_norm(ma_ctx *, ma_tensor *x, ma_tensor *g, ma_tensor *b, double eps);

/* Layer norm, then per-sample scale and shift, apart for text and video (AdaLN):  y = LN(x)·(1 + scale) + shift.
 * x (B,L,C)   g, b (C) or NULL   mod (B,R,C): rows of modulation vectors.
 * i[0] text: the first so many tokens are text; i[1], i[2] rows of shift and scale for video, i[3], i[4] for text.
 * f[0] eps; save as layer_norm. */
ma_tensor *ma_modulate(ma_ctx *, ma_tensor *x, ma_tensor *g, ma_tensor *b, ma_tensor *mod, double eps, int64_t text,
                       int shift, int scale, int text_shift, int text_scale);

/* x + gate·y.   x, y (B,L,C)   mod (B,R,C).   i[0] text, i[1] row for video, i[2] row for text */
ma_tensor *ma_gate(ma_ctx *, ma_tensor *x, ma_tensor *y, ma_tensor *mod, int64_t text, int row, int text_row);

/* act of the normalisation over (T,H,W) and C/groups channels.   x (B,T,H,W,C)   g, b (C) or NULL
 * groups = C: instance norm. i[0] groups, i[1] act; f[0] eps; save[0] mean, save[1] 1/deviation, f32 (B,groups). */
ma_tensor *ma_group_norm(ma_ctx *, ma_tensor *x, ma_tensor *g, ma_tensor *b, int64_t groups, double eps, ma_act);

/* Rotates neighbouring pairs: y[2j] = x[2j]·cos[2j] - x[2j+1]·sin[2j], y[2j+1] = x[2j+1]·cos[2j+1] + x[2j]·sin[2j+1].
 * x (B,L,H,D)   cos, sin f32 (L-text, D). The first i[0] = text tokens pass unchanged. */
ma_tensor *ma_rope(ma_ctx *, ma_tensor *x, ma_tensor *cos, ma_tensor *sin, int64_t text);

ma_tensor *ma_act_(ma_ctx *, ma_tensor *x, ma_act);                  /* i[0] act */
/* a + b and a·b; b has a's shape or a trailing part of it, over which it is repeated: (…, C) and (C), (B,L,C) and (L,C). */
ma_tensor *ma_add(ma_ctx *, ma_tensor *a, ma_tensor *b);
ma_tensor *ma_mul_(ma_ctx *, ma_tensor *a, ma_tensor *b);
ma_tensor *ma_lerp(ma_ctx *, ma_tensor *a, ma_tensor *b, ma_tensor *z); /* (1-z)·a + z·b, same shapes: the GRU's update */
ma_tensor *ma_affine(ma_ctx *, ma_tensor *x, double mul, double add);   /* f[0]·x + f[1] */

/* Along one axis.   i[0] axis; slice: i[1] from, i[2] count. concat: 2..8 tensors. */
ma_tensor *ma_concat(ma_ctx *, ma_tensor **t, int n, int axis);
ma_tensor *ma_slice(ma_ctx *, ma_tensor *x, int axis, int64_t from, int64_t count);

/* Tokens back to pixels.   x (B,F,h,w,C·p·p), channel slowest, then row, then column → (B,F,h·p,w·p,C).   i[0] p */
ma_tensor *ma_unpatch(ma_ctx *, ma_tensor *x, int64_t p);

/* Trilinear (T,H,W) resize.   x (B,T,H,W,C) → (B,t,h,w,C).   i[0] 1: aligned corners; 0: half pixels, as PyTorch. */
ma_tensor *ma_resize(ma_ctx *, ma_tensor *x, int64_t t, int64_t h, int64_t w, bool align);

/* 2×2 mean, stride 2, an odd last row or column dropped.   x (B,T,H,W,C) */
ma_tensor *ma_pool(ma_ctx *, ma_tensor *x);

/* RAFT's look-up: bilinear samples, zeros outside, of (2r+1)² neighbours in each of the pyramid's levels.
 * level[k] (B·H·W, 1, H>>k, W>>k, 1)   coords f32 (B,1,H,W,2): x, y   → (B,1,H,W, levels·(2r+1)²)
 * channel order as in the original: level, then dx slowest: (dx, dy) = (j / (2r+1) - r, j mod (2r+1) - r).
 * in[0] coords, in[1…] levels; i[0] radius, i[1] levels. Level k is sampled at coords / 2^k. */
ma_tensor *ma_corr_lookup(ma_ctx *, ma_tensor *coords, ma_tensor **level, int levels, int64_t radius);

/* RAFT's convex upsampling ×8 of flow·8.   flow (B,1,H,W,2)   mask (B,1,H,W,9·64): 9 taps slowest, then 8×8; softmax
 * over the taps → (B,1,8H,8W,2) */
ma_tensor *ma_upsample_convex(ma_ctx *, ma_tensor *flow, ma_tensor *mask);

/* Losses: one f32 element. Targets get no gradient. */
ma_tensor *ma_l1(ma_ctx *, ma_tensor *x, ma_tensor *target);   /* mean |x - target| */
ma_tensor *ma_mse(ma_ctx *, ma_tensor *x, ma_tensor *target);  /* mean (x - target)² */
/* Token relations: mean over the batch of Σ_ij c(|f_i - f_j|) · relu(|cos(z_i,z_j) - cos(m_i,m_j)| - margin).
 * z, m (B,F,N,D)   c f32 (F): weight of a pair of tokens by their distance in frames.   f[0] margin
 * save[0]: the gradient to the unit tokens, f32, z's shape. METHOD, soft token-relation distillation. */
ma_tensor *ma_relation(ma_ctx *, ma_tensor *z, ma_tensor *m, ma_tensor *c, double margin);
ma_tensor *ma_cosine(ma_ctx *, ma_tensor *z, ma_tensor *m);    /* -mean cos(z_i, m_i) over the last dimension */

#endif
