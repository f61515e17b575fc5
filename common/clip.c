/* clip: a sample's video as the tools see it; see clip.h.
 *
 * Trap: the fingerprint in KEY.json is of what was asked for; what came out of decoding stands beside it, under "clip".
 */
#include "clip.h"
#include "file.h"
#include "stage.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const fits[] = {"crop", "pad", "stretch"}, *const shorts[] = {"error", "pad", "loop", "skip"};

const ma_member *ma_clip_member(const ma_sample *s) {
    static const char *const ext[] = {"mp4", "mkv", "webm", "mov", "avi", "sample.mp4"};
    const ma_member *m = NULL;
    for (size_t k = 0; !m && k < sizeof ext / sizeof *ext; k++) m = ma_sample_get(s, ext[k]);
    return m;
}

int ma_clip_decode(const ma_sample *s, const ma_clip_args *a, ma_clip *out, ma_err *e) {
    const ma_member *m = ma_clip_member(s);
    if (!m) return ma_fail(e, MA_MISSING, "%s: no video: none of mp4, mkv, webm, mov, avi, sample.mp4", s->key);
    ma_clip_opts o = {.size = a->size,
                      .start = a->start,
                      .fit = (ma_fit)a->fit,
                      .when_short = (ma_short)a->when_short,
                      .first = a->first,
                      .every = a->every};
    char *name = ma_format("%s.%s", s->key, m->ext);
    int rc = ma_video_read(m->data, m->size, name ? name : s->key, &o, out, e);
    free(name);
    return rc;
}

/* ---- KEY.json */

/* The object, or nothing of it where memory ran out on the way. */
static cJSON *whole(cJSON *object, bool good) {
    if (good) return object;
    cJSON_Delete(object);
    return NULL;
}

cJSON *ma_clip_options_json(const ma_clip_args *a) {
    cJSON *o = cJSON_CreateObject();
    char text[128];
    int n = snprintf(text, sizeof text, "%lldx%lldx%lld", (long long)a->size.frames, (long long)a->size.height,
                     (long long)a->size.width);
    if (a->size.fps > 0) snprintf(text + n, sizeof text - (size_t)n, "@%g", a->size.fps);
    return whole(o, cJSON_AddStringToObject(o, "clip", text) && cJSON_AddNumberToObject(o, "start", a->start) &&
                        cJSON_AddStringToObject(o, "fit", fits[a->fit]) &&
                        cJSON_AddStringToObject(o, "short", shorts[a->when_short]));
}

static bool add_numbers(cJSON *o, const char *name, const double *v, int64_t n) {
    cJSON *list = cJSON_AddArrayToObject(o, name);
    for (int64_t k = 0; list && k < n; k++)
        if (!cJSON_AddItemToArray(list, cJSON_CreateNumber(v[k]))) return false;
    return list;
}

/* The account of frames: indices in the source, and times to a microsecond. */
static bool add_frames(cJSON *o, const ma_clip *c) {
    double *v = ma_alloc((size_t)c->frames, sizeof *v);
    if (!v) return false;
    for (int64_t k = 0; k < c->frames; k++) v[k] = (double)c->index[k];
    bool good = add_numbers(o, "frames", v, c->frames);
    for (int64_t k = 0; k < c->frames; k++) v[k] = round(c->time[k] * 1e6) / 1e6;
    good = good && add_numbers(o, "times", v, c->frames);
    ma_release(v);
    return good;
}

static cJSON *clip_json(const ma_clip *c) {
    cJSON *o = cJSON_CreateObject();
    double size[] = {(double)c->height, (double)c->width}, source[] = {c->source_height, c->source_width};
    double crop[] = {(double)c->crop[0], (double)c->crop[1], (double)c->crop[2], (double)c->crop[3]};
    return whole(o, add_frames(o, c) && cJSON_AddNumberToObject(o, "fps", c->fps) && add_numbers(o, "size", size, 2) &&
                        add_numbers(o, "source", source, 2) && add_numbers(o, "crop", crop, 4) &&
                        cJSON_AddNumberToObject(o, "rotation", c->rotation));
}

cJSON *ma_clip_entry(const ma_sample *s, cJSON *options, cJSON *weights) {
    const ma_member *m = ma_clip_member(s);
    cJSON *o = cJSON_CreateObject();
    char sha[65] = "";
    if (m && m->sha[0])
        memcpy(sha, m->sha, sizeof sha);
    else if (m)
        ma_sha_bytes(m->data, m->size, sha);
    bool good = cJSON_AddStringToObject(o, "version", MA_VERSION);
    if (!cJSON_AddItemToObject(o, "options", options)) {
        cJSON_Delete(options);
        good = false;
    }
    if (!cJSON_AddItemToObject(o, "weights", weights)) {
        cJSON_Delete(weights);
        good = false;
    }
    return whole(o, good && cJSON_AddStringToObject(o, "input", sha));
}

/* ---- jobs */

/* --short skip: a clip too short is left out with a word to those who ask for words. */
static void skip_short(const ma_cli *cli, const ma_clip_args *a, ma_sample **s, ma_err *why) {
    if (why->reason != MA_SHORT || a->when_short != MA_SHORT_SKIP) return;
    ma_say(cli, 2, "%s: left out", why->text);
    ma_err_clear(why);
    ma_sample_free(*s);
    *s = NULL;
}

ma_clip_job *ma_clip_begin(const ma_cli *cli, const ma_clip_args *a, ma_sample **s, cJSON *entry, bool there,
                           ma_err *why) {
    ma_clip_job *j = calloc(1, sizeof *j);
    if (!j || !entry) {
        ma_fail(why, MA_MEMORY, "%s: out of memory", (*s)->key);
        cJSON_Delete(entry);
        free(j);
        return NULL;
    }
    j->entry = entry;
    if (!there && ma_clip_decode(*s, a, &j->clip, why)) skip_short(cli, a, s, why);
    return j;
}

void ma_clip_finish(const ma_cli *cli, ma_sample *s, ma_clip_job *j, ma_err *why) {
    if (!j->clip.rgb || why->reason) return;
    cJSON *account = clip_json(&j->clip), *entry = j->entry;
    j->entry = NULL;
    if (cJSON_AddItemToObject(entry, "clip", account)) {
        ma_entry_put(s, cli->name, entry, why);
        return;
    }
    cJSON_Delete(account);
    cJSON_Delete(entry);
    ma_fail(why, MA_MEMORY, "%s: out of memory", s->key);
}

void ma_clip_release(void *self, void *job) {
    ma_clip_job *j = job;
    (void)self;
    cJSON_Delete(j->entry);
    ma_clip_free(&j->clip);
    free(j);
}

size_t ma_clip_bytes(const void *job) {
    const ma_clip *c = &((const ma_clip_job *)job)->clip;
    return (size_t)(c->frames * c->height * c->width) * 3;
}
