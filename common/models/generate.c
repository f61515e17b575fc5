/* generate: see generate.h.
 *
 * Limits: one clip at a time; latents go to the host and back every step, which is a thousandth of a step's time.
 * Traps: VAE streams want the stack empty, as they take all of what they need in one piece: so that the transformer
 * uses the same piece, it is made first. Inputs must lie where they lay for a step to be launched as recorded: texts at
 * the bottom of the stack, rewound to before every step. A guidance of 1 or less is none, dynamic or not, as in
 * diffusers, which decides by the number that the user gave. */
#include "generate.h"

#include "../rng.h"
#include "pixel.h"

#include <stdio.h>
#include <string.h>

enum { TRANSFORMER = 1, CODEC = 2, BOTH = 3 };

/* How it is done. */
typedef struct way {
    bool paired, tiles, apart; /* apart: never both networks loaded at once */
} way;

struct generator {
    ma_device *dev;
    ma_type type;
    ma_pipeline pipe;
    generate_options o;
    size_t count;     /* elements of the latent */
    ma_weights *w[2]; /* of transformer and codec; [1] NULL: pixels */
    way way;
    int loaded; /* TRANSFORMER | CODEC */
    ma_ctx *c;  /* NULL: nothing is loaded */
    ma_params *p[2];
    cogvideox *net;
    vae *codec;
};

/* ---- loading ---- */

static bool has_vae(const generator *g) {
    return !g->pipe.pixel;
}

static bool guided(const generator *g) {
    return g->o.guidance > 1 && g->o.text;
}

static const vae_tiles *tiles_of(const generator *g, vae_tiles *t) {
    *t = vae_default_tiles(&g->pipe.vae);
    return g->way.tiles ? t : NULL;
}

static vae_stream *open_stream(const generator *g) {
    vae_tiles t;
    return vae_open(g->c, g->codec, VAE_DECODER, g->o.shape, tiles_of(g, &t));
}

static void unload(generator *g) {
    cogvideox_free(g->net);
    vae_free(g->codec);
    for (int k = 0; k < 2; k++) ma_params_free(g->p[k]);
    ma_ctx_free(g->c);
    g->net = NULL;
    g->codec = NULL;
    g->p[0] = g->p[1] = NULL;
    g->c = NULL;
    g->loaded = 0;
}

static int merge_adapters(generator *g, ma_err *e) {
    lora *l = lora_open(g->c, g->o.lora, e);
    int rc = l ? 0 : -1;
    if (l && (cogvideox_adapt(g->net, l) || lora_merge(l, g->o.strength))) rc = ma_ctx_failed(g->c, e);
    lora_free(l);
    return rc;
}

static int load(generator *g, int what, ma_err *e) {
    if (!(g->c = ma_ctx_new(g->dev, e))) return -1;
    ma_set_type(g->c, g->type);
    ma_recording(g->c, false);
    ma_ctx_lever(g->c, "make a smaller --clip");
    if (what & TRANSFORMER) {
        g->p[0] = ma_params_new(g->c, g->w[0], false, 0);
        g->net = g->p[0] ? cogvideox_make(g->p[0], &g->pipe.transformer) : NULL;
        if (g->net) ma_params_end(g->p[0], ma_pipeline_beside);
        if (g->o.lora && !ma_ctx_failed(g->c, e) && merge_adapters(g, e)) return -1;
    }
    if (what & CODEC && has_vae(g)) {
        g->p[1] = ma_params_new(g->c, g->w[1], false, 0);
        g->codec = g->p[1] ? vae_make(g->p[1], &g->pipe.vae, VAE_DECODER) : NULL;
        vae_close(g->codec ? open_stream(g) : NULL); /* leaves its piece of the stack to all that comes */
    }
    g->loaded = what;
    return ma_ctx_failed(g->c, e);
}

/* Sees to it that this network is there. */
static int need(generator *g, int what, ma_err *e) {
    if (!has_vae(g)) what = TRANSFORMER;
    if (g->loaded & what) return 0;
    unload(g);
    return load(g, g->way.apart || !has_vae(g) ? what : BOTH, e);
}

/* ---- one step ---- */

/* in[]: latent, times, and text, which may be NULL */
static ma_tensor *forward(ma_ctx *c, const void *self, ma_tensor **in) {
    const generator *g = self;
    const cogvideox_run run = {.times = in[1]};
    return cogvideox_forward(c, g->net, in[0], NULL, in[2], &run, NULL);
}

