/* inputs: the samples that a command line names: shards, and video files, each a sample of its own with the caption
 * that lies beside it. Limits: a video file of at most 4 GiB. */
#include "inputs.h"
#include "file.h"
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define FILE_MOST ((size_t)4 << 30) /* a video file, bytes */

struct ma_inputs {
    const ma_cli *cli;
    bool video;
    int at;            /* the next input */
    ma_reader *reader; /* of the shard that is being read */
};

static bool is_video(const char *path) {
    static const char *const ends[] = {".mp4", ".mkv", ".webm", ".mov", ".avi"};
    const char *dot = strrchr(path, '.');
    for (size_t i = 0; dot && i < sizeof ends / sizeof *ends; i++)
        if (!strcasecmp(dot, ends[i])) return true;
    return false;
}

typedef struct named_key {
    char *key;
    const char *path;
} named_key;

static int by_key(const void *a, const void *b) {
    return strcmp(((const named_key *)a)->key, ((const named_key *)b)->key);
}

/* No two video files may become one sample. Known from the names, so told before hours of work. */
static int check_keys(const ma_cli *cli, ma_err *e) {
    int n = 0, rc = 0;
    named_key *k = calloc((size_t)cli->inputs.n + 1, sizeof *k);
    if (!k) return ma_fail(e, MA_MEMORY, "out of memory");
    for (int i = 0; i < cli->inputs.n && !rc; i++) {
        if (!is_video(cli->inputs.at[i])) continue;
        k[n].path = cli->inputs.at[i];
        if (!(k[n++].key = ma_key_of(cli->inputs.at[i]))) rc = ma_fail(e, MA_MEMORY, "out of memory");
    }
    if (!rc) qsort(k, (size_t)n, sizeof *k, by_key);
    for (int i = 1; i < n && !rc; i++)
        if (!strcmp(k[i - 1].key, k[i].key))
            rc = ma_fail(e, MA_DUPLICATE, "%s and %s would both be sample %s", k[i - 1].path, k[i].path, k[i].key);
    for (int i = 0; i < n; i++) free(k[i].key);
    free(k);
    return rc;
}

ma_inputs *ma_inputs_open(const ma_cli *cli, bool video, ma_err *e) {
    if (!cli->inputs.n && isatty(STDIN_FILENO)) {
        ma_fail(e, MA_USAGE, "no input: name files, or pipe a shard into standard input");
        return NULL;
    }
    if (video && check_keys(cli, e)) return NULL;
    ma_inputs *in = calloc(1, sizeof *in);
    if (in)
        *in = (ma_inputs){.cli = cli, .video = video};
    else
        ma_fail(e, MA_MEMORY, "out of memory");
    return in;
}

/* KEY.json of a sample that begins here: where it came from. */
static int note_source(ma_sample *s, const char *path, const ma_buf *bytes, ma_err *e) {
    const char *slash = strrchr(path, '/');
    char hex[65];
    cJSON *json = ma_sample_json(s, e), *source = json ? cJSON_AddObjectToObject(json, "source") : NULL;
    ma_sha_bytes(bytes->data, bytes->size, hex);
    if (source && cJSON_AddStringToObject(source, "name", slash ? slash + 1 : path) &&
        cJSON_AddStringToObject(source, "sha256", hex))
        return 0;
    return ma_fail(e, MA_MEMORY, "%s: out of memory", path);
}

/* The caption of clips/a.mp4 is clips/a.txt, where there is one. */
static int take_caption(ma_sample *s, const char *path, ma_err *e) {
    ma_buf text = {0};
    char *name = ma_format("%.*s.txt", (int)(strrchr(path, '.') - path), path);
    int rc = name ? 0 : ma_fail(e, MA_MEMORY, "%s: out of memory", path);
    if (name && access(name, F_OK) == 0) {
        rc = ma_read_file(name, FILE_MOST, &text, e);
        if (!rc)
            rc = ma_sample_put(s, "txt", text.data, text.size, e);
        else
            ma_buf_free(&text);
    }
    free(name);
    return rc;
}

static int take_video(ma_sample *s, const char *path, ma_err *e) {
    ma_buf bytes = {0};
    char ext[8] = {0};
    const char *dot = strrchr(path, '.') + 1;
    for (size_t i = 0; i < sizeof ext - 1 && dot[i]; i++) ext[i] = (char)tolower((unsigned char)dot[i]);
    if (!(s->from = ma_strdup(path))) return ma_fail(e, MA_MEMORY, "%s: out of memory", path);
    if (ma_read_file(path, FILE_MOST, &bytes, e) || note_source(s, path, &bytes, e)) {
        ma_buf_free(&bytes);
        return -1;
    }
    if (ma_sample_put(s, ext, bytes.data, bytes.size, e)) return -1;
    return take_caption(s, path, e);
}

static int read_video(const char *path, ma_sample **out, ma_err *e) {
    char *key = ma_key_of(path);
    ma_sample *s = key ? ma_sample_new(key) : NULL;
    free(key);
    if (!s) return ma_fail(e, MA_MEMORY, "%s: out of memory", path);
    if (take_video(s, path, e)) {
        ma_sample_free(s);
        return -1;
    }
    *out = s;
    return 1;
}

int ma_inputs_next(ma_inputs *in, ma_sample **out, ma_err *e) {
    static const char *const standard = "-";
    *out = NULL;
    for (;;) {
        if (in->reader) {
            int rc = ma_reader_next(in->reader, out, e);
            if (rc) return rc;
            ma_reader_close(in->reader);
            in->reader = NULL;
        }
        int n = in->cli->inputs.n ? in->cli->inputs.n : 1;
        if (in->at == n) return 0;
        const char *const *path = in->cli->inputs.n ? &in->cli->inputs.at[in->at] : &standard;
        in->at++;
        if (in->video && is_video(*path)) return read_video(*path, out, e);
        if (!(in->reader = ma_reader_open(path, 1, e))) return -1;
    }
}

void ma_inputs_close(ma_inputs *in) {
    if (!in) return;
    ma_reader_close(in->reader);
    free(in);
}
