/* inputs: see inputs.h. Limits: a video file of at most 4 GiB; what a list or folder names is held whole.
 * Traps minded:
 * - keys depend on the whole of a list or folder, never on the part that --shard takes;
 * - hidden files are not data: copying from a Mac leaves ._a.mp4 beside a.mp4;
 * - links are followed, since data sets are made of them. */
#include "inputs.h"
#include "file.h"
#include "keyset.h"
#include "listing.h"
#include <ctype.h>
#include <errno.h>
#include <fts.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_MOST ((size_t)4 << 30) /* a video file, bytes */

/* A video or a shard. */
typedef struct entry {
    char *path;    /* "-": standard input */
    char *key;     /* NULL: a shard */
    char *caption; /* NULL: look beside the video */
    int64_t line;  /* of --list; 0: named otherwise */
} entry;

struct ma_inputs {
    const ma_cli *cli;
    bool video;
    entry *at;
    size_t n, next, end; /* --shard: at[next .. end) are to be read */
    ma_reader *reader;   /* of the shard that is being read */
    _Atomic bool quit;
    bool apart;     /* and what settling samples takes, not reading: */
    size_t file;    /* they are of this entry */
    ma_keyset seen; /* and have had these keys, */
    char *last;     /* this one last */
    bool expected;  /* captions are: there is a list, a folder, or a caption */
    int64_t no_caption, no_video;
};

static bool is_video(const char *path) {
    static const char *const ends[] = {".mp4", ".mkv", ".webm", ".mov", ".avi"};
    const char *dot = strrchr(path, '.');
    for (size_t i = 0; dot && i < sizeof ends / sizeof *ends; i++)
        if (!strcasecmp(dot, ends[i])) return true;
    return false;
}

/* ---- keys */

/* Made fit for one, in place: no dot, no control character, no slash in front. */
static char *as_key(char *s) {
    for (char *c = s; c && *c; c++)
        if (*c == '.' || (unsigned char)*c < ' ' || *c == 127 || (c == s && *c == '/')) *c = '_';
    return s;
}

/* The key of a video below a folder, whose name is root bytes of the path. */
static char *key_below(const char *path, size_t root) {
    const char *below = path + root + strspn(path + root, "/"), *slash = strrchr(below, '/');
    char *name = ma_key_of(path);
    char *key = name ? as_key(ma_format("%.*s%s", slash ? (int)(slash + 1 - below) : 0, below, name)) : NULL;
    free(name);
    return key;
}

static size_t folder_of(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash + 1 - path) : 0;
}

/* Bytes of the folder that both are in; at most `most`. */
static size_t common_folder(const char *a, const char *b, size_t most) {
    size_t root = 0;
    for (size_t i = 0; i < most && a[i] == b[i]; i++)
        if (a[i] == '/') root = i + 1;
    return root;
}

/* "list.csv:12: clips/a.mp4", or the path alone. */
static char *label(const ma_inputs *in, const entry *x) {
    if (!x->line) return ma_strdup(x->path);
    return ma_format("%s:%lld: %s", in->cli->common.list, (long long)x->line, x->path);
}

static int by_key(const void *a, const void *b) {
    const entry *x = *(entry *const *)a, *y = *(entry *const *)b;
    const int order = strcmp(x->key, y->key);
    return order ? order : x < y ? -1 : x > y;
}

/* No two videos may become one sample. Known from the names, so told before hours of work. */
static int check_keys(const ma_inputs *in, ma_err *e) {
    size_t n = 0;
    entry **k = calloc(in->n + 1, sizeof *k);
    if (!k) return ma_fail(e, MA_MEMORY, "out of memory");
    for (size_t i = 0; i < in->n; i++)
        if (in->at[i].key) k[n++] = &in->at[i];
    qsort(k, n, sizeof *k, by_key);
    size_t i = 1;
    while (i < n && strcmp(k[i - 1]->key, k[i]->key)) i++;
    if (i < n) {
        char *a = label(in, k[i - 1]), *b = label(in, k[i]);
        ma_fail(e, MA_DUPLICATE, "%s and %s would both be sample %s", a ? a : "", b ? b : "", k[i]->key);
        free(a);
        free(b);
    }
    free(k);
    return i < n ? -1 : 0;
}

/* ---- what there is */