/* batch velocities for batch copies of x (that many stand there) at time t; text (batch,L,E) on the device, or NULL. */
static int velocity(generator *g, const float *x, double t, ma_tensor *text, int64_t batch, float *v) {
    const int64_t *n = g->o.shape;
    const double times[2] = {t, t};
    ma_tensor *in[3] = {ma_input(g->c, x, MA_SHAPE(batch, n[1], n[2], n[3], n[4])),
                        cogvideox_times(g->c, g->net, times, batch), text};
    ma_tensor *out = ma_replay(g->c, forward, g, in, text ? 3 : 2, 0);
    return ma_get(g->c, out, v);
}

/* The texts of a clip on the device: one of two rows, or two of one; at[1] alone: no guidance. */
typedef struct texts {
    ma_tensor *both, *at[2]; /* at: negative, prompt */
} texts;

static ma_tensor *put_text(generator *g, const ma_array *const *a, int64_t n, ma_err *e) {
    const int64_t length = a[0]->n[0], width = a[0]->n[1];
    const size_t each = (size_t)(length * width);
    float *host = ma_alloc((size_t)n, each * sizeof *host);
    if (!host) {
        ma_fail(e, MA_MEMORY, "text: out of memory");
        return NULL;
    }
    for (int64_t k = 0; k < n; k++) ma_to_f32(host + (size_t)k * each, a[k]->data, a[k]->type, each);
    ma_tensor *t = ma_input(g->c, host, MA_SHAPE(n, length, width));
    ma_release(host);
    if (!t) ma_ctx_failed(g->c, e);
    return t;
}

static int put_texts(generator *g, const ma_array *text, const ma_array *none, texts *t, ma_err *e) {
    *t = (texts){0};
    if (!text) return 0;
    if (!none || g->o.guidance <= 1) return (t->at[1] = put_text(g, &text, 1, e)) ? 0 : -1;
    if (g->way.paired && text->n[0] == none->n[0])
        return (t->both = put_text(g, (const ma_array *[]){none, text}, 2, e)) ? 0 : -1;
    t->at[0] = put_text(g, &none, 1, e);
    t->at[1] = t->at[0] ? put_text(g, &text, 1, e) : NULL;
    return t->at[1] ? 0 : -1;
}

/* What the sampler is told: v, with guidance v_none + scale·(v - v_none). x and v hold two latents. */
static int answer(generator *g, float *x, double t, const texts *text, float *v, ma_err *e) {
    const size_t n = g->count;
    const double scale = g->o.dynamic ? ma_dynamic_guidance(g->o.guidance, t, g->o.steps) : g->o.guidance;
    const ma_mark_t m = ma_mark(g->c);
    int rc;
    if (text->both) {
        memcpy(x + n, x, n * sizeof *x);
        rc = velocity(g, x, t, text->both, 2, v);
    } else {
        rc = text->at[0] ? velocity(g, x, t, text->at[0], 1, v) : 0;
        ma_rewind(g->c, m);
        if (!rc) rc = velocity(g, x, t, text->at[1], 1, v + n);
    }
    ma_rewind(g->c, m);
    if (rc) return ma_ctx_failed(g->c, e);
    if (!text->both && !text->at[0])
        memcpy(v, v + n, n * sizeof *v);
    else
        for (size_t k = 0; k < n; k++) v[k] += (float)scale * (v[n + k] - v[k]);
    return 0;
}

/* ---- a clip ---- */

/* What a clip needs beside x: two latents to read, two answers, the last x0, noise. */
enum { LATENTS = 6 };

static void draw(const generator *g, const char *key, int step, float *out) {
    ma_rng rng = ma_rng_make(g->o.seed, key, (uint64_t)step, MA_RNG_NOISE);
    ma_rng_fill_normal(&rng, out, g->count);
}

static int loop(generator *g, const char *key, const texts *t, const float *drawn, float *room, float *x,
                int (*step)(void *self, int k), void *self, ma_err *e) {
    ma_step steps[1000];
    const size_t n = g->count;
    float *in = room, *v = room + 2 * n, *last = room + 4 * n, *noise = room + 5 * n;
    if (ma_steps_make(&g->pipe.schedule, g->o.sampler, g->o.steps, steps, e)) return -1;
    for (int k = 0; k < g->o.steps; k++) {
        if (step && step(self, k)) return ma_fail(e, MA_IO, "stopped");
        memcpy(in, x, n * sizeof *in);
        if (answer(g, in, steps[k].t, t, v, e)) return -1;
        if (steps[k].of_noise != 0 && !drawn) draw(g, key, k + 1, noise);
        ma_step_take(&steps[k], v, x, last, drawn ? drawn + (size_t)k * n : noise, n);
    }
    return 0;
}

static int check_finite(const char *key, const float *x, size_t n, ma_err *e) {
    bool finite = true;
    for (size_t k = 0; k < n; k++) finite &= x[k] - x[k] == 0;
    return finite ? 0 : ma_fail(e, MA_NOTFINITE, "%s: the latent is not finite", key);
}

