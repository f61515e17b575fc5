/* ma-probe: how well labels are read out of a feature member by a linear probe, and how much of the features' variance
 * they explain: what an encoder's features, or their motion subspace, know of colour, texture, kind of motion.
 *
 * A sample's features (…,D) become one row: the mean over its tokens, or over those where an object is seen, or one of
 * them. A label is what a path into KEY.json leads to; texts are classes, numbers are regressed. Limits: the rows of
 * all samples are held. Traps: standardised by the training samples alone. By that what is a thousandth of the features
 * is read as well as what is most of them, so a score says that something is there, and the share how large it is.
 */
#include "../common/linear.h"
#include "../common/rng.h"
#include "../common/stage.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 16, CLASSES = 256 }; /* labels; texts that one may have */
enum { MEAN, MEAN_DEVIATION, TOKEN };

static const char *features = "videomae", *track;
static int pooling;
static ma_clip_size clip;
static ma_list labels, tests;

static const ma_opt options[] = {
    {"features", 0, MA_OPT_TEXT, &features, "MEMBER", "what is probed, KEY.MEMBER.npy (default videomae)", 0, 0},
    {"pool", 0, MA_OPT_CHOICE, &pooling, "mean|mean-deviation|token",
     "what a sample's tokens become: their mean (default), mean and deviation, or one of them, drawn", 0, 0},
    {"at", 0, MA_OPT_TEXT, &track, "PATH", "only tokens where points lie, a frame each: as ma-toy.balls.0.path", 0, 0},
    {"clip", 0, MA_OPT_CLIP, &clip, "FxHxW", "--at: the clip that they are pixels of", 0, 0},
    {"label", 'l', MA_OPT_LIST, &labels, "PATH", "what is read out: a path into KEY.json, as ma-toy.wall; repeatable",
     0, 0},
    {"test", 't', MA_OPT_LIST, &tests, "FILE", "samples to measure on; may be repeated", 0, 0},
    {0},
};
static ma_cli cli = {.name = "ma-probe",
                     .does = "measures what a linear probe reads out of features",
                     .args = "[INPUT]…",
                     .opts = options};

/* A label's value in a sample. */
typedef struct value {
    char *text; /* NULL: a number */
    double number;
} value;

/* Samples, pooled. */
typedef struct set {
    int64_t n, wide; /* wide: D, or 2·D with deviations */
    ma_buf x;        /* double (n, wide) */
    ma_buf labels;   /* value (n, labels) */
} set;

static double *row_of(const set *s, int64_t k) {
    return (double *)(void *)s->x.data + k * s->wide;
}

static value *label_of(const set *s, int64_t k, int label) {
    return (value *)(void *)s->labels.data + k * labels.n + label;
}

static void set_free(set *s) {
    for (int64_t k = 0; k < s->n; k++)
        for (int l = 0; l < labels.n; l++) free(label_of(s, k, l)->text);
    ma_buf_free(&s->x);
    ma_buf_free(&s->labels);
}

/* ---- reading ---- */

/* What a path leads to: names of objects, numbers into arrays, dots between. NULL: nothing. */
static const cJSON *follow(const cJSON *at, const char *path) {
    char word[128];
    for (; at && *path; path += strcspn(path, "."), path += *path == '.') {
        const size_t n = strcspn(path, ".");
        if (!n || n >= sizeof word) return NULL;
        memcpy(word, path, n);
        word[n] = 0;
        if (!cJSON_IsArray(at))
            at = cJSON_GetObjectItemCaseSensitive(at, word);
        else
            at = strspn(word, "0123456789") == n && n < 10 ? cJSON_GetArrayItem(at, atoi(word)) : NULL;
    }
    return at;
}