/* Takes the entry over, whose path must be there, and for a video its key. */
static int add(ma_inputs *in, entry x, bool video, ma_err *e) {
    const bool full = !(in->n & (in->n - 1)); /* 0, 1, 2, 4, 8 … */
    entry *at = full ? realloc(in->at, sizeof *at * (in->n ? 2 * in->n : 1)) : in->at;
    if (at) in->at = at;
    if (at && x.path && (x.key || !video)) {
        in->at[in->n++] = x;
        return 0;
    }
    free(x.path);
    free(x.key);
    free(x.caption);
    return ma_fail(e, MA_MEMORY, "out of memory");
}

static void lacks_video(ma_inputs *in, const char *where) {
    ma_say(in->cli, 2, "%s: a caption without a video", where);
    in->no_video++;
}

static int add_list(ma_inputs *in, ma_err *e) {
    const ma_common *c = &in->cli->common;
    ma_listing l = {0};
    int rc = ma_listing_read(c->list, c->captions, &l, e);
    const char *first = NULL;
    size_t root = 0;
    for (size_t i = 0; i < l.n && !rc; i++) {
        const char *v = l.at[i].video;
        if (v) root = first ? common_folder(first, v, root) : folder_of(v);
        if (v && !first) first = v;
    }
    if (!rc && !first) rc = ma_fail(e, MA_MISSING, "%s: names no video", c->list);
    for (size_t i = 0; i < l.n && !rc; i++) {
        ma_listed *r = &l.at[i];
        char where[64];
        snprintf(where, sizeof where, "line %lld of the list", (long long)r->line);
        if (!r->video) {
            lacks_video(in, where);
            continue;
        }
        entry x = {r->video, r->key ? as_key(r->key) : key_below(r->video, root), r->caption, r->line};
        *r = (ma_listed){0};
        rc = add(in, x, true, e);
    }
    in->expected = true;
    ma_listing_free(&l);
    return rc;
}

/* Bytes of a name before its extension. */
static int stem_of(const char *name) {
    const char *dot = strrchr(name, '.');
    return (int)(dot ? (size_t)(dot - name) : strlen(name));
}

static int by_name(const FTSENT **a, const FTSENT **b) {
    return strcmp((*a)->fts_name, (*b)->fts_name);
}

/* The videos in a folder, and not below it; captions there that have none are counted. */
static int add_folder(ma_inputs *in, const FTSENT *folder, const FTSENT *files, size_t root, ma_err *e) {
    const int n = (int)folder->fts_pathlen; /* fts leaves a slash behind it */
    ma_keyset stems = {0};
    int rc = 0;
    for (const FTSENT *f = files; f && !rc; f = f->fts_link) {
        if (f->fts_name[0] == '.' || f->fts_info == FTS_D || !is_video(f->fts_name)) continue;
        char *path = ma_format("%.*s/%s", n, folder->fts_path, f->fts_name),
             *stem = ma_format("%.*s", stem_of(f->fts_name), f->fts_name);
        if (!stem || ma_keyset_add(&stems, stem) < 0) rc = ma_fail(e, MA_MEMORY, "%s: out of memory", folder->fts_path);
        if (add(in, (entry){path, path ? key_below(path, root) : NULL, NULL, 0}, true, e)) rc = -1;
        free(stem);
    }
    for (const FTSENT *f = files; f && !rc; f = f->fts_link) {
        const int stem = stem_of(f->fts_name);
        if (f->fts_name[0] == '.' || strcmp(f->fts_name + stem, ".txt")) continue;
        char *path = ma_format("%.*s/%s", n, folder->fts_path, f->fts_name),
             *name = ma_format("%.*s", stem, f->fts_name);
        const int fresh = path && name ? ma_keyset_add(&stems, name) : -1;
        if (fresh > 0) lacks_video(in, path);
        if (fresh < 0) rc = ma_fail(e, MA_MEMORY, "%s: out of memory", folder->fts_path);
        free(name);
        free(path);
    }
    ma_keyset_free(&stems);
    return rc;
}

