/* listing: see listing.h. Limits: a list is held whole, at most 4 GiB; text is UTF-8.
 * Traps minded: spreadsheets write a byte order mark, and \r\n. */
#include "listing.h"
#include "csv.h"
#include "file.h"
#include "shard.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define FILE_MOST ((size_t)4 << 30)

static const char *const videos[] = {"videopath", "video_path", "path", "video", "file_name", NULL};
static const char *const captions[] = {"caption", "text", "prompt", NULL};
static const char *const keys[] = {"key", "id", NULL};

#define NO_VIDEO "no video: a column videopath, video_path, path, video or file_name is needed"

void ma_listing_free(ma_listing *l) {
    for (size_t i = 0; i < l->n; i++) {
        free(l->at[i].video);
        free(l->at[i].caption);
        free(l->at[i].key);
    }
    free(l->at);
    *l = (ma_listing){0};
}

/* A path in the list at `list`, as it can be opened. */
static char *beside(const char *list, const char *path) {
    const char *slash = strrchr(list, '/');
    while (path[0] == '.' && path[1] == '/') path += 1 + strspn(path + 1, "/");
    if (*path == '/' || !slash) return ma_strdup(path);
    return ma_format("%.*s%s", (int)(slash + 1 - list), list, path);
}

/* The texts are copied; NULL or "" where there is none. caption NULL: the list has no captions. */
static int add(ma_listing *l, const char *list, const ma_listed *r, ma_err *e) {
    const bool video = r->video && *r->video, caption = r->caption && *r->caption, key = r->key && *r->key;
    if (!video && !caption) return 0; /* an empty row */
    if (!(l->n & (l->n - 1))) {       /* full: 0, 1, 2, 4, 8 … */
        ma_listed *at = realloc(l->at, sizeof *at * (l->n ? 2 * l->n : 1));
        if (!at) return ma_fail(e, MA_MEMORY, "%s: out of memory", list);
        l->at = at;
    }
    ma_listed *to = &l->at[l->n++];
    *to = (ma_listed){.line = r->line};
    if (video) to->video = beside(list, r->video);
    if (r->caption) to->caption = ma_strdup(r->caption);
    if (key) to->key = ma_strdup(r->key);
    if (!video == !to->video && !r->caption == !to->caption && !key == !to->key) return 0;
    return ma_fail(e, MA_MEMORY, "%s: out of memory", list);
}

/* ---- CSV */

/* Whether the text's first line names the columns of a CSV. Leaves the text as it was. */
static bool is_csv(const char *text, char between) {
    const size_t n = strcspn(text, "\n");
    char *head = strndup(text, n);
    ma_csv c = {.at = head, .between = between, .line = 1};
    const bool yes = head && ma_csv_next(&c, NULL) > 0 && ma_csv_column(&c, videos) >= 0;
    free(c.field);
    free(head);
    return yes;
}

static int read_csv(char *text, const char *path, char between, ma_listing *l, ma_err *e) {
    ma_csv c = {.path = path, .at = text, .between = between, .line = 1};
    int rc = ma_csv_next(&c, e), wide = c.n;
    const int video = ma_csv_column(&c, videos), caption = ma_csv_column(&c, captions), key = ma_csv_column(&c, keys);
    if (rc >= 0 && video < 0) rc = ma_fail(e, MA_CORRUPT, "%s:%lld: " NO_VIDEO, path, (long long)c.began);
    while (rc > 0 && (rc = ma_csv_row(&c, wide, e)) > 0) {
        const ma_listed r = {c.field[video], caption < 0 ? NULL : c.field[caption], key < 0 ? NULL : c.field[key],
                             c.began};
        if (add(l, path, &r, e)) rc = -1;
    }
    free(c.field);
    return rc;
}

/* ---- lines */

/* The next line, cut at its end; NULL: there is none. */
static char *take_line(char **at) {
    char *line = *at, *end = line ? strchr(line, '\n') : NULL;
    *at = end ? end + 1 : NULL;
    if (!line || (!end && !*line)) return NULL;
    if (!end) end = line + strlen(line);
    *end = 0;
    if (end > line && end[-1] == '\r') end[-1] = 0;
    return line;
}