static int read_label(ma_sample *s, const char *path, value *v, ma_err *why) {
    const cJSON *json = ma_sample_json(s, why), *at = json ? follow(json, path) : NULL;
    if (!json) return -1;
    if (!at) return ma_fail(why, MA_MISSING, "%s: KEY.json has no %s", s->key, path);
    if (cJSON_IsNumber(at)) v->number = at->valuedouble;
    if (cJSON_IsString(at)) v->text = ma_strdup(at->valuestring);
    if (cJSON_IsBool(at)) v->text = ma_strdup(cJSON_IsTrue(at) ? "true" : "false");
    if (!cJSON_IsNumber(at) && !cJSON_IsString(at) && !cJSON_IsBool(at))
        return ma_fail(why, MA_SHAPE, "%s: KEY.json's %s is neither text nor number", s->key, path);
    return cJSON_IsNumber(at) || v->text ? 0 : ma_fail(why, MA_MEMORY, "%s: out of memory", s->key);
}

/* Which of the tokens (T,H,W) lie under the points of --at, one a time step, that of its first frame. Frames that
 * whole steps leave over are dropped at the front, as ma-extract does. Returns how many; -1: error. */
static int64_t tokens_on_track(ma_sample *s, const int64_t n[3], int64_t *which, ma_err *why) {
    const cJSON *json = ma_sample_json(s, why), *points = json ? follow(json, track) : NULL;
    const int64_t step = clip.frames / n[0], skip = step ? clip.frames % n[0] : 0;
    int64_t many = 0;
    if (!json) return -1;
    if (!cJSON_IsArray(points) || cJSON_GetArraySize(points) != clip.frames)
        return ma_fail(why, MA_SHAPE, "%s: KEY.json's %s is no array of %lld points", s->key, track,
                       (long long)clip.frames);
    if (!step)
        return ma_fail(why, MA_SHAPE, "%s: %lld time steps of %lld frames", s->key, (long long)n[0],
                       (long long)clip.frames);
    for (int64_t t = 0; t < n[0]; t++) {
        const cJSON *point = cJSON_GetArrayItem(points, (int)(skip + t * step));
        const cJSON *x = cJSON_GetArrayItem(point, 0), *y = cJSON_GetArrayItem(point, 1);
        if (!cJSON_IsNumber(x) || !cJSON_IsNumber(y))
            return ma_fail(why, MA_SHAPE, "%s: KEY.json's %s: not all are points [x, y]", s->key, track);
        const double column = x->valuedouble / (double)clip.width, row = y->valuedouble / (double)clip.height;
        if (column < 0 || column >= 1 || row < 0 || row >= 1) continue; // outside of the picture
        which[many++] = (t * n[1] + (int64_t)(row * (double)n[1])) * n[2] + (int64_t)(column * (double)n[2]);
    }
    return many ? many : ma_fail(why, MA_MISSING, "%s: %s is outside of the picture all along", s->key, track);
}

/* Which of a sample's tokens are pooled. Returns how many; -1: error. */
static int64_t choose_tokens(ma_sample *s, const ma_array *a, int64_t *which, ma_err *why) {
    const int64_t tokens = (int64_t)ma_array_count(a) / a->n[a->nd - 1];
    int64_t many = tokens;
    for (int64_t k = 0; k < tokens; k++) which[k] = k;
    if (track) many = tokens_on_track(s, a->n, which, why);
    if (pooling != TOKEN || many < 0) return many;
    ma_rng draw = ma_rng_make((uint64_t)cli.common.seed, s->key, 0, MA_RNG_ORDER);
    which[0] = which[ma_rng_below(&draw, many)];
    return 1;
}

/* Mean, and where it is asked for deviation, of each of D dimensions over some tokens: x (…,D) → out (D) or (2,D). */
static void pool(const float *x, const int64_t *which, int64_t many, int64_t width, double *out) {
    for (int64_t k = 0; k < many; k++)
        for (int64_t d = 0; d < width; d++) out[d] += x[which[k] * width + d] / (double)many;
    if (pooling != MEAN_DEVIATION) return;
    for (int64_t k = 0; k < many; k++)
        for (int64_t d = 0; d < width; d++) out[width + d] += pow(x[which[k] * width + d] - out[d], 2);
    for (int64_t d = 0; d < width; d++) out[width + d] = sqrt(out[width + d] / (double)many);
}

