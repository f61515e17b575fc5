/* ma-extract: frozen encoders over clips and captions. Decodes each sample's clip once and adds a member for every
 * encoder that -e names (common/models/encoder.h): KEY.videomae.npy, KEY.vjepa2.npy, KEY.dinov2.npy (tokens),
 * KEY.latent.npy, KEY.text.npy.
 *
 * Limits: every clip of a run has one size, so that a batch is one tensor; all weights are there at a time.
 * Traps: KEY.json has one entry for all runs of this tool. What an earlier run, with other encoders, made of the same
 * video in the same way stays told there.
 */
#include "../common/clip.h"
#include "../common/context.h"
#include "../common/file.h"
#include "../common/models/encoder.h"
#include "../common/npy.h"
#include "../common/stage.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static ma_list specs;
static int64_t batch = 1;
static const char *empty_text;
static ma_clip_args args = MA_CLIP_DEFAULTS;

static const ma_opt options[] = {
    {"encoder", 'e', MA_OPT_LIST, &specs, "KIND=WHAT",
     "videomae, vjepa2 or dinov2=WEIGHTS[,norm=imagenet|unit][,skip=N][,frames=N][,size=HxW][,layer=N][,heads=N], "
     "vae=DIR[,skip=N][,frames=N][,size=HxW][,tile=none|HxW], t5=DIR[,length=N], or pixel=P",
     0, 0},
    MA_CLIP_OPTIONS(args),
    {"batch", 0, MA_OPT_INT, &batch, "N", "clips or captions per forward pass (default 1)", 1, 1024},
    {"empty-text", 0, MA_OPT_TEXT, &empty_text, "FILE", "write what -e t5 makes of no text, as .npy, and stop", 0, 0},
    {0},
};

static ma_cli cli = {
    .name = "ma-extract",
    .does = "adds the features of frozen encoders to every sample",
    .args = "-e KIND=WHAT [-e KIND=WHAT]… [INPUT]…",
    .opts = options,
    .video = true,
    .presets = true,
};

enum {
    MOST = 16, /* encoders of a run */
    WAVES = 4  /* batches that encoders are given at a time: one is put while another is worked on */
};

typedef struct extract {
    ma_device *dev;
    ma_ctx *ctx;
    encoder *at[MOST]; /* in the order in which they run */
    int n;
    bool sees, reads; /* whether some see clips, read captions */
} extract;

/* A sample on its way. */
typedef struct job {
    ma_clip_job *clip;
    encoder_item item[MOST];
    bool there; /* its members are: nothing is to be done */
} job;

/* Among those of one rank, the order of the command line. */
static void add_encoder(extract *x, encoder *one) {
    int k = x->n++;
    for (; k && encoder_rank(x->at[k - 1]) > encoder_rank(one); k--) x->at[k] = x->at[k - 1];
    x->at[k] = one;
    *(encoder_reads(one) ? &x->reads : &x->sees) = true;
}

static int settle(extract *x, ma_err *e) {
    ma_device *plan = ma_context_plan(&cli, x->dev, e);
    int rc = plan ? 0 : -1;
    for (int k = 0; k < x->n && !rc; k++) rc = encoder_settle(x->at[k], plan, e);
    if (plan != x->dev) ma_device_close(plan);
    return rc;
}

static int open_encoders(extract *x, ma_err *e) {
    if (!specs.n) return ma_fail(e, MA_USAGE, "no encoder: give -e videomae=WEIGHTS, -e pixel=P, or more");
    ma_ctx_lever(x->ctx, "lower --batch, cut a vae's frames with tile=, or run one encoder at a time");
    for (int k = 0; k < specs.n; k++) {
        if (k == MOST) return ma_fail(e, MA_USAGE, "--encoder: more than %d", MOST);
        encoder *one = encoder_open(x->ctx, specs.at[k], &args.size, (uint64_t)cli.common.seed, e);
        if (!one) return -1;
        add_encoder(x, one);
        for (int i = 0; i < x->n; i++)
            if (x->at[i] != one && !strcmp(encoder_member(x->at[i]), encoder_member(one)))
                return ma_fail(e, MA_USAGE, "--encoder: %s and another both make %s", specs.at[k], encoder_member(one));
    }
    return settle(x, e);
}

/* ---- KEY.json */

/* An encoder's options for a sample; what it reads is part of them. */
static cJSON *options_for(const encoder *one, const ma_sample *s) {
    cJSON *o = encoder_options(one);
    const ma_member *text = encoder_reads(one) ? ma_sample_get(s, "txt") : NULL;
    char sha[65];
    if (!text || !o) return o;
    ma_sha_bytes(text->data, text->size, sha);
    cJSON_AddStringToObject(o, "caption", sha);
    return o;
}