static int read_lines(char *text, const char *path, char *second, const char *second_path, ma_listing *l, ma_err *e) {
    char *video, *caption = NULL;
    for (int64_t line = 1;; line++) {
        video = take_line(&text);
        if (second_path) caption = take_line(&second);
        if (!video || (second_path && !caption)) break;
        if (add(l, path, &(ma_listed){video, caption, NULL, line}, e)) return -1;
    }
    if (!second_path || (!video && !caption)) return 0;
    return ma_fail(e, MA_CORRUPT, "%s:%lld: there is no such line in %s", video ? path : second_path,
                   (long long)(l->n ? l->at[l->n - 1].line + 1 : 1), video ? second_path : path);
}

/* ---- JSON lines */

/* The text of the first of these fields: "" where it is null, NULL where there is none. number: room for a number,
 * where one may stand in its place. */
static int take_text(const cJSON *o, const char *const *names, char number[32], const char *where, char **out,
                     ma_err *e) {
    *out = NULL;
    const cJSON *v = NULL;
    for (; *names && !v; names++) v = cJSON_GetObjectItem(o, *names);
    if (!v) return 0;
    if (cJSON_IsString(v)) {
        *out = v->valuestring;
    } else if (cJSON_IsNull(v)) {
        *out = "";
    } else if (number && cJSON_IsNumber(v)) {
        snprintf(number, 32, "%.15g", v->valuedouble);
        *out = number;
    } else {
        return ma_fail(e, MA_CORRUPT, "%s: %s is not text", where, v->string);
    }
    return 0;
}

static int read_object(const cJSON *o, const char *path, const char *where, int64_t line, ma_listing *l, ma_err *e) {
    ma_listed r = {.line = line};
    char number[32];
    if (!cJSON_IsObject(o)) return ma_fail(e, MA_CORRUPT, "%s: not an object", where);
    if (take_text(o, videos, NULL, where, &r.video, e) || take_text(o, captions, NULL, where, &r.caption, e) ||
        take_text(o, keys, number, where, &r.key, e))
        return -1;
    if (!r.video && !r.caption) return ma_fail(e, MA_CORRUPT, "%s: " NO_VIDEO, where);
    return add(l, path, &r, e);
}

static int read_json(char *text, const char *path, ma_listing *l, ma_err *e) {
    int rc = 0;
    char *s;
    for (int64_t line = 1; !rc && (s = take_line(&text)); line++) {
        if (!s[strspn(s, " \t")]) continue;
        char *where = ma_format("%s:%lld", path, (long long)line);
        cJSON *o = where ? ma_json_parse(s, strlen(s), where, e) : NULL;
        rc = o ? read_object(o, path, where, line, l, e) : ma_fail(e, MA_MEMORY, "%s: out of memory", path);
        cJSON_Delete(o);
        free(where);
    }
    return rc;
}

/* ---- all of them */

/* Byte order mark off. */
static int read_text(const char *path, ma_buf *b, char **text, ma_err *e) {
    if (ma_read_file(path, FILE_MOST, b, e)) return -1;
    *text = b->data;
    if (strlen(b->data) != b->size) return ma_fail(e, MA_CORRUPT, "%s: not text in UTF-8", path);
    if (!strncmp(*text, "\xef\xbb\xbf", 3)) *text += 3;
    return 0;
}

static bool ends(const char *path, const char *with) {
    const size_t n = strlen(path), m = strlen(with);
    return n >= m && !strcasecmp(path + n - m, with);
}

static int read_any(const char *path, const char *second, ma_listing *l, ma_buf b[2], ma_err *e) {
    char *text, *captions_text = NULL;
    if (read_text(path, &b[0], &text, e) || (second && read_text(second, &b[1], &captions_text, e))) return -1;
    const char first = text[strspn(text, " \t\r\n")], between = ends(path, ".tsv") ? '\t' : ',';
    if (second) return read_lines(text, path, captions_text, second, l, e);
    if (first == '[') return ma_fail(e, MA_UNSUPPORTED, "%s:1: a JSON array: an object a line is read", path);
    if (first == '{') return read_json(text, path, l, e);
    if (is_csv(text, between) || ends(path, ".csv") || ends(path, ".tsv")) return read_csv(text, path, between, l, e);
    return read_lines(text, path, NULL, NULL, l, e);
}

int ma_listing_read(const char *path, const char *second, ma_listing *l, ma_err *e) {
    ma_buf b[2] = {0};
    int rc = read_any(path, second, l, b, e);
    ma_buf_free(&b[0]);
    ma_buf_free(&b[1]);
    return rc;
}
