/* prompts: see prompts.h.
 *
 * Limits: all prompts of a run are held, with the embeddings that samples carry (1.9 MB each for CogVideoX).
 * Traps: keys become file names: a key that leads out of the output's folder is refused, a dot in a CSV's key becomes
 * '_', as a key ends at the first dot. */
#include "prompts.h"

#include "csv.h"
#include "file.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static void free_prompt(ma_prompt *p) {
    free(p->key);
    free(p->text);
    free(p->group);
    ma_array_free(&p->embedding);
}

void ma_prompts_free(ma_prompts *p) {
    for (size_t k = 0; k < p->n; k++) free_prompt(&p->at[k]);
    free(p->at);
    ma_keyset_free(&p->keys);
    *p = (ma_prompts){0};
}

/* Whether files named by this key stay below the folder that they are meant for. */
static bool stays_below(const char *key) {
    bool below = *key && *key != '/';
    for (const char *s = key; s; s = strchr(s, '/')) {
        s += *s == '/';
        below &= !(!strncmp(s, "..", 2) && (!s[2] || s[2] == '/'));
    }
    return below;
}

/* Takes the prompt over, also on failure. */
static int enlist(ma_prompts *p, ma_prompt one, ma_err *e) {
    int rc = one.key && one.text ? 0 : ma_fail(e, MA_MEMORY, "prompts: out of memory");
    if (!rc && !stays_below(one.key))
        rc = ma_fail(e, MA_UNSUPPORTED, "%s: the key leaves the output's folder", one.key);
    int new = rc ? -1 : ma_keyset_add(&p->keys, one.key);
    if (new == 0) rc = ma_fail(e, MA_DUPLICATE, "%s: two prompts of this key", one.key);
    if (new < 0 && !rc) rc = ma_fail(e, MA_MEMORY, "prompts: out of memory");
    if (!rc && p->n == p->room) {
        const size_t room = p->room ? 2 * p->room : 64;
        ma_prompt *more = realloc(p->at, room * sizeof *more);
        if (more) {
            p->at = more;
            p->room = room;
        } else
            rc = ma_fail(e, MA_MEMORY, "prompts: out of memory");
    }
    if (rc)
        free_prompt(&one);
    else
        p->at[p->n++] = one;
    return rc;
}

/* Number and first words, in letters that every file system takes. */
static void name_key(char key[96], size_t number, const char *prompt) {
    int used = snprintf(key, 96, "%05zu-", number);
    for (const char *s = prompt; *s && used < 60; s++) {
        bool letter = isalnum((unsigned char)*s) != 0;
        if (letter || key[used - 1] != '-') key[used++] = letter ? (char)tolower((unsigned char)*s) : '-';
    }
    while (used && key[used - 1] == '-') used--;
    key[used] = 0;
}

int ma_prompts_add(ma_prompts *p, const char *text, const char *group, ma_err *e) {
    char key[96];
    name_key(key, p->n, text);
    return enlist(p, (ma_prompt){ma_strdup(key), ma_strdup(text), group ? ma_strdup(group) : NULL, {0}, false}, e);
}

/* ---- files ---- */

static int read_lines(ma_prompts *p, FILE *f, const char *path, const char *group, ma_err *e) {
    char *line = NULL;
    size_t room = 0;
    int rc = 0;
    for (bool first = true; !rc && !ma_stopped && getline(&line, &room, f) > 0; first = false) {
        const char *text = line + (first && !strncmp(line, "\xef\xbb\xbf", 3) ? 3 : 0); /* a byte order mark */
        line[strcspn(line, "\r\n")] = 0;
        if (*text) rc = ma_prompts_add(p, text, group, e);
    }
    if (!rc && ferror(f)) rc = ma_fail(e, MA_IO, "%s: %s", path, strerror(errno));
    free(line);
    return rc;
}

/* A key as a list has it. */
static char *list_key(const char *text) {
    char *key = ma_strdup(text);
    for (char *s = key; s && *s; s++)
        if (*s == '.') *s = '_';
    return key;
}