/* The row of a sample, whose features are a, onto the end of s->x. */
static int add_row(set *s, ma_sample *from, const ma_array *a, ma_err *why) {
    const int64_t width = a->n[a->nd - 1], wide = pooling == MEAN_DEVIATION ? 2 * width : width;
    float *x = ma_array_f32(a, why);
    double *row = ma_alloc((size_t)wide, sizeof *row);
    int64_t *which = ma_alloc(ma_array_count(a) / (size_t)width, sizeof *which);
    int rc = x ? 0 : -1;
    if (x && !(row && which)) rc = ma_fail(why, MA_MEMORY, "%s: out of memory", from->key);
    const int64_t many = rc ? -1 : choose_tokens(from, a, which, why);
    if (many < 0) rc = -1;
    if (!rc) pool(x, which, many, width, row);
    for (int64_t d = 0; d < wide && !rc; d++)
        if (!isfinite(row[d])) rc = ma_fail(why, MA_NOTFINITE, "%s: %s holds NaN or infinity", from->key, features);
    if (!rc && ma_buf_add(&s->x, row, (size_t)wide * sizeof *row))
        rc = ma_fail(why, MA_MEMORY, "%s: out of memory", from->key);
    if (!rc) s->wide = wide;
    ma_release(x);
    ma_release(row);
    ma_release(which);
    return rc;
}

/* The features of a sample. The first one settles their width. */
static int read_features(set *s, ma_sample *from, ma_err *why) {
    char member[80], shape[160];
    ma_array a = {0};
    snprintf(member, sizeof member, "%s.npy", features);
    if (ma_sample_array(from, member, &a, why)) return -1;
    const int64_t width = a.nd ? a.n[a.nd - 1] : 0, wide = pooling == MEAN_DEVIATION ? 2 * width : width;
    int rc = 0;
    if (a.nd < 2 || !ma_array_count(&a) || (a.type != MA_F16 && a.type != MA_F32) || (s->wide && s->wide != wide))
        rc = ma_fail(why, MA_SHAPE, "%s: %s is %s %s; tokens of %s floats are needed", from->key, member,
                     ma_type_name(a.type), ma_shape_text(shape, a.nd, a.n), s->wide ? "as many" : "some");
    if (!rc && track && a.nd != 4)
        rc = ma_fail(why, MA_SHAPE, "%s: %s is %s; --at needs tokens (T,H,W,D)", from->key, member,
                     ma_shape_text(shape, a.nd, a.n));
    if (!rc) rc = add_row(s, from, &a, why);
    ma_array_free(&a);
    return rc;
}

/* A label is of one kind in all samples: `like`, of the first one. */
static int add(set *s, ma_sample *from, const value *like, ma_err *why) {
    value v[MOST] = {0};
    int rc = 0;
    for (int l = 0; l < labels.n && !rc; l++) {
        rc = read_label(from, labels.at[l], &v[l], why);
        if (!rc && like && !like[l].text != !v[l].text)
            rc = ma_fail(why, MA_SHAPE, "%s: KEY.json's %s is a %s, unlike the first sample's", from->key, labels.at[l],
                         v[l].text ? "text" : "number");
    }
    if (!rc && ma_buf_reserve(&s->labels, (size_t)labels.n * sizeof *v))
        rc = ma_fail(why, MA_MEMORY, "%s: out of memory", from->key);
    if (!rc) rc = read_features(s, from, why);
    if (!rc) {
        ma_buf_add(&s->labels, v, (size_t)labels.n * sizeof *v); // there is room
        s->n++;
        return 0;
    }
    for (int l = 0; l < labels.n; l++) free(v[l].text);
    return -1;
}

/* All samples, or the first `most` good ones, of the inputs. train: whose kinds of labels, and whose width, they must
 * have; NULL: none yet. */
