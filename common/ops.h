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
ma_tensor *ma_matmul_f32(ma_ctx *, ma_tensor *a, ma_tensor *b, double scale); /* out is fp32 whatever a and b are */

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
 * → (…, C) of g's type, without g of x's. f[0] eps; save[0] mean, save[1] 1/deviation, f32, one a row. */
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

/* Mean and variance over (T,H,W) and C/groups channels of x; add: of x += add, in place, by the way.
 * x, add (B,T,H,W,C), add or NULL   → f32 (2,B,groups). No gradient. i[0] groups. */
ma_tensor *ma_moments(ma_ctx *, ma_tensor *x, ma_tensor *add, int64_t groups);

/* What a convolution that is causal in time reads: act of x normalised by its moments, behind `lead` frames of its own
 * past, so that the convolution needs no padding in time.
 * x (B,T,H,W,C)   moments (2,B,groups) or NULL   g, b (C) or NULL   map (B,t,h,w,M) or NULL
 * past (B,lead,H,W,C) or NULL   → (B,lead+T,H,W,C)
 * moments: as ma_moments makes them; NULL: x is not normalised.
 * map: from channel `from` on C channels that multiply, then C that are added, behind g and b, read at the nearest
 * position: t, h, w divide T, H, W, but where T is odd and more than 1 the first frame stands for itself and t-1
 * divides T-1.
 * past: what goes before; then takes the last `lead` frames of the result, for the next call. fresh, or NULL: before is
 * the first frame, repeated. No gradient.
 * in[0] x, in[1] g, in[2] b, in[3] moments, in[4] map, in[5] past; i[0] from, i[1] act, i[2] lead, i[3] fresh;
 * f[0] eps. */
typedef struct ma_causal {
    double eps;
    ma_act act;
    int64_t lead, from;
    bool fresh;
} ma_causal;
ma_tensor *ma_causal_norm(ma_ctx *, ma_tensor *x, ma_tensor *moments, ma_tensor *g, ma_tensor *b, ma_tensor *map,
                          ma_tensor *past, ma_causal);

/* Rotates neighbouring pairs: y[2j] = x[2j]·cos[2j] - x[2j+1]·sin[2j], y[2j+1] = x[2j+1]·cos[2j+1] + x[2j]·sin[2j+1].
 * x (B,L,H,D)   cos, sin f32 (L-text, D). The first i[0] = text tokens pass unchanged. */
ma_tensor *ma_rope(ma_ctx *, ma_tensor *x, ma_tensor *cos, ma_tensor *sin, int64_t text);

ma_tensor *ma_act_(ma_ctx *, ma_tensor *x, ma_act);                  /* i[0] act */
/* a + b and a·b; b has a's shape or a trailing part of it, over which it is repeated: (…, C) and (C), (B,L,C) and (L,C). */
ma_tensor *ma_add(ma_ctx *, ma_tensor *a, ma_tensor *b);
ma_tensor *ma_add_act(ma_ctx *, ma_tensor *a, ma_tensor *b, ma_act); /* act(a + b); i[0] act. In one where no gradient is wanted */
ma_tensor *ma_mul_(ma_ctx *, ma_tensor *a, ma_tensor *b);
ma_tensor *ma_add_to(ma_ctx *, ma_tensor *a, ma_tensor *b); /* a += b in place; not where a gradient is wanted */
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
 * level[k] (B·H·W, 1, H>>k, W>>k, 1)   coords f32 (B,1,H,W,2): x, y   → (B,1,H,W, width), width ≥ levels·(2r+1)²:
 * zeros behind them
 * channel order as in the original: level, then dx slowest: (dx, dy) = (j / (2r+1) - r, j mod (2r+1) - r).
 * in[0] coords, in[1…] levels; i[0] radius, i[1] levels. Level k is sampled at coords / 2^k. */
ma_tensor *ma_corr_lookup(ma_ctx *, ma_tensor *coords, ma_tensor **level, int levels, int64_t radius, int64_t width);

/* RAFT's convex upsampling ×8 of flow·8.   flow (B,1,H,W,2)   mask (B,1,H,W,9·64): 9 taps slowest, then 8×8; softmax
 * over the taps → (B,1,8H,8W,2) */
ma_tensor *ma_upsample_convex(ma_ctx *, ma_tensor *flow, ma_tensor *mask);

/* A convolutional GRU between its convolutions, whose results are sums over what they read: of the state h (…, C), of
 * the input and of what never changes. z = σ(…), r = σ(…), q = tanh(…), in this order, C channels each:
 *   reset    r·h, which the convolution for q reads      of_h (…, 2C): z, r   of_x, of_rest (…, 3C)   → (…, C)
 *   update   (1-z)·h + z·q, the new state                of_rh (…, C): q                              → (…, C) */
