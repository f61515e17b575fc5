/* csv: see csv.h.
 * Traps minded:
 * - a field with a comma and no quotes moves all columns behind it: a row of another width is an error;
 * - fields hold line breaks, in quotes: a record is not a line, and is named by the line that it begins on. */
#include "csv.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* What is in quotes, copied to *w without them and with "" made one. Where it goes on behind the closing quote; NULL:
 * there is none. */
static char *unquote(char *r, char **w, int64_t *line) {
    for (; *r; *(*w)++ = *r++) {
        if (*r == '"' && *++r != '"') return r;
        *line += *r == '\n';
    }
    return NULL;
}

/* One field: quotes off, cut at its end. What ended it is left in *end: the separator, a line's end, or 0. */
static char *take_field(ma_csv *c, char *end, ma_err *e) {
    char *r = c->at, *field = r, *w = r;
    const int64_t began = c->line;
    if (*r == '"') {
        if (!(r = unquote(r + 1, &w, &c->line))) {
            ma_fail(e, MA_CORRUPT, "%s:%lld: a quote is opened and not closed", c->path, (long long)began);
            return NULL;
        }
        if (r[0] == '\r' && r[1] == '\n') r++;
        if (*r && *r != c->between && *r != '\n') {
            ma_fail(e, MA_CORRUPT, "%s:%lld: text behind a closing quote", c->path, (long long)c->line);
            return NULL;
        }
    } else {
        r = w = r + strcspn(r, (char[]){c->between, '\n', 0});
        if (w > field && w[-1] == '\r' && *r != c->between) w--;
    }
    *end = *r;
    c->at = r + (*r != 0);
    c->line += *end == '\n';
    *w = 0;
    return field;
}

int ma_csv_next(ma_csv *c, ma_err *e) {
    char end = c->between;
    while (*c->at == '\n' || (c->at[0] == '\r' && c->at[1] == '\n')) { /* empty lines */
        c->at += 1 + (*c->at == '\r');
        c->line++;
    }
    c->began = c->line;
    if (!*c->at) return 0;
    for (c->n = 0; end == c->between; c->n++) {
        if (c->n == c->room) {
            char **more = realloc(c->field, sizeof *more * ((size_t)c->room + 16));
            if (!more) return ma_fail(e, MA_MEMORY, "%s: out of memory", c->path);
            c->field = more;
            c->room += 16;
        }
        if (!(c->field[c->n] = take_field(c, &end, e))) return -1;
    }
    return 1;
}

int ma_csv_row(ma_csv *c, int wide, ma_err *e) {
    int rc = ma_csv_next(c, e);
    if (rc <= 0 || c->n == wide) return rc;
    return ma_fail(e, MA_CORRUPT,
                   "%s:%lld: %d columns, the first line has %d (is a caption with a comma not in quotes?)", c->path,
                   (long long)c->began, c->n, wide);
}

int ma_csv_column(const ma_csv *c, const char *const *names) {
    for (; *names; names++)
        for (int k = 0; k < c->n; k++)
            if (!strcasecmp(c->field[k] + strspn(c->field[k], " "), *names)) return k;
    return -1;
}

int ma_csv_put(ma_buf *out, const char *text, char end) {
    const bool plain = !text[strcspn(text, ",\"\r\n")];
    int rc = plain ? ma_buf_add(out, text, strlen(text)) : ma_buf_add(out, "\"", 1);
    for (const char *s = text; !plain && !rc && *s; s++) rc = ma_buf_add(out, *s == '"' ? "\"\"" : s, 1 + (*s == '"'));
    if (!plain && !rc) rc = ma_buf_add(out, "\"", 1);
    return rc ? rc : ma_buf_add(out, &end, 1);
}