static int add_tree(ma_inputs *in, const char *path, ma_err *e) {
    char *top = ma_strdup(path), *paths[] = {top, NULL};
    for (size_t n = top ? strlen(top) : 0; n > 1 && top[n - 1] == '/';) top[--n] = 0;
    FTS *fts = top ? fts_open(paths, FTS_LOGICAL | FTS_NOCHDIR, by_name) : NULL;
    const size_t before = in->n;
    int rc = fts ? 0 : ma_fail(e, MA_MEMORY, "%s: %s", path, strerror(errno));
    for (FTSENT *f; !rc && (f = fts_read(fts));) {
        if (f->fts_info == FTS_DNR || f->fts_info == FTS_ERR)
            rc = ma_fail(e, MA_IO, "%s: %s", f->fts_path, strerror(f->fts_errno));
        else if (f->fts_info == FTS_D && f->fts_level > 0 && f->fts_name[0] == '.')
            fts_set(fts, f, FTS_SKIP);
        else if (f->fts_info == FTS_D)
            rc = add_folder(in, f, fts_children(fts, 0), strlen(top), e);
    }
    if (fts) fts_close(fts);
    free(top);
    in->expected = true;
    if (!rc && in->n == before) rc = ma_fail(e, MA_MISSING, "%s: no video in this folder or below it", path);
    return rc;
}

static int add_input(ma_inputs *in, const char *path, ma_err *e) {
    struct stat st;
    const bool video = in->video && is_video(path);
    if (in->video && !stat(path, &st) && S_ISDIR(st.st_mode)) return add_tree(in, path, e);
    return add(in, (entry){ma_strdup(path), video ? ma_key_of(path) : NULL, NULL, 0}, video, e);
}

/* Everything that is named, and of it the part that is asked for. */
static int take_all(ma_inputs *in, ma_err *e) {
    const ma_common *c = &in->cli->common;
    const ma_list *named = &in->cli->inputs;
    const bool list = in->video && c->list, whole = !in->video || c->part[1] == 1;
    if (list && add_list(in, e)) return -1;
    for (int i = 0; i < named->n; i++) {
        if (!whole && !strcmp(named->at[i], "-"))
            return ma_fail(e, MA_USAGE, "--shard: standard input cannot be split");
        if (add_input(in, named->at[i], e)) return -1;
    }
    if (!list && !named->n) {
        if (!whole) return ma_fail(e, MA_USAGE, "--shard: standard input cannot be split");
        if (isatty(STDIN_FILENO))
            return ma_fail(e, MA_USAGE, "no input: name files, or pipe a shard into standard input");
        if (add_input(in, "-", e)) return -1;
    }
    in->end = in->n;
    if (!whole) {
        in->next = (size_t)((uint64_t)in->n * (uint64_t)c->part[0] / (uint64_t)c->part[1]);
        in->end = (size_t)((uint64_t)in->n * (uint64_t)(c->part[0] + 1) / (uint64_t)c->part[1]);
    }
    return check_keys(in, e);
}

ma_inputs *ma_inputs_open(const ma_cli *cli, bool video, ma_err *e) {
    ma_inputs *in = calloc(1, sizeof *in);
    if (!in) {
        ma_fail(e, MA_MEMORY, "out of memory");
        return NULL;
    }
    *in = (ma_inputs){.cli = cli, .video = video, .file = SIZE_MAX};
    if (!take_all(in, e)) return in;
    in->expected = false; /* the count is not whole */
    ma_inputs_close(in);
    return NULL;
}

/* ---- samples */

/* KEY.json of a sample that begins here: where it came from. hex: the video's SHA-256. */
static int note_source(ma_sample *s, const char *path, const char *hex, ma_err *e) {
    const char *slash = strrchr(path, '/');
    cJSON *json = ma_sample_json(s, e), *source = json ? cJSON_AddObjectToObject(json, "source") : NULL;
    if (source && cJSON_AddStringToObject(source, "name", slash ? slash + 1 : path) &&
        cJSON_AddStringToObject(source, "sha256", hex))
        return 0;
    return ma_fail(e, MA_MEMORY, "%s: out of memory", path);
}

/* The caption of a video: what was given with it, or clips/a.txt beside clips/a.mp4, where there is one. Empty: none.
 */
static int read_caption(const entry *x, ma_buf *text, ma_err *e) {
    if (x->caption)
        return ma_buf_add(text, x->caption, strlen(x->caption)) ? ma_fail(e, MA_MEMORY, "%s: out of memory", x->path)
                                                                : 0;
    char *name = ma_format("%.*s.txt", stem_of(x->path), x->path);
    int rc = name ? 0 : ma_fail(e, MA_MEMORY, "%s: out of memory", x->path);
    if (name && access(name, F_OK) == 0) rc = ma_read_file(name, FILE_MOST, text, e);
    free(name);
    return rc;
}

