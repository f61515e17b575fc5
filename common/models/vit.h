/* vit: what the frozen encoders have in common, the plain vision transformer: patches of a clip or a picture, blocks of
 * attention and MLP, each with a layer norm before and added to what went in, a last norm. What the publishers call the
 * parts is data (vit_naming); videomae.c, vjepa.c and dinov2.c add what sets a family apart (vit_kind): where tokens
 * stand. */
#ifndef MA_VIT_H
#define MA_VIT_H

#include "../ops.h"
#include "../param.h"

typedef struct vit vit;

typedef struct vit_size {
    int depth, width, heads, patch, tubelet;
} vit_size;

/* How a publisher names things. All but patch and norm stand below `layer`N. "if there": where the file has it. */
typedef struct vit_naming {
    const char *publisher;
    const char *prefixes[6];                      /* of every name; ended by NULL */
    const char *patch;                            /* .weight (D,3,t,p,p) or (D,3,p,p), .bias */
    const char *layer;                            /* "blocks." */
    const char *norm1, *norm2, *proj, *fc1, *fc2; /* .weight, .bias */
    const char *qkv;              /* .weight, .bias if there: one above the other; NULL: apart, as the next three */
    const char *q, *k, *v;        /* .weight, .bias if there */
    const char *q_bias, *v_bias;  /* else these, if there; NULL: never */
    const char *glu_in, *glu_out; /* in place of fc1 and fc2, if there: gate above value; NULL: never */
    const char *scale1, *scale2;  /* layer scale, if there; NULL: never */
    const char *norm;             /* the last one, if there; NULL: never */
    double eps;
    const char *ignore[24]; /* how entries begin that are not ours: heads, decoders */
} vit_naming;

/* A family of networks. */
typedef struct vit_kind {
    const char *name;               /* "VideoMAE" */
    const vit_naming *const *names; /* ended by NULL; random ones have the first */
    bool pictures;                  /* a network of pictures: the frames of a clip go through one by one */
    struct {
        int width, heads;
    } odd[4];                                   /* published sizes whose heads are not 64 wide */
    int (*begin)(vit *);                        /* reads what there is beside the blocks; NULL: nothing */
    int (*place)(vit *, const int64_t grid[3]); /* makes at, or cosine and sine, for a grid (T,H,W) of tokens */
} vit_kind;

typedef struct vit_affine {
    ma_tensor *w, *b; /* w·x + b, or a norm's gain and bias */
} vit_affine;

typedef struct vit_block {
    vit_affine norm1, q, k, v, proj, norm2, fc1, fc2; // b NULL: none
    vit_affine gate;                                  // of a gated MLP; w NULL: a plain one
    ma_tensor *gamma1, *gamma2; // (D), layer scale of a net that is trained; elsewhere it is in proj and fc2
    ma_tensor *wide1, *wide2;   // (D), of a wide net: the biases of proj and fc2 in f32
} vit_block;

struct vit {
    const vit_kind *kind;
    const vit_naming *names;
    ma_params *params;
    vit_size size;
    int64_t hidden; // of the MLP
    vit_affine patch;
    vit_block *block;
    vit_affine norm; // the last; w NULL: none
    bool wide;       // tokens are summed up in f32 beside 16 bits
    /* For begin: tokens before the patches (R,D), such as a class token, and a table of positions (side·side, D). */
    float *lead, *table;
    int64_t leads, side;
    /* For place: of the grid at hand. Kept, in the context's type; cosine and sine in f32. */
    int64_t grid[3];
    ma_tensor *at;            // (T·H·W,D), of pictures (H·W,D), added to the patches; NULL: none
    ma_tensor *cosine, *sine; // (T·H·W,D/heads), for queries and keys; NULL: none
};

/* heads 0: what the published sizes have, else width/64. train: parameters are leaves. NULL: the context has failed,
 * and the message says what was found in the file and what was looked for. Valid as long as the context. */
vit *vit_load(const vit_kind *, ma_ctx *, const ma_weights *, int heads, bool train);
vit *vit_random(const vit_kind *, ma_ctx *, const vit_size *, uint64_t seed, bool train); /* heads 0 as above */
void vit_free(vit *);
vit_size vit_sizes(const vit *);
int64_t vit_parameters(const vit *);

/* x (B,T,H,W,3), normalised by the caller, T, H, W multiples of tubelet and patch → (B, T/tubelet, H/patch, W/patch,
 * width). layer 0: the last block's tokens, after the last norm where there is one; N: those after block N, counted
 * from one, without it. */
ma_tensor *vit_forward(ma_ctx *, vit *, ma_tensor *x, int layer);

/* For place: *at becomes values (rows, columns), which it takes over; NULL: out of memory. A table for another grid
 * stays in the context as long as that. */
int vit_keep(vit *, ma_tensor **at, ma_type, int64_t rows, int64_t columns, float *values);

#endif