static int read_table(ma_prompts *p, const char *path, char *text, char between, ma_err *e) {
    static const char *const texts[] = {"caption", "text", "prompt", NULL}, *const keys[] = {"key", "id", NULL},
                             *const groups[] = {"dimension", NULL};
    ma_csv c = {.path = path, .at = text, .between = between, .line = 1};
    int rc = ma_csv_next(&c, e), wide = c.n;
    const int at = ma_csv_column(&c, texts), key = ma_csv_column(&c, keys), group = ma_csv_column(&c, groups);
    if (rc >= 0 && at < 0) rc = ma_fail(e, MA_CORRUPT, "%s:1: no column caption, text or prompt", path);
    while (rc > 0 && (rc = ma_csv_row(&c, wide, e)) > 0) {
        const char *in = group < 0 ? NULL : c.field[group];
        if (!*c.field[at]) continue;
        if (key < 0 || !*c.field[key])
            rc = ma_prompts_add(p, c.field[at], in, e) ? -1 : 1;
        else
            rc = enlist(
                     p,
                     (ma_prompt){list_key(c.field[key]), ma_strdup(c.field[at]), in ? ma_strdup(in) : NULL, {0}, false},
                     e)
                     ? -1
                     : 1;
    }
    free(c.field);
    return rc;
}

static int read_table_file(ma_prompts *p, const char *path, char between, ma_err *e) {
    ma_buf b = {0};
    int rc = ma_read_file(path, (size_t)1 << 30, &b, e);
    if (!rc && strlen(b.data) != b.size) rc = ma_fail(e, MA_CORRUPT, "%s: not text in UTF-8", path);
    if (!rc) rc = read_table(p, path, b.data + (strncmp(b.data, "\xef\xbb\xbf", 3) ? 0 : 3), between, e);
    ma_buf_free(&b);
    return rc;
}

int ma_prompts_file(ma_prompts *p, const char *path, ma_err *e) {
    const size_t n = strlen(path);
    const char *end = n > 4 ? path + n - 4 : "";
    if (!strcmp(path, "-")) return read_lines(p, stdin, "standard input", NULL, e);
    if (!strcasecmp(end, ".csv") || !strcasecmp(end, ".tsv"))
        return read_table_file(p, path, !strcasecmp(end, ".tsv") ? '\t' : ',', e);
    FILE *f = fopen(path, "re");
    char *group = ma_key_of(path);
    int rc = f ? 0 : ma_fail(e, errno == ENOENT ? MA_MISSING : MA_IO, "%s: %s", path, strerror(errno));
    if (!rc && !group) rc = ma_fail(e, MA_MEMORY, "%s: out of memory", path);
    if (!rc) rc = read_lines(p, f, path, group, e);
    if (f) fclose(f);
    free(group);
    return rc;
}

/* ---- samples ---- */

/* Of a caption, whose bytes nothing ends; "" where there is none. Freed with free(). */
static char *first_line(const ma_member *m) {
    enum { MOST = 1 << 16 };
    const char *text = m ? m->data : NULL;
    int n = 0;
    while (text && n < MOST && (size_t)n < m->size && text[n] && text[n] != '\r' && text[n] != '\n') n++;
    return ma_format("%.*s", n, n ? text : "");
}

static int add_sample(ma_prompts *p, const ma_sample *s, int64_t width, ma_err *e) {
    ma_array text = {0};
    if (ma_sample_get(s, "text.npy") && ma_sample_array(s, "text.npy", &text, e)) return -1;
    if (text.data && (text.nd != 2 || text.n[0] < 1 || text.n[1] != width)) {
        ma_array_free(&text);
        return ma_fail(e, MA_SHAPE, "%s: text.npy is not (L, %lld)", s->key, (long long)width);
    }
    return enlist(p, (ma_prompt){ma_strdup(s->key), first_line(ma_sample_get(s, "txt")), NULL, text, text.data != NULL},
                  e);
}

int ma_prompts_samples(ma_prompts *p, const ma_cli *cli, int64_t width, ma_tally *tally, ma_err *e) {
    ma_inputs *in = ma_inputs_open(cli, false, e);
    int rc = in ? 0 : -1;
    while (!rc && !ma_stopped) {
        ma_err why = {0};
        ma_sample *s = NULL;
        int got = ma_inputs_next(in, &s, &why);
        if (!got) break;
        if (got > 0 && add_sample(p, s, width, &why)) got = -1;
        if (got < 0 && ma_tally_bad(tally, s ? s->key : NULL, &why)) rc = ma_fail(e, why.reason, "%s", why.text);
        ma_sample_free(s);
    }
    ma_inputs_close(in);
    return rc;
}