static int take_caption(ma_sample *s, const entry *x, ma_err *e) {
    ma_buf text = {0};
    if (read_caption(x, &text, e) || !text.size) {
        ma_buf_free(&text);
        return e->reason ? -1 : 0;
    }
    return ma_sample_put(s, "txt", text.data, text.size, e);
}

static int take_video(ma_sample *s, const entry *x, ma_err *e) {
    ma_buf bytes = {0};
    char ext[8] = {0}, hex[65];
    if (!is_video(x->path)) return ma_fail(e, MA_UNSUPPORTED, "%s: none of .mp4, .mkv, .webm, .mov, .avi", x->path);
    const char *dot = strrchr(x->path, '.') + 1;
    for (size_t i = 0; i < sizeof ext - 1 && dot[i]; i++) ext[i] = (char)tolower((unsigned char)dot[i]);
    if (!(s->from = ma_strdup(x->path))) return ma_fail(e, MA_MEMORY, "%s: out of memory", x->path);
    int rc = ma_read_file(x->path, FILE_MOST, &bytes, e);
    if (!rc) ma_sha_bytes(bytes.data, bytes.size, hex);
    if (rc || note_source(s, x->path, hex, e)) {
        ma_buf_free(&bytes);
        return -1;
    }
    if (ma_sample_put(s, ext, bytes.data, bytes.size, e)) return -1;
    memcpy(ma_sample_get(s, ext)->sha, hex, sizeof hex); /* it is asked for again */
    return take_caption(s, x, e);
}

static int read_video(const ma_inputs *in, const entry *x, ma_sample **out, ma_err *e) {
    ma_sample *s = ma_sample_new(x->key);
    ma_err why = {0};
    if (s && !take_video(s, x, &why)) {
        *out = s;
        return 1;
    }
    ma_sample_free(s);
    if (!s) return ma_fail(e, MA_MEMORY, "%s: out of memory", x->path);
    if (!x->line) return ma_fail(e, why.reason, "%s", why.text);
    return ma_fail(e, why.reason, "%s:%lld: %s", in->cli->common.list, (long long)x->line, why.text);
}

static void count_caption(ma_inputs *in, const ma_sample *s) {
    bool video = false;
    for (int i = 0; i < s->n && !video; i++) {
        char *name = ma_format(".%s", s->m[i].ext);
        video = name && is_video(name);
        free(name);
    }
    const bool caption = ma_sample_get(s, "txt") != NULL;
    in->expected |= caption;
    if (caption && !video) lacks_video(in, s->key);
    if (caption || !video) return;
    ma_say(in->cli, 2, "%s: a video without a caption", s->key);
    in->no_caption++;
}

/* The reader for an entry. */
static int open_reader(ma_inputs *in, const entry *x, ma_reader_how how, ma_err *e) {
    how.quit = &in->quit;
    in->reader = ma_reader_open((const char *const *)&x->path, 1, e);
    if (in->reader) ma_reader_set(in->reader, &how);
    return in->reader ? 0 : -1;
}

static int next(ma_inputs *in, ma_sample **out, ma_err *e) {
    *out = NULL;
    for (;;) {
        if (in->reader) {
            int rc = ma_reader_next(in->reader, out, e);
            if (rc > 0) (*out)->place.file = in->next - 1;
            if (rc) return rc;
            ma_reader_close(in->reader);
            in->reader = NULL;
        }
        if (in->next == in->end) return 0;
        const entry *x = &in->at[in->next++];
        if (x->key) return read_video(in, x, out, e);
        if (open_reader(in, x, (ma_reader_how){.apart = in->apart}, e)) return -1;
    }
}

int ma_inputs_next(ma_inputs *in, ma_sample **out, ma_err *e) {
    int rc = next(in, out, e);
    if (rc > 0 && in->video) count_caption(in, *out);
    return rc;
}

/* ---- reading on several threads */

void ma_inputs_apart(ma_inputs *in) {
    in->apart = !in->video;
}