ma_tensor *ma_gru_reset(ma_ctx *, ma_tensor *h, ma_tensor *of_h, ma_tensor *of_x, ma_tensor *of_rest);
ma_tensor *ma_gru_update(ma_ctx *, ma_tensor *h, ma_tensor *of_h, ma_tensor *of_x, ma_tensor *of_rest, ma_tensor *of_rh);

/* x in another type, with zeros behind it in the last dimension.   x (…, C) → (…, width), width ≥ C */
ma_tensor *ma_cast(ma_ctx *, ma_tensor *x, ma_type, int64_t width);

/* Bytes of pictures to numbers of the context's type, each colour's own: x·mul + add, zeros behind them.
 * x u8 (…, 3) → (…, width), width ≥ 3.   f[0..2] mul, f[3..5] add. No gradient. */
typedef struct ma_colours {
    double mul[3], add[3];
} ma_colours;
ma_tensor *ma_pixels(ma_ctx *, ma_tensor *x, const ma_colours *, int64_t width);

/* What a diffusion model learns from: x0 = scale·(mean + deviation·ε') of a stored posterior, x = signal·x0 + noise·ε and
 * v = signal·ε - noise·x0. The normals ε' and ε are streams POSTERIOR and NOISE of rng.h at that step, in the order of
 * the result. posterior f32 or f16 (B,2C,T,h,w): mean, log-variance; how: B of them
 * → f32 (2B,T,h,w,C): B times x, then B times v.   f[0] scale; i[0] step; in[1] u8 (B, sizeof(ma_noising)) */
typedef struct ma_noising {
    float signal, noise; /* √ᾱ, √(1-ᾱ) at the sample's time */
    uint32_t key[2];     /* of ma_rng_make with the sample's seed and name */
} ma_noising;
ma_tensor *ma_diffuse(ma_ctx *, ma_tensor *posterior, const ma_noising *how, int64_t step, double scale);

/* What frozen encoders use; no gradients. A residual stream in f32 beside 16-bit weights neither overflows nor loses what
 * is added to it: hence the types.
 *
 * Rows of a table.   table (V, D)   at f32 (…): whole numbers 0..V-1 (others: the nearest)   → f32 (…, D) */
ma_tensor *ma_embed(ma_ctx *, ma_tensor *table, ma_tensor *at);
/* x/sqrt(mean(x²) + eps)·g over the last dimension.   x (…, C)   g (C)   → (…, C) of g's type.   f[0] eps */
ma_tensor *ma_rms_norm(ma_ctx *, ma_tensor *x, ma_tensor *g, double eps);
/* r += x·wᵀ + b, in place; returns r.   r (…, N)   x (…, K)   w (N, K)   b (N), of r's type, or NULL */
ma_tensor *ma_linear_add(ma_ctx *, ma_tensor *r, ma_tensor *x, ma_tensor *w, ma_tensor *b);
/* softmax(scale·q·kᵀ + bias)·v with a bias by head and distance.   q (B,L,H,D)   k, v (B,M,H,D)
 * bias f32 (H, L+M-1): what key j has for query i stands at j - i + L-1   → (B,L,H,D).   f[0] scale */
ma_tensor *ma_attention_relative(ma_ctx *, ma_tensor *q, ma_tensor *k, ma_tensor *v, ma_tensor *bias, double scale);

/* Losses: one f32 element. Targets get no gradient. */
ma_tensor *ma_l1(ma_ctx *, ma_tensor *x, ma_tensor *target);   /* mean |x - target| */
ma_tensor *ma_mse(ma_ctx *, ma_tensor *x, ma_tensor *target);  /* mean (x - target)² */
/* Token relations: mean over the batch of Σ_ij c(|f_i - f_j|) · relu(|cos(z_i,z_j) - cos(m_i,m_j)| - margin).
 * z, m (B,F,N,D)   c f32 (F): weight of a pair of tokens by their distance in frames.   f[0] margin
 * save[0]: the gradient to the unit tokens, f32, z's shape. METHOD, soft token-relation distillation. */
ma_tensor *ma_relation(ma_ctx *, ma_tensor *z, ma_tensor *m, ma_tensor *c, double margin);
ma_tensor *ma_cosine(ma_ctx *, ma_tensor *z, ma_tensor *m);    /* -mean cos(z_i, m_i) over the last dimension */

#endif
