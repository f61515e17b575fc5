/* naming: see naming.h. Source: README of VBench and VBench-2.0 (sampled videos), of VideoPhy (input CSV).
 * Traps: a cut must not halve a character of UTF-8; VBench counts an extension as what stands behind the last dot of
 * whichever file it meets first. */
#include "naming.h"

#include "csv.h"
#include "file.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_BYTES = 255, MOST_CHARACTERS = 180 /* of VBench-2.0 */ };

void ma_names_free(ma_names *n) {
    for (size_t k = 0; k < n->n; k++) {
        free(n->at[k].key);
        free(n->at[k].file);
    }
    free(n->at);
    *n = (ma_names){0};
}

/* Bytes of the first characters of s, and no more than `bytes`. */
static int cut(const char *s, int bytes, int characters) {
    int n = 0, end = 0;
    for (; s[n] && n < bytes; n++) {
        if ((s[n] & 0xC0) != 0x80 && !characters--) return n;
        if ((s[n + 1] & 0xC0) != 0x80) end = n + 1;
    }
    return end;
}

/* The first characters of a text as a file's name, or a part of one; free(). */
static char *safe(const char *text, int bytes, int characters) {
    char *name = ma_format("%.*s", cut(text, bytes, characters), text);
    for (char *s = name; s && *s; s++)
        if (*s == '/') *s = '_';
    return name;
}

/* videos, or videos/DIMENSION; free(). */
static char *folder_of(const ma_prompt *p, ma_naming naming) {
    char *group = naming == MA_NAME_VBENCH2 ? safe(p->group, MOST_BYTES, INT_MAX) : NULL;
    if (group && *group == '.') *group = '_'; /* . and .. are folders elsewhere */
    char *folder = naming != MA_NAME_VBENCH2 ? ma_strdup("videos") : group ? ma_format("videos/%s", group) : NULL;
    free(group);
    return folder;
}

/* FOLDER/TEXT-NUMBER.EXT; free(). */
static char *named(const char *folder, const char *text, int64_t number, const char *ext, int characters) {
    char behind[64];
    char *name =
        safe(text, MOST_BYTES - snprintf(behind, sizeof behind, "-%lld%s", (long long)number, ext), characters);
    char *path = name ? ma_format("%s/%s%s", folder, name, behind) : NULL;
    free(name);
    return path;
}

/* The name that an evaluator wants; of clips of one text the later prompts' count on. NULL: out of memory. */
static char *evaluated(const ma_prompt *p, ma_naming naming, int64_t number, const char *ext, ma_keyset *taken) {
    char *folder = folder_of(p, naming), *file = NULL;
    int new = folder ? 0 : -1;
    for (; new == 0; number++) {
        free(file);
        file = named(folder, p->text, number, ext, naming == MA_NAME_VBENCH2 ? MOST_CHARACTERS : INT_MAX);
        new = file ? ma_keyset_add(taken, file) : -1;
    }
    free(folder);
    if (new > 0) return file;
    free(file);
    return NULL;
}

static int name_clip(ma_clip_name *c, const ma_prompt *p, ma_naming naming, int64_t clips, const char *ext,
                     ma_keyset *taken, ma_err *e) {
    c->key = clips > 1 ? ma_format("%s-%lld", p->key, (long long)c->number) : ma_strdup(p->key);
    if (naming == MA_NAME_VBENCH2 && (!p->group || !*p->group))
        return ma_fail(e, MA_USAGE,
                       "--naming vbench2: prompt '%.60s' has no dimension: a column, or a file of that name", p->text);
    if (naming == MA_NAME_VBENCH || naming == MA_NAME_VBENCH2)
        c->file = evaluated(p, naming, c->number, ext, taken);
    else if (c->key)
        c->file = ma_format("%s%s%s", naming == MA_NAME_PLAIN ? "" : "videos/", c->key, ext);
    return c->key && c->file ? 0 : ma_fail(e, MA_MEMORY, "%s: out of memory", p->key);
}

int ma_names_make(ma_names *n, const ma_prompts *p, ma_naming naming, int64_t clips, const char *ext, ma_err *e) {
    size_t all;
    ma_keyset taken = {0};
    n->at = ma_mul(p->n, (size_t)clips, &all) ? calloc(all + 1, sizeof *n->at) : NULL;
    int rc = n->at ? 0 : ma_fail(e, MA_MEMORY, "prompts: out of memory");
    for (; !rc && n->n < all; n->n++) {
        ma_clip_name *c = &n->at[n->n];
        c->prompt = n->n / (size_t)clips;
        c->number = (int64_t)(n->n % (size_t)clips);
        rc = name_clip(c, &p->at[c->prompt], naming, clips, ext, &taken, e);
    }
    ma_keyset_free(&taken);
    return rc;
}

/* ---- what is written beside ---- */

static int put_manifest(const ma_names *n, const ma_prompts *p, ma_buf *out) {
    int rc = ma_buf_printf(out, "file,key,clip,prompt\n");
    for (size_t k = 0; k < n->n && !rc; k++) {
        const ma_clip_name *c = &n->at[k];
        if (!c->there) continue;
        rc = ma_csv_put(out, c->file, ',') || ma_csv_put(out, c->key, ',') ||
             ma_buf_printf(out, "%lld,", (long long)c->number) || ma_csv_put(out, p->at[c->prompt].text, '\n');
    }
    return rc;
}

/* The evaluator runs elsewhere: whole paths. */
static int put_videophy(const ma_names *n, const ma_prompts *p, const char *dir, ma_buf *out) {
    char *whole = realpath(dir, NULL);
    int rc = whole ? ma_buf_printf(out, "videopath,caption\n") : -1;
    for (size_t k = 0; k < n->n && !rc; k++) {
        const ma_clip_name *c = &n->at[k];
        if (!c->there) continue;
        char *path = ma_format("%s/%s", whole, c->file);
        rc = !path || ma_csv_put(out, path, ',') || ma_csv_put(out, p->at[c->prompt].text, '\n');
        free(path);
    }
    free(whole);
    return rc;
}

static int write_list(const char *dir, const char *name, int failed, ma_buf *list, ma_err *e) {
    char *path = failed ? NULL : ma_format("%s/%s", dir, name);
    int rc = path ? ma_write_file(path, list->data, list->size, e) : ma_fail(e, MA_MEMORY, "%s: out of memory", name);
    free(path);
    ma_buf_free(list);
    return rc;
}

int ma_names_write(const ma_names *n, const ma_prompts *p, ma_naming naming, const char *dir, ma_err *e) {
    ma_buf list = {0};
    if (naming == MA_NAME_PLAIN) return 0;
    if (write_list(dir, "manifest.csv", put_manifest(n, p, &list), &list, e)) return -1;
    return naming == MA_NAME_VIDEOPHY ? write_list(dir, "videophy.csv", put_videophy(n, p, dir, &list), &list, e) : 0;
}
