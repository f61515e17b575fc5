/* preset: see preset.h. Limits: a file of at most 1 MiB. */
#include "preset.h"
#include "file.h"

#include <stdlib.h>
#include <string.h>

#define FILE_MOST ((size_t)1 << 20)

static char *find(const char *name, ma_err *e) {
    bool file = strchr(name, '/');
    char *path = file ? ma_strdup(name) : ma_format("presets/%s", name);
    if (!path) ma_fail(e, MA_MEMORY, "out of memory");
    if (!path || file) return path;
    ma_err why = {0};
    char *found = ma_shipped(path, &why);
    if (!found) ma_fail(e, why.reason, "%s (a file's name has a slash in it)", why.text);
    free(path);
    return found;
}

/* Blanks at both ends off; the text is cut in place. */
static char *trim(char *s) {
    s += strspn(s, " \t");
    size_t n = strlen(s);
    while (n && strchr(" \t\r", s[n - 1])) s[--n] = 0;
    return s;
}

/* "[ma-extract ma-flow]", cut into pieces: whether it names the tool. */
static bool heads(char *s, const char *tool) {
    bool found = false;
    char *rest;
    for (char *w = strtok_r(s, "[] \t", &rest); w; w = strtok_r(NULL, "[] \t", &rest)) found |= !strcmp(w, tool);
    return found;
}

static int add(ma_preset *p, char *s, int line, ma_err *e) {
    char *equals = strchr(s, '=');
    if (equals) *equals = 0;
    const ma_preset_line l = {trim(s), equals ? trim(equals + 1) : NULL, line};
    if (!*l.name) return ma_fail(e, MA_CORRUPT, "%s:%d: there is no name before =", p->path, line);
    ma_preset_line *at = realloc(p->at, ((size_t)p->n + 1) * sizeof *at);
    if (!at) return ma_fail(e, MA_MEMORY, "%s: out of memory", p->path);
    p->at = at;
    p->at[p->n++] = l;
    return 0;
}

static int parse(ma_preset *p, const char *tool, ma_err *e) {
    bool section = false, here = false, any = false;
    int line = 0, rc = 0;
    for (char *s = p->text.data, *next; s && !rc; s = next) {
        line++;
        next = strchr(s, '\n');
        if (next) *next++ = 0;
        s[strcspn(s, "#")] = 0;
        s = trim(s);
        if (*s == '[') {
            if (s[strlen(s) - 1] != ']') return ma_fail(e, MA_CORRUPT, "%s:%d: a heading ends with ]", p->path, line);
            section = true;
            any |= here = heads(s, tool);
        } else if (*s && !section) {
            return ma_fail(e, MA_CORRUPT, "%s:%d: %s stands before the first heading, such as [%s]", p->path, line, s,
                           tool);
        } else if (*s && here) {
            rc = add(p, s, line, e);
        }
    }
    if (!rc && !any) return ma_fail(e, MA_MISSING, "%s: there is no section [%s]", p->path, tool);
    return rc;
}

int ma_preset_read(const char *name, const char *tool, ma_preset *p, ma_err *e) {
    if (!(p->path = find(name, e)) || ma_read_file(p->path, FILE_MOST, &p->text, e)) return -1;
    if (p->text.data && strlen(p->text.data) != p->text.size) return ma_fail(e, MA_CORRUPT, "%s: not text", p->path);
    return parse(p, tool, e);
}

void ma_preset_free(ma_preset *p) {
    free(p->path);
    free(p->at);
    ma_buf_free(&p->text);
    *p = (ma_preset){0};
}