int generator_denoise(generator *g, const char *key, const ma_array *text, const ma_array *none, const float *start,
                      const float *drawn, float *x, int (*step)(void *self, int k), void *self, ma_err *e) {
    texts t;
    if (need(g, TRANSFORMER, e)) return -1;
    float *room = ma_alloc(LATENTS, g->count * sizeof *room);
    if (!room) return ma_fail(e, MA_MEMORY, "%s: out of memory", key);
    if (start)
        memcpy(x, start, g->count * sizeof *x);
    else
        draw(g, key, 0, x);
    int rc = put_texts(g, text, none, &t, e);
    if (!rc) rc = loop(g, key, &t, drawn, room, x, step, self, e);
    if (!rc) rc = check_finite(key, x, g->count, e);
    ma_reset(g->c);
    ma_release(room);
    return rc;
}

/* ---- frames ---- */

/* All frames at once: there is nothing to wait for. */
static int decode_pixels(const generator *g, const float *x, int (*frames)(void *, const float *, int64_t, ma_err *),
                         void *self, ma_err *e) {
    const int64_t *n = g->o.shape, p = g->pipe.pixel;
    float *rgb = ma_alloc((size_t)(n[1] * n[2] * p), (size_t)(n[3] * p * 3) * sizeof *rgb);
    if (!rgb) return ma_fail(e, MA_MEMORY, "frames: out of memory");
    pixel_decode(x, n[1], n[2], n[3], p, rgb);
    int rc = frames(self, rgb, n[1], e);
    ma_release(rgb);
    return rc;
}

static int decode_pieces(generator *g, vae_stream *s, const float *x, float *rgb,
                         int (*frames)(void *, const float *, int64_t, ma_err *), void *self, ma_err *e) {
    const int64_t *n = g->o.shape, each = n[2] * n[3] * n[4];
    int64_t ready = 0, wanted;
    int rc = 0;
    for (int64_t at = 0; !rc && (wanted = vae_wants(s)) > 0; at += wanted) {
        ma_mark_t m = ma_mark(g->c);
        ma_tensor *y = vae_next(s, ma_input(g->c, x + at * each, MA_SHAPE(1, wanted, n[2], n[3], n[4])));
        if (y && ready) rc = frames(self, rgb, ready, e); /* while the device is busy with y */
        if (!rc && (!y || ma_get(g->c, y, rgb))) rc = ma_ctx_failed(g->c, e);
        ready = y ? y->n[1] : 0;
        ma_rewind(g->c, m);
    }
    return !rc && ready ? frames(self, rgb, ready, e) : rc;
}

static int decode_vae(generator *g, const float *x, int (*frames)(void *, const float *, int64_t, ma_err *), void *self,
                      ma_err *e) {
    const int64_t *n = g->o.shape, scale = vae_scale(&g->pipe.vae);
    const size_t frame = (size_t)(n[2] * scale * n[3] * scale * 3);
    vae_stream *s = open_stream(g);
    int rc = s ? 0 : ma_ctx_failed(g->c, e);
    const int64_t most = s ? vae_frames(&g->pipe.vae, vae_wants(s)) : 0; /* the first piece is the longest */
    float *rgb = s ? ma_alloc((size_t)most, frame * sizeof *rgb) : NULL;
    if (s && !rgb) rc = ma_fail(e, MA_MEMORY, "frames: out of memory");
    if (!rc) rc = decode_pieces(g, s, x, rgb, frames, self, e);
    vae_close(s);
    ma_release(rgb);
    return rc;
}

int generator_decode(generator *g, const float *x, int (*frames)(void *self, const float *rgb, int64_t n, ma_err *),
                     void *self, ma_err *e) {
    if (need(g, CODEC, e)) return -1;
    float *z = ma_alloc(g->count, sizeof *z);
    if (!z) return ma_fail(e, MA_MEMORY, "frames: out of memory");
    const float scaling = (float)g->pipe.scaling;
    for (size_t k = 0; k < g->count; k++) z[k] = x[k] / scaling;
    int rc = has_vae(g) ? decode_vae(g, z, frames, self, e) : decode_pixels(g, z, frames, self, e);
    ma_release(z);
    ma_reset(g->c);
    return rc;
}

/* ---- the way ---- */