static cJSON *make_entry(const extract *x, const ma_sample *s) {
    cJSON *o = x->sees ? ma_clip_options_json(&args) : cJSON_CreateObject(), *w = cJSON_CreateObject();
    bool drawn = false;
    for (int k = 0; k < x->n; k++) {
        const encoder *one = x->at[k];
        cJSON_AddItemToObject(o, encoder_name(one), options_for(one, s));
        if (encoder_weights(one)) cJSON_AddStringToObject(w, encoder_name(one), encoder_weights(one));
        drawn = drawn || encoder_drawn(one);
    }
    cJSON *entry = ma_clip_entry(s, o, w);
    if (drawn) cJSON_AddNumberToObject(entry, "seed", (double)cli.common.seed);
    return entry;
}

/* Whether a and b, where both have the key, say the same. */
static bool agree(const cJSON *a, const cJSON *b, const char *key) {
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(a, key), *y = cJSON_GetObjectItemCaseSensitive(b, key);
    return !x || !y || cJSON_Compare(x, y, true);
}

static bool makes(const extract *x, const char *member) {
    for (int k = 0; k < x->n; k++)
        if (!strcmp(encoder_member(x->at[k]), member)) return true;
    return false;
}

/* Copies what `from` says under the key, if `to` has nothing there. */
static void adopt_key(cJSON *to, const cJSON *from, const char *key) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(from, key);
    if (v && to && !cJSON_GetObjectItemCaseSensitive(to, key)) cJSON_AddItemToObject(to, key, cJSON_Duplicate(v, true));
}

/* Adds to the entry what the sample's own says of encoders that are not of this run, if their members are there and
 * both runs took the same clip. */
static void adopt(const extract *x, ma_sample *s, cJSON *entry) {
    const cJSON *old = cJSON_GetObjectItemCaseSensitive(ma_sample_json(s, NULL), cli.name), *one;
    const cJSON *was = cJSON_GetObjectItemCaseSensitive(old, "options");
    cJSON *is = cJSON_GetObjectItemCaseSensitive(entry, "options");
    if (!agree(entry, old, "version") || !agree(entry, old, "input") || !agree(entry, old, "seed")) return;
    cJSON_ArrayForEach(one, was) if (!encoder_kind_member(one->string) && !agree(is, was, one->string)) return;
    cJSON_ArrayForEach(one, was) {
        const char *member = encoder_kind_member(one->string);
        if (member && (makes(x, member) || !ma_sample_get(s, member))) continue;
        adopt_key(is, was, one->string);
        adopt_key(cJSON_GetObjectItemCaseSensitive(entry, "weights"), cJSON_GetObjectItemCaseSensitive(old, "weights"),
                  one->string);
    }
    adopt_key(entry, old, "seed");
    if (!x->sees) adopt_key(entry, old, "clip");
}

static bool have_all(const extract *x, ma_sample *s, const cJSON *entry) {
    for (int k = 0; k < x->n; k++)
        if (!ma_entry_same(&cli, s, cli.name, encoder_member(x->at[k]), entry)) return false;
    return true;
}

/* ---- the stream */

/* A caption that is cut: the first is told of, the others with -v. */
static void note_cut(const char *key, const encoder_item *item, const encoder *one) {
    static atomic_bool said;
    int64_t shape[4];
    encoder_shape(one, shape);
    if (item->tokens <= shape[0]) return;
    bool first = !atomic_exchange(&said, true);
    ma_say(&cli, first ? 1 : 2, "%s.txt: %lld tokens, cut to %lld%s", key, (long long)item->tokens, (long long)shape[0],
           first ? "; -v tells of others" : "");
}

static void take(const extract *x, const ma_sample *s, job *j, ma_err *why) {
    const ma_member *text = ma_sample_get(s, "txt");
    if (x->reads && !text) ma_fail(why, MA_MISSING, "%s.txt: no caption", s->key);
    for (int k = 0; k < x->n && !why->reason; k++) {
        const encoder *one = x->at[k];
        encoder_source from = {.key = s->key};
        if (!encoder_reads(one)) {
            from.clip = &j->clip->clip;
        } else {
            from.text = text->data ? text->data : "";
            from.size = text->size;
        }
        if (!encoder_take(one, &from, &j->item[k], why) && encoder_reads(one)) note_cut(s->key, &j->item[k], one);
    }
}

static void *prepare(void *self, ma_sample **s, ma_err *why) {
    const extract *x = self;
    job *j = calloc(1, sizeof *j);
    cJSON *entry = j ? make_entry(x, *s) : NULL;
    if (!j) {
        ma_fail(why, MA_MEMORY, "%s: out of memory", (*s)->key);
        return NULL;
    }
    if (entry) adopt(x, *s, entry);
    j->there = entry && have_all(x, *s, entry);
    j->clip = ma_clip_begin(&cli, &args, s, entry, j->there || !x->sees, why);
    if (*s && !why->reason && !j->there) take(x, *s, j, why);
    return j;
}