static int read_set(set *s, const ma_list *inputs, const set *train, int64_t most, ma_tally *tally, ma_err *e) {
    ma_cli these = cli;
    these.inputs = *inputs;
    if (train) s->wide = train->wide;
    ma_inputs *in = ma_inputs_open(&these, false, e);
    int got = in ? 1 : -1, rc = in ? 0 : -1;
    while (got && !rc && s->n < most) {
        ma_err why = {0};
        ma_sample *from = NULL;
        got = ma_inputs_next(in, &from, &why);
        if (ma_stopped) rc = ma_fail(e, MA_IO, "stopped");
        const value *like = train ? label_of(train, 0, 0) : s->n ? label_of(s, 0, 0) : NULL;
        if (got > 0 && !rc && !add(s, from, like, &why)) tally->good++;
        if (why.reason != MA_OK && !rc && ma_tally_bad(tally, from ? from->key : NULL, &why))
            rc = ma_fail(e, why.reason, "too many bad samples");
        ma_sample_free(from);
    }
    ma_inputs_close(in);
    if (!rc && !s->n) rc = ma_fail(e, MA_MISSING, "no sample to %s", train ? "measure on" : "learn from");
    return rc;
}

/* ---- probing ---- */

typedef struct classes {
    const char *name[CLASSES];
    int64_t count[CLASSES]; /* of the training samples */
    int n, most;            /* most: the class that has most of them */
} classes;

static int class_of(const classes *c, const char *text) {
    for (int k = 0; k < c->n; k++)
        if (!strcmp(c->name[k], text)) return k;
    return -1;
}

static int find_classes(classes *c, const set *train, int label, ma_err *e) {
    for (int64_t k = 0; k < train->n; k++) {
        const char *text = label_of(train, k, label)->text;
        int at = class_of(c, text);
        if (at < 0 && c->n == CLASSES)
            return ma_fail(e, MA_UNSUPPORTED, "%s: more than %d classes", labels.at[label], CLASSES);
        if (at < 0) c->name[at = c->n++] = text;
        if (++c->count[at] > c->count[c->most]) c->most = at;
    }
    return 0;
}

/* What the probe shall say of every training sample: one number, or a one among zeros. (n, out) */
static double *targets(const set *train, int label, const classes *c, int64_t out, ma_err *e) {
    double *y = ma_alloc((size_t)train->n, (size_t)out * sizeof *y);
    if (!y) ma_fail(e, MA_MEMORY, "out of memory");
    for (int64_t k = 0; y && k < train->n; k++) {
        const value *v = label_of(train, k, label);
        y[k * out + (c->n ? class_of(c, v->text) : 0)] = c->n ? 1 : v->number;
    }
    return y;
}

static int highest(const double *y, int64_t n) {
    int at = 0;
    for (int k = 1; k < n; k++)
        if (y[k] > y[at]) at = k;
    return at;
}

/* The share of the training rows' variance that a label explains (η²): that of its classes' means, or of what is linear
 * in its numbers. y: columns of targets (n, out), which are orthogonal, so that what each explains adds up. */
static int explained(const set *train, const ma_ridge *r, const double *y, bool number, double *share, ma_err *e) {
    double of_all = 0, of_label = 0;
    double *sum = ma_alloc((size_t)r->out, (size_t)train->wide * sizeof *sum), size[CLASSES] = {0};
    if (!sum) return ma_fail(e, MA_MEMORY, "out of memory");
    for (int64_t k = 0; k < train->n; k++) {
        const double *x = row_of(train, k);
        for (int64_t d = 0; d < train->wide; d++) of_all += pow(x[d] - r->mean[d], 2);
        for (int64_t j = 0; j < r->out; j++) {
            const double at = y[k * r->out + j] - (number ? r->bias[j] : 0);
            size[j] += at * at;
            for (int64_t d = 0; d < train->wide && at != 0; d++) sum[j * train->wide + d] += at * (x[d] - r->mean[d]);
        }
    }
    for (int64_t j = 0; j < r->out; j++)
        for (int64_t d = 0; d < train->wide && size[j] > 0; d++) of_label += pow(sum[j * train->wide + d], 2) / size[j];
    *share = of_all > 0 ? of_label / of_all : 0;
    ma_release(sum);
    return 0;
}