/* The first step, and the first frames, as far as the loaded parts go; in a plan. */
static int rehearse(generator *g, ma_err *e) {
    const int64_t *n = g->o.shape, length = g->o.text, width = g->pipe.transformer.text_embed_dim;
    const int64_t batch = guided(g) && g->way.paired ? 2 : 1;
    if (g->net) {
        const double t[2] = {0};
        ma_tensor *text = length ? ma_new(g->c, g->type, MA_SHAPE(guided(g) ? 2 : 1, length, width)) : NULL;
        ma_tensor *in[3] = {ma_new(g->c, g->type, MA_SHAPE(batch, n[1], n[2], n[3], n[4])),
                            cogvideox_times(g->c, g->net, t, batch), text ? ma_rows(g->c, text, 0, batch) : NULL};
        ma_replay(g->c, forward, g, in, text ? 3 : 2, 0);
        ma_reset(g->c);
    }
    vae_stream *s = g->codec ? open_stream(g) : NULL;
    if (s) vae_next(s, ma_new(g->c, g->type, MA_SHAPE(1, vae_wants(s), n[2], n[3], n[4])));
    vae_close(s);
    return ma_ctx_failed(g->c, e);
}

/* Bytes at the peak on the plan device. 0: failed. */
static size_t planned(const generator *g, ma_device *plan, way w, ma_err *e) {
    generator t = *g;
    size_t most = 0;
    t.dev = plan;
    t.way = w;
    for (int what = w.apart ? TRANSFORMER : BOTH; what && what <= BOTH; what = what == TRANSFORMER ? CODEC : 0) {
        size_t bytes = !load(&t, what, e) && !rehearse(&t, e) ? ma_ctx_memory(t.c).in_all : 0;
        unload(&t);
        if (!bytes) return 0;
        if (bytes > most) most = bytes;
    }
    return most;
}

/* The best that fits, and that the options allow; where none does, the most sparing of them: loading it will say what
 * is missing. What does not matter (pairs without guidance, tiles without a VAE) is off in all. */
static int choose(generator *g, ma_device *plan, ma_err *e) {
    static const way ways[] = {{true, false, false}, {false, false, false}, {true, true, false}, {false, true, false},
                               {true, false, true},  {false, false, true},  {true, true, true},  {false, true, true}};
    const size_t room = plan->free_bytes;
    for (size_t k = 0; k < sizeof ways / sizeof *ways; k++) {
        const way w = ways[k];
        if (guided(g) ? g->o.paired == (w.paired ? GENERATE_OFF : GENERATE_ON) : w.paired) continue;
        if (has_vae(g) ? g->o.tiles == (w.tiles ? GENERATE_OFF : GENERATE_ON) : w.tiles || w.apart) continue;
        g->way = w;
        const size_t needs = planned(g, plan, w, e);
        if (!needs) return -1;
        if (!room || needs <= room) return 0;
    }
    return 0;
}

/* ---- life ---- */

generator *generator_open(ma_device *dev, ma_device *plan, ma_type type, const char *dir, const char *transformer,
                          const ma_pipeline *pipe, const generate_options *o, ma_err *e) {
    generator *g = ma_alloc(1, sizeof *g);
    if (!g) {
        ma_fail(e, MA_MEMORY, "%s: out of memory", dir);
        return NULL;
    }
    *g = (generator){.dev = dev, .type = type, .pipe = *pipe, .o = *o};
    g->count = (size_t)(o->shape[1] * o->shape[2] * o->shape[3] * o->shape[4]);
    g->w[0] = ma_pipeline_weights(dir, transformer, e);
    g->w[1] = g->w[0] && has_vae(g) ? ma_pipeline_part(dir, "vae", e) : NULL;
    plan->free_bytes = dev->free_bytes;
    if (g->w[0] && (g->w[1] || !has_vae(g)) && !choose(g, plan, e)) return g;
    generator_close(g);
    return NULL;
}

void generator_close(generator *g) {
    if (!g) return;
    unload(g);
    for (int k = 0; k < 2; k++) ma_weights_close(g->w[k]);
    ma_release(g);
}

const char *generator_way(const generator *g, char out[160]) {
    const way w = g->way;
    snprintf(out, 160, "%s, decoded %s%s",
             !guided(g) ? "no guidance"
             : w.paired ? "guidance in one pass"
                        : "guidance in two passes",
             w.tiles ? "in tiles" : "whole", w.apart ? ", one network loaded at a time" : "");
    return out;
}

int generator_load(generator *g, ma_err *e) {
    return need(g, TRANSFORMER, e);
}

int generator_rehearse(generator *g, ma_err *e) {
    return need(g, TRANSFORMER, e) || rehearse(g, e) ? -1 : 0;
}

ma_ctx *generator_context(const generator *g) {
    return g->c;
}

int64_t generator_parameters(const generator *g) {
    return g->p[0] ? ma_params_count(g->p[0]) : 0;
}

const ma_weights *generator_weights(const generator *g, bool codec) {
    return g->w[codec];
}