static int work(void *self, ma_sample **s, void **pre, int n, ma_err *why, ma_err *e) {
    extract *x = self;
    encoder_item **item = ma_alloc((size_t)n, sizeof *item);
    int rc = item ? 0 : ma_fail(e, MA_MEMORY, "out of memory");
    for (int i = 0; i < x->n && !rc; i++) {
        int todo = 0;
        for (int k = 0; k < n; k++) {
            job *j = pre[k];
            if (!j->there) item[todo++] = &j->item[i];
        }
        rc = encoder_run(x->at[i], item, todo, (int)batch, e);
    }
    ma_release(item);
    (void)s, (void)why;
    return rc;
}

static void finish(void *self, ma_sample *s, void *pre, ma_err *why) {
    const extract *x = self;
    job *j = pre;
    if (j->there) return;
    for (int k = 0; k < x->n && !why->reason; k++) encoder_put(x->at[k], &j->item[k], s, why);
    if (x->sees) {
        ma_clip_finish(&cli, s, j->clip, why);
    } else if (!why->reason) {
        ma_entry_put(s, cli.name, j->clip->entry, why);
        j->clip->entry = NULL;
    }
}

static void release(void *self, void *pre) {
    job *j = pre;
    for (int k = 0; k < MOST; k++) encoder_drop(&j->item[k]);
    if (j->clip) ma_clip_release(self, j->clip);
    free(j);
}

static size_t bytes(const void *pre) {
    const job *j = pre;
    size_t n = j->clip ? ma_clip_bytes(j->clip) : 0;
    for (int k = 0; k < MOST; k++) n += j->item[k].bytes;
    return n;
}

/* ---- without a stream */

/* --dry-run: what would be computed, and in how much memory. */
static int plan(extract *x, ma_err *e) {
    char memory[160];
    ma_buf text = {0};
    int rc = 0;
    for (int k = 0; k < x->n && !rc; k++) rc = encoder_plan(x->at[k], (int)batch, &text, e);
    if (!rc) printf("%smemory: %s\n", text.data ? text.data : "", ma_memory_text(memory, x->ctx));
    ma_buf_free(&text);
    return rc ? rc : ma_flush_stdout(e);
}

/* --empty-text: what guidance and dropped prompts take for a text. */
static int write_empty(extract *x, ma_err *e) {
    encoder *one = x->n && encoder_reads(x->at[x->n - 1]) ? x->at[x->n - 1] : NULL; /* the last rank */
    if (!one) return ma_fail(e, MA_USAGE, "--empty-text goes with -e t5=DIR");
    encoder_item item = {0}, *items[] = {&item};
    ma_sample *s = ma_sample_new("empty");
    int rc = s ? encoder_take(one, &(encoder_source){.key = s->key, .text = ""}, &item, e)
               : ma_fail(e, MA_MEMORY, "out of memory");
    if (!rc) rc = encoder_run(one, items, 1, 1, e) || encoder_put(one, &item, s, e) ? -1 : 0;
    const ma_member *m = rc ? NULL : ma_sample_get(s, encoder_member(one));
    if (m) rc = ma_write_file(empty_text, m->data, m->size, e);
    encoder_drop(&item);
    ma_sample_free(s);
    return rc;
}

int main(int argc, char **argv) {
    int rc = ma_cli_parse(&cli, argc, argv, stdout);
    if (rc >= 0) return rc;
    if (cli.common.print_list) return ma_inputs_print(&cli, stdout);
    ma_err e = {0};
    extract x = {0};
    bool stream = !cli.common.dry_run && !empty_text;
    rc = ma_context_open(&cli, &x.dev, &x.ctx, &e) || open_encoders(&x, &e) ? -1 : 0;
    if (!rc && !stream) rc = cli.common.dry_run ? plan(&x, &e) : write_empty(&x, &e);
    rc = ma_exit_status(&cli, &e, -1);
    if (!rc && stream)
        rc = ma_stage_run(&(ma_stage){.cli = &cli,
                                      .self = &x,
                                      .prepare = prepare,
                                      .work = work,
                                      .finish = finish,
                                      .release = release,
                                      .bytes = bytes,
                                      .batch = (int)batch * WAVES,
                                      .video = true},
                          STDOUT_FILENO);
    for (int k = 0; k < x.n; k++) encoder_close(x.at[k]);
    ma_ctx_free(x.ctx);
    ma_device_close(x.dev);
    ma_cli_free(&cli);
    return rc;
}