int ma_inputs_load(ma_inputs *in, ma_sample **s) {
    return (*s)->place.to && !(*s)->place.here ? ma_sample_load(s, &in->quit) : 0;
}

static void forget_keys(ma_inputs *in) {
    ma_keyset_free(&in->seen);
    free(in->last);
    in->last = NULL;
}

int ma_inputs_settle(ma_inputs *in, const ma_sample *s, ma_err *why) {
    if (!s || !s->place.to) return 0;
    if (in->file != s->place.file) forget_keys(in);
    in->file = s->place.file;
    if (!s->place.here) return 1;
    const int fresh = ma_keyset_add(&in->seen, s->key);
    free(in->last);
    in->last = ma_strdup(s->key);
    if (fresh < 0 || !in->last) ma_fail(why, MA_MEMORY, "%s: %s: out of memory", s->from, s->key);
    if (!fresh) ma_reader_twice(s->from, s->key, why);
    return 0;
}

int ma_inputs_back(ma_inputs *in, const ma_sample *s, ma_err *e) {
    const ma_reader_how how = {.from = s->place.from, .seen = &in->seen, .last = in->last};
    in->last = NULL;
    in->next = s->place.file + 1;
    ma_reader_close(in->reader);
    return open_reader(in, &in->at[s->place.file], how, e);
}

void ma_inputs_quit(ma_inputs *in) {
    in->quit = true;
}

static void tell_captions(const ma_inputs *in) {
    if (in->expected && (in->no_caption || in->no_video))
        ma_say(in->cli, 1, "%lld videos without a caption, %lld captions without a video (-v names them)",
               (long long)in->no_caption, (long long)in->no_video);
}

void ma_inputs_close(ma_inputs *in) {
    if (!in) return;
    tell_captions(in);
    ma_reader_close(in->reader);
    forget_keys(in);
    for (size_t i = 0; i < in->n; i++) {
        free(in->at[i].path);
        free(in->at[i].key);
        free(in->at[i].caption);
    }
    free(in->at);
    free(in);
}

/* ---- --print-list */

/* A name that holds in every folder; the file need not be there. */
static char *absolute(const char *path) {
    char *real = realpath(path, NULL), *here = real || *path == '/' ? NULL : getcwd(NULL, 0);
    if (!real) real = here ? ma_format("%s/%s", here, path) : *path == '/' ? ma_strdup(path) : NULL;
    free(here);
    return real;
}

static int print_entry(ma_inputs *in, const entry *x, FILE *out, ma_err *e) {
    struct stat st;
    ma_buf caption = {0};
    if (!x->key) return ma_fail(e, MA_USAGE, "--print-list: %s is not a video", x->path);
    char *path = absolute(x->path);
    if (!path) return ma_fail(e, MA_IO, "%s: %s", x->path, strerror(errno));
    int rc = read_caption(x, &caption, e);
    if (!rc && !caption.size) in->no_caption++;
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "key", x->key);
    cJSON_AddStringToObject(o, "video_path", path);
    cJSON_AddStringToObject(o, "caption", caption.data ? caption.data : "");
    if (!stat(path, &st)) {
        cJSON_AddNumberToObject(o, "bytes", (double)st.st_size);
        cJSON_AddNumberToObject(o, "modified", (double)st.st_mtim.tv_sec + (double)st.st_mtim.tv_nsec / 1e9);
    }
    char *line = cJSON_PrintUnformatted(o);
    if (!rc && (!line || fprintf(out, "%s\n", line) < 0))
        rc = ma_fail(e, MA_IO, "standard output: %s", strerror(errno));
    free(line);
    cJSON_Delete(o);
    ma_buf_free(&caption);
    free(path);
    return rc;
}

int ma_inputs_print(const ma_cli *cli, FILE *out) {
    ma_err e = {0};
    ma_inputs *in = ma_inputs_open(cli, true, &e);
    int rc = in ? 0 : -1;
    for (; !rc && in->next < in->end; in->next++) rc = print_entry(in, &in->at[in->next], out, &e);
    if (!rc && fflush(out)) rc = ma_fail(&e, MA_IO, "standard output: %s", strerror(errno));
    if (rc) ma_say(cli, 0, "%s", e.text);
    ma_inputs_close(in);
    return !rc ? 0 : e.reason == MA_USAGE ? 2 : 1;
}