/* Prints a label's line. Numbers: R² against the training samples' mean, whose own is 0 then. */
static void measure(const ma_ridge *r, const set *test, int label, const classes *c, double share) {
    double y[CLASSES], right = 0, major = 0, error = 0, spread = 0;
    for (int64_t k = 0; k < test->n; k++) {
        const value *v = label_of(test, k, label);
        ma_ridge_predict(r, row_of(test, k), y);
        if (c->n) {
            const int at = class_of(c, v->text);
            right += highest(y, r->out) == at;
            major += c->most == at;
        } else {
            error += pow(v->number - y[0], 2);
            spread += pow(v->number - r->bias[0], 2);
        }
    }
    const double n = (double)test->n, r2 = spread > 0 ? 1 - error / spread : 0;
    printf("%s %s %d %.4f %.4f %g %.4f\n", labels.at[label], c->n ? "accuracy" : "r2", c->n, c->n ? major / n : 0,
           c->n ? right / n : r2, r->strength, share);
}

static int probe(const set *train, const set *test, int label, ma_err *e) {
    classes c = {0};
    ma_ridge r = {0};
    const bool text = label_of(train, 0, label)->text != NULL;
    if (text && find_classes(&c, train, label, e)) return -1;
    const int64_t out = text ? c.n : 1;
    double *y = targets(train, label, &c, out, e);
    int rc = y ? ma_ridge_fit(&r, row_of(train, 0), y, train->n, train->wide, out, 0, e) : -1;
    double share = 0;
    if (!rc) rc = explained(train, &r, y, !c.n, &share, e);
    if (!rc) measure(&r, test, label, &c, share);
    ma_ridge_free(&r);
    ma_release(y);
    return rc;
}

/* --dry-run, of the first sample. */
static int plan(const set *first) {
    const double each = (double)first->wide * sizeof(double);
    printf("%s: %lld numbers a sample, %.1f KB of memory\n", features, (long long)first->wide, each / 1e3);
    for (int l = 0; l < labels.n; l++)
        printf("%s: %s\n", labels.at[l], label_of(first, 0, l)->text ? "classes" : "numbers");
    return 0;
}

static int run(ma_tally *tally, ma_err *e) {
    set train = {0}, test = {0};
    if (!labels.n || labels.n > MOST) return ma_fail(e, MA_USAGE, "-l PATH must be given, %d times at most", MOST);
    if (strlen(features) > 64) return ma_fail(e, MA_USAGE, "--features: name too long");
    if (!track != !ma_cli_given(&cli, "clip")) return ma_fail(e, MA_USAGE, "--at PATH and --clip FxHxW go together");
    if (!tests.n && !cli.common.dry_run) return ma_fail(e, MA_USAGE, "-t FILE must be given: samples to measure on");
    int rc = read_set(&train, &cli.inputs, NULL, cli.common.dry_run ? 1 : INT64_MAX, tally, e);
    if (!rc && cli.common.dry_run) rc = plan(&train);
    if (!rc && !cli.common.dry_run) rc = read_set(&test, &tests, &train, INT64_MAX, tally, e);
    if (!rc && test.n) printf("label measure classes baseline score ridge share\n");
    for (int l = 0; l < labels.n && !rc && test.n; l++) rc = probe(&train, &test, l, e);
    if (!rc) rc = ma_flush_stdout(e);
    set_free(&train);
    set_free(&test);
    return rc;
}

int main(int argc, char **argv) {
    int rc = ma_cli_parse(&cli, argc, argv, stdout);
    if (rc >= 0) return rc;
    ma_catch_signals();
    ma_err e = {0};
    ma_tally tally = {.cli = &cli};
    run(&tally, &e);
    rc = ma_tally_status(&tally, &e, -1);
    ma_cli_free(&cli);
    return rc;
}
