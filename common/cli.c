/* cli: the command line, messages and progress. See cli.h for the contract.
 *
 * Limits: at most 40 options of a tool's own; help is laid out for 100 columns and assumes one column a character.
 * Traps minded:
 * - strtoll and strtod accept far more than we document (blanks, hex, "inf"): what they get is looked at first;
 * - an empty --files-from must not turn into "no inputs", which would mean standard input;
 * - several tools of a pipeline share one standard error: a message is written in one piece.
 */
#include "cli.h"
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <omp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { NCOMMON = 17, NOPTS = 64 };

static int append(ma_opt *table, int n, const ma_opt *more) {
    for (; more && more->name && n < NOPTS; more++) table[n++] = *more;
    table[n] = (ma_opt){0};
    return n;
}

/* All tables in one: a tool's own options, then those that it has in common with others. Ended by {0}; returns how many
 * are its own. */
static int options(const ma_cli *cli, ma_common *c, ma_opt table[NOPTS + 1]) {
    const ma_opt common[NCOMMON + 1] = {
        {"out", 'o', MA_OPT_TEXT, &c->out, "FILE", "write FILE, complete or not at all (default standard output)", 0,
         0},
        {"files-from", 0, MA_OPT_TEXT, &c->files_from, "FILE", "more inputs, one a line; - is standard input", 0, 0},
        {"device", 'd', MA_OPT_TEXT, &c->device, "DEVICE", "auto, cpu, cuda or cuda:N (default $MA_DEVICE, or auto)", 0,
         0},
        {"dtype", 0, MA_OPT_CHOICE, &c->dtype, "auto|f32|bf16|f16|tf32", "type to compute in (default auto)", 0, 0},
        {"memory", 0, MA_OPT_BYTES, &c->memory, "SIZE", "most of the device's memory to take, as 24G (default all)", 0,
         INFINITY},
        {"threads", 'j', MA_OPT_INT, &c->threads, "N", "CPU threads; 0 is all (default 0)", 0, 4096},
        {"seed", 0, MA_OPT_INT, &c->seed, "N", "seed of all random numbers (default 0)", 0, INFINITY},
        {"level", 'z', MA_OPT_INT, &c->level, "N", "zstd level of the output; 0 is plain tar (default 1)", -7, 22},
        {"max-bad", 0, MA_OPT_INT, &c->max_bad, "N", "stop after more than N bad samples (default no limit)", 0,
         INFINITY},
        {"strict", 0, MA_OPT_FLAG, &c->strict, NULL, "stop at the first bad sample, as --max-bad 0", 0, 0},
        {"drop", 0, MA_OPT_LIST, &c->drop, "EXT", "leave member EXT out of the output; may be repeated", 0, 0},
        {"dry-run", 0, MA_OPT_FLAG, &c->dry_run, NULL, "print shapes, parameters and memory, then stop", 0, 0},
        {"quiet", 'q', MA_OPT_FLAG, &c->quiet, NULL, "errors only", 0, 0},
        {"verbose", 'v', MA_OPT_COUNT, &c->verbose, NULL, "more detail; twice for more still", 0, 0},
        {"progress", 0, MA_OPT_CHOICE, &c->progress, "auto|always|never", "progress on standard error (default auto)",
         0, 0},
        {"help", 'h', MA_OPT_FLAG, &c->help, NULL, "print this and exit", 0, 0},
        {"version", 0, MA_OPT_FLAG, &c->version, NULL, "print the version and exit", 0, 0},
        {0},
    };
    const ma_opt video[] = {
        {"list", 0, MA_OPT_TEXT, &c->list, "FILE",
         "videos and captions: CSV with a header, JSON lines, or a name a line", 0, 0},
        {"captions", 0, MA_OPT_TEXT, &c->captions, "FILE", "a caption a line, for the videos of --list", 0, 0},
        {"shard", 0, MA_OPT_PART, c->part, "I/N", "take part I, 0 to N-1, of N of the inputs (default 0/1)", 0, 0},
        {"print-list", 0, MA_OPT_FLAG, &c->print_list, NULL, "print the videos as JSON lines for --list, then stop", 0,
         0},
        {0},
    };
    const ma_opt preset[] = {
        {"preset", 0, MA_OPT_TEXT, &c->preset, "NAME|FILE", "take what is not given here from a preset", 0, 0},
        {0},
    };
    const int own = append(table, 0, cli->opts);
    int n = append(table, own, common);
    if (cli->video) n = append(table, n, video);
    if (cli->presets) append(table, n, preset);
    return own;
}

/* Messages and progress */

static bool line_shown; /* a progress line stands on the terminal; guarded by stderr's lock */

static void clear_line(void) {
    if (line_shown) fputs("\r\033[K", stderr);
    line_shown = false;
}

static void say(const ma_cli *c, const char *head, const char *fmt, va_list ap, const char *tail) {
    char *text = NULL, *line = NULL;
    if (vasprintf(&text, fmt, ap) >= 0) line = ma_format("%s: %s%s%s\n", c->name, head, text, tail);
    flockfile(stderr);
    clear_line();
    fputs(line ? line : "out of memory\n", stderr);
    funlockfile(stderr);
    free(text);
    free(line);
}

void ma_say(const ma_cli *c, int level, const char *fmt, ...) {
    if (level == 1 ? c->common.quiet : level > 1 && c->common.verbose < level - 1) return;
    if (level && c->rank) return;
    char who[24] = "";
    if (c->rank) snprintf(who, sizeof who, "rank %d: ", c->rank);
    va_list ap;
    va_start(ap, fmt);
    say(c, who, fmt, ap, "");
    va_end(ap);
}

/* "45 s", "12 min", "3.4 h" */
static const char *duration(char out[32], double s) {
    if (s < 90)
        snprintf(out, 32, "%.0f s", s);
    else if (s < 90 * 60)
        snprintf(out, 32, "%.0f min", s / 60);
    else if (s < 48 * 3600)
        snprintf(out, 32, "%.1f h", s / 3600);
    else
        snprintf(out, 32, "%.1f days", s / 86400);
    return out;
}

static int columns(void) {
    struct winsize w;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 20 ? w.ws_col : 80;
}

/* The line; NULL: out of memory. */
static char *progress_text(const ma_progress *p, double now, bool over) {
    ma_buf b = {0};
    char time[32];
    double elapsed = now - p->start, rate = elapsed > 0 ? (double)p->done / elapsed : 0;
    ma_buf_printf(&b, "%s: %lld", p->cli->name, (long long)p->done);
    if (p->total) ma_buf_printf(&b, "/%lld", (long long)p->total);
    ma_buf_printf(&b, " %s", p->unit);
    if (rate > 0) ma_buf_printf(&b, rate < 100 ? ", %.3g/s" : ", %.0f/s", rate);
    if (over)
        ma_buf_printf(&b, ", %s", duration(time, elapsed));
    else if (rate > 0 && p->total > p->done)
        ma_buf_printf(&b, ", %s left", duration(time, (double)(p->total - p->done) / rate));
    if (p->bad) ma_buf_printf(&b, ", %lld bad", (long long)p->bad);
    if (*p->note) ma_buf_printf(&b, ", %.*s", (int)sizeof p->note, p->note);
    return b.data;
}

static void show(ma_progress *p, double now, bool over) {
    char *text = progress_text(p, now, over);
    bool tty = isatty(STDERR_FILENO);
    if (text && tty) { /* a line longer than the terminal could not be rewritten */
        int room = columns() - 1;
        if ((int)strlen(text) > room) text[room] = 0;
    }
    flockfile(stderr);
    clear_line();
    char *line = text ? ma_format("%s%s", text, tty && !over ? "" : "\n") : NULL;
    if (line) fputs(line, stderr);
    line_shown = tty && !over;
    funlockfile(stderr);
    free(line);
    free(text);
    p->last = now;
}

enum { PROGRESS_AUTO, PROGRESS_ALWAYS, PROGRESS_NEVER };

static bool silent(const ma_progress *p) {
    int mode = p->cli->common.progress;
    return p->cli->rank || mode == PROGRESS_NEVER || (mode == PROGRESS_AUTO && p->cli->common.quiet);
}

void ma_progress_start(ma_progress *p, const ma_cli *cli, const char *unit, int64_t total) {
    double now = ma_now();
    *p = (ma_progress){.cli = cli, .unit = unit, .total = total, .start = now, .last = now};
}

void ma_progress_step(ma_progress *p) {
    double now = ma_now(), pause = isatty(STDERR_FILENO) ? 0.1 : 60;
    if (!silent(p) && now - p->last >= pause) show(p, now, false);
}

void ma_progress_end(ma_progress *p) {
    bool seen = p->last > p->start; /* a short run without a terminal says nothing, unless asked to */
    if (!silent(p) && (seen || p->cli->common.progress == PROGRESS_ALWAYS)) show(p, ma_now(), true);
}

int ma_flush_stdout(ma_err *e) {
    return fflush(stdout) ? ma_fail(e, MA_IO, "standard output: %s", strerror(errno)) : 0;
}

/* Signals */

_Atomic int ma_stopped;
_Static_assert(ATOMIC_INT_LOCK_FREE == 2, "a signal handler sets it");

static void on_signal(int sig) {
    if (ma_stopped) { /* asked twice: now */
        ma_outfile_sweep();
        signal(sig, SIG_DFL);
        raise(sig);
    }
    ma_stopped = 1;
}

void ma_catch_signals(void) {
    struct sigaction act = {.sa_handler = on_signal}; /* no SA_RESTART: a blocked read must come back */
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* Usage errors: the message, the hint, exit status 2. */
__attribute__((format(printf, 2, 3))) static int usage(const ma_cli *c, const char *fmt, ...) {
    char hint[96], *where = c->reading ? ma_format("%s:%d: ", c->preset.path, c->reading->line) : NULL;
    snprintf(hint, sizeof hint, " (see %s --help)", c->name);
    va_list ap;
    va_start(ap, fmt);
    say(c, where ? where : "", fmt, ap, hint);
    va_end(ap);
    free(where);
    return 2;
}

/* Edit distance with neighbours swapped counted once; words over 40 letters are nobody's typo. */
static int distance(const char *a, const char *b) {
    enum { MOST = 40 };
    int n = (int)strlen(a), m = (int)strlen(b), d[3][MOST + 1];
    if (n > MOST || m > MOST) return MOST;
    for (int j = 0; j <= m; j++) d[0][j] = j;
    for (int i = 1; i <= n; i++) {
        int *row = d[i % 3], *up = d[(i + 2) % 3], *upup = d[(i + 1) % 3];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            int best = up[j - 1] + (a[i - 1] != b[j - 1]);
            if (up[j] + 1 < best) best = up[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && upup[j - 2] + 1 < best)
                best = upup[j - 2] + 1;
            row[j] = best;
        }
    }
    return d[n % 3][m];
}

/* Keeps in *best the word nearest to what was typed, if it is near at all: at most half of it wrong. */
static void nearer(const char *typed, const char *word, const char **best, int *least) {
    int d = distance(typed, word);
    if (d < *least && 2 * d <= (int)strlen(word)) {
        *least = d;
        *best = word;
    }
}

/* Values */

/* Digits with an optional minus; no blanks, no plus, no suffix. Moves *s behind them. */
static bool parse_int(const char **s, int64_t *out) {
    const char *digits = *s + (**s == '-');
    size_t n = strspn(digits, "0123456789");
    char *end;
    if (!n) return false;
    errno = 0;
    *out = strtoll(*s, &end, 10);
    *s = end;
    return errno == 0;
}

static bool parse_real(const char *s, double *out) {
    char *end;
    if (!*s || s[strspn(s, "0123456789+-.eE")]) return false;
    *out = strtod(s, &end);
    return !*end && isfinite(*out);
}

/* Whether v is in range; if not, says so. */
static bool in_range(const ma_cli *c, const ma_opt *o, const char *text, double v) {
    if (o->lo == o->hi || (v >= o->lo && v <= o->hi)) return true;
    if (isinf(o->hi))
        usage(c, "--%s: %s is less than %.15g", o->name, text, o->lo);
    else if (isinf(o->lo))
        usage(c, "--%s: %s is more than %.15g", o->name, text, o->hi);
    else
        usage(c, "--%s: %s is not in %.15g..%.15g", o->name, text, o->lo, o->hi);
    return false;
}

/* A comma-separated rendering of "a|b|c" for messages. */
static int bad_choice(const ma_cli *c, const ma_opt *o, const char *text) {
    ma_buf b = {0};
    for (const char *s = o->arg; *s; s++) ma_buf_add(&b, *s == '|' ? ", " : s, *s == '|' ? 2 : 1);
    usage(c, "--%s: %s is not one of %s", o->name, text, b.data ? b.data : o->arg);
    ma_buf_free(&b);
    return 2;
}

static int set_choice(const ma_cli *c, const ma_opt *o, const char *text) {
    size_t n = strlen(text);
    int i = 0;
    for (const char *s = o->arg;; i++) {
        const char *end = strchrnul(s, '|');
        if (n == (size_t)(end - s) && !memcmp(s, text, n)) {
            *(int *)o->to = i;
            return 0;
        }
        if (!*end) return bad_choice(c, o, text);
        s = end + 1;
    }
}

/* A side of a picture or a count of frames. */
static bool parse_extent(const char **s, char after, int64_t *out) {
    if (!parse_int(s, out) || *out < 1 || *out > 1 << 20) return false;
    if (after && *(*s)++ != after) return false;
    return true;
}

static int set_size(const ma_cli *c, const ma_opt *o, const char *text) {
    int64_t *to = o->to, size[2] = {0};
    const char *s = text, *bar = strchr(o->arg, '|');
    bool word = bar && strlen(text) == (size_t)(bar - o->arg) && !memcmp(text, o->arg, strlen(text));
    if (!word) {
        if (!parse_extent(&s, 'x', &size[0]) || !parse_extent(&s, 0, &size[1]) || *s)
            return usage(c, "--%s: %s is not %s, height and width such as 160x240", o->name, text, o->arg);
        if (!in_range(c, o, text, (double)size[0]) || !in_range(c, o, text, (double)size[1])) return 2;
    }
    memcpy(to, size, sizeof size);
    return 0;
}

static int set_clip(const ma_cli *c, const ma_opt *o, const char *text) {
    ma_clip_size clip = {0};
    const char *s = text;
    bool good =
        parse_extent(&s, 'x', &clip.frames) && parse_extent(&s, 'x', &clip.height) && parse_extent(&s, 0, &clip.width);
    if (good && *s == '@')
        good = parse_real(s + 1, &clip.fps) && clip.fps > 0 && clip.fps <= 1000;
    else
        good = good && !*s;
    if (!good)
        return usage(c, "--%s: %s is not FxHxW[@FPS], frames, height, width and rate such as 49x160x240@8", o->name,
                     text);
    *(ma_clip_size *)o->to = clip;
    return 0;
}

static int set_part(const ma_cli *c, const ma_opt *o, const char *text) {
    int64_t part[2];
    const char *s = text;
    if (!parse_int(&s, &part[0]) || *s++ != '/' || !parse_int(&s, &part[1]) || *s || part[0] < 0 ||
        part[0] >= part[1] || part[1] > 1 << 30)
        return usage(c, "--%s: %s is not I/N, part I of N, counted from 0, such as 0/8", o->name, text);
    memcpy(o->to, part, sizeof part);
    return 0;
}

static int list_add(const ma_cli *c, ma_list *l, const char *text) {
    if ((l->n & (l->n - 1)) == 0) { /* full: 0, 1, 2, 4, 8 … */
        const char **at = realloc(l->at, (l->n ? (size_t)l->n * 2 : 1) * sizeof *at);
        if (!at) return usage(c, "out of memory");
        l->at = at;
    }
    l->at[l->n++] = text;
    return 0;
}

static int set_int(const ma_cli *c, const ma_opt *o, const char *text) {
    int64_t v;
    const char *s = text;
    if (!parse_int(&s, &v) || *s) return usage(c, "--%s: %s is not a whole number", o->name, text);
    if (!in_range(c, o, text, (double)v)) return 2;
    *(int64_t *)o->to = v;
    return 0;
}

/* "500M": 500 · 1024². What does not fit in 64 bits is refused. */
static int set_bytes(const ma_cli *c, const ma_opt *o, const char *text) {
    static const char units[] = "KMGT";
    const char *s = text, *unit;
    int64_t v;
    bool good = parse_int(&s, &v) && v >= 0;
    if (good && *s && (unit = strchr(units, *s))) {
        good = !__builtin_mul_overflow(v, (int64_t)1 << 10 * (unit - units + 1), &v);
        s++;
    }
    if (!good || *s) return usage(c, "--%s: %s is not a size such as 500M or 24G", o->name, text);
    if (!in_range(c, o, text, (double)v)) return 2;
    *(int64_t *)o->to = v;
    return 0;
}

static int set_real(const ma_cli *c, const ma_opt *o, const char *text) {
    double v;
    if (!parse_real(text, &v)) return usage(c, "--%s: %s is not a number", o->name, text);
    if (!in_range(c, o, text, v)) return 2;
    *(double *)o->to = v;
    return 0;
}

static bool takes_value(const ma_opt *o) {
    return o->type != MA_OPT_FLAG && o->type != MA_OPT_COUNT;
}

static int set(const ma_cli *c, const ma_opt *o, const char *text) {
    switch (o->type) {
    case MA_OPT_FLAG: *(bool *)o->to = true; return 0;
    case MA_OPT_COUNT: ++*(int *)o->to; return 0;
    case MA_OPT_TEXT: *(const char **)o->to = text; return 0;
    case MA_OPT_LIST: return list_add(c, o->to, text);
    case MA_OPT_INT: return set_int(c, o, text);
    case MA_OPT_REAL: return set_real(c, o, text);
    case MA_OPT_CHOICE: return set_choice(c, o, text);
    case MA_OPT_SIZE: return set_size(c, o, text);
    case MA_OPT_CLIP: return set_clip(c, o, text);
    case MA_OPT_BYTES: return set_bytes(c, o, text);
    case MA_OPT_PART: return set_part(c, o, text);
    }
    return 2;
}

/* The parser */

typedef struct parser {
    ma_cli *c;
    ma_opt table[NOPTS + 1];
    char **argv;
    int argc, at; /* at: the next argument to look at */
} parser;

/* dashes: what stands before a name: "--" on the command line, nothing in a preset. */
static int unknown_option(const parser *p, const char *name, const char *dashes) {
    const char *best = NULL;
    int least = NOPTS;
    for (const ma_opt *o = p->table; o->name; o++) nearer(name, o->name, &best, &least);
    if (best) return usage(p->c, "%s%s: unknown option; did you mean %s%s?", dashes, name, dashes, best);
    return usage(p->c, "%s%s: unknown option", dashes, name);
}

/* value: what stood behind "=" or the letter, or NULL. */
static int apply(parser *p, const ma_opt *o, const char *value) {
    if (takes_value(o) && !value) {
        if (p->at >= p->argc) return usage(p->c, "--%s: needs a value, %s", o->name, o->arg);
        value = p->argv[p->at++];
    }
    int rc = set(p->c, o, value);
    if (rc == 0) p->c->given |= 1ull << (o - p->table);
    return rc;
}

static int parse_long(parser *p, const char *arg) {
    const char *name = arg + 2, *equals = strchrnul(name, '=');
    size_t n = (size_t)(equals - name);
    const ma_opt *o = p->table;
    while (o->name && (strncmp(o->name, name, n) || o->name[n])) o++;
    if (!o->name) {
        char typed[64];
        snprintf(typed, sizeof typed, "%.*s", (int)n, name);
        return unknown_option(p, typed, "--");
    }
    if (*equals && !takes_value(o)) return usage(p->c, "--%s: takes no value", o->name);
    return apply(p, o, *equals ? equals + 1 : NULL);
}

/* "-v", "-vq", "-o FILE", "-oFILE", "-vo FILE" */
static int parse_letters(parser *p, const char *arg) {
    int rc = 0;
    for (const char *s = arg + 1; *s && rc == 0; s++) {
        const ma_opt *o = p->table;
        while (o->name && o->letter != *s) o++;
        if (!o->name) return usage(p->c, "-%c: unknown option", *s);
        if (takes_value(o)) return apply(p, o, s[1] ? s + 1 : NULL);
        rc = apply(p, o, NULL);
    }
    return rc;
}

static int set_verb(ma_cli *c, const char *arg) {
    const char *best = NULL;
    int least = NOPTS;
    for (int i = 0; c->verbs[i]; i++) {
        if (!strcmp(c->verbs[i], arg)) return c->verb = i, 0;
        nearer(arg, c->verbs[i], &best, &least);
    }
    if (best) return usage(c, "%s: unknown command; did you mean %s?", arg, best);
    return usage(c, "%s: unknown command", arg);
}

static int no_verb(const ma_cli *c) {
    ma_buf b = {0};
    for (int i = 0; c->verbs[i]; i++) ma_buf_printf(&b, "%s%s", i ? ", " : "", c->verbs[i]);
    usage(c, "needs a command: %s", b.data ? b.data : "");
    ma_buf_free(&b);
    return 2;
}

static int parse_arguments(parser *p) {
    ma_cli *c = p->c;
    int rc = 0;
    bool verb_next = c->verbs != NULL, options_over = false;
    while (p->at < p->argc && rc == 0 && !c->common.help && !c->common.version) {
        const char *arg = p->argv[p->at++];
        if (options_over || arg[0] != '-' || !arg[1]) {
            rc = verb_next ? set_verb(c, arg) : list_add(c, &c->inputs, arg);
            verb_next = false;
        } else if (!strcmp(arg, "--")) {
            options_over = true;
        } else {
            rc = arg[1] == '-' ? parse_long(p, arg) : parse_letters(p, arg);
        }
    }
    return rc;
}

/* Reads the file of names whole: the names are then pieces of c->names. */
static int read_names(ma_cli *c, const char *path) {
    bool dash = !strcmp(path, "-");
    int fd = dash ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return usage(c, "--files-from: %s: %s", path, strerror(errno));
    char chunk[1 << 14];
    ssize_t got;
    int rc = 0;
    while (rc == 0 && (got = read(fd, chunk, sizeof chunk)) != 0) {
        if (got < 0)
            rc = usage(c, "--files-from: %s: %s", path, strerror(errno));
        else if (ma_buf_add(&c->names, chunk, (size_t)got) < 0)
            rc = usage(c, "--files-from: %s: out of memory", path);
    }
    if (!dash) close(fd);
    if (rc == 0 && c->names.data && strlen(c->names.data) != c->names.size)
        rc = usage(c, "--files-from: %s: not a list of names", path);
    return rc;
}

static int files_from(ma_cli *c) {
    const char *path = c->common.files_from;
    if (!path) return 0;
    for (int i = 0; i < c->inputs.n && !strcmp(path, "-"); i++) {
        if (!strcmp(c->inputs.at[i], "-"))
            return usage(c, "--files-from: standard input cannot be both names and data");
    }
    int rc = read_names(c, path), before = c->inputs.n;
    for (char *line = c->names.data, *next; line && rc == 0; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        size_t n = strlen(line);
        if (n && line[n - 1] == '\r') line[--n] = 0;
        if (n) rc = list_add(c, &c->inputs, line);
    }
    if (rc == 0 && c->inputs.n == before) rc = usage(c, "--files-from: %s: names nothing", path);
    return rc;
}

/* A line of a preset: an option of the tool's own, in full, unless the command line has it. */
static int apply_preset_line(parser *p, int own, const ma_preset_line *l, uint64_t on_command_line) {
    int i = 0;
    while (p->table[i].name && strcmp(p->table[i].name, l->name)) i++;
    if (!p->table[i].name) return unknown_option(p, l->name, "");
    if (i >= own) return usage(p->c, "%s: belongs on the command line, not in a preset", l->name);
    const ma_opt *o = &p->table[i];
    const uint64_t bit = 1ull << i;
    if (takes_value(o) && !l->value) return usage(p->c, "%s: needs a value, %s", o->name, o->arg);
    if (!takes_value(o) && l->value) return usage(p->c, "%s: takes no value", o->name);
    if (on_command_line & bit) return 0;
    if (p->c->given & bit && o->type != MA_OPT_LIST) return usage(p->c, "%s: is there twice", o->name);
    p->c->given |= bit;
    return set(p->c, o, l->value);
}

static int apply_preset(parser *p, int own) {
    ma_cli *c = p->c;
    ma_err e = {0};
    const uint64_t on_command_line = c->given;
    int rc = 0;
    if (!c->common.preset) return 0;
    if (ma_preset_read(c->common.preset, c->name, &c->preset, &e)) return usage(c, "--preset: %s", e.text);
    for (int i = 0; i < c->preset.n && !rc; i++) {
        c->reading = &c->preset.at[i];
        rc = apply_preset_line(p, own, c->reading, on_command_line);
    }
    c->reading = NULL;
    return rc;
}

static int check_common(const ma_cli *c) {
    const char *d = c->common.device, *number = d + 5;
    int64_t n;
    bool cuda_n = !strncmp(d, "cuda:", 5) && parse_int(&number, &n) && !*number && n >= 0 && n < 1024;
    if (strcmp(d, "auto") && strcmp(d, "cpu") && strcmp(d, "cuda") && !cuda_n)
        return usage(c, "--device: %s is not one of auto, cpu, cuda, cuda:N", d);
    if (c->common.out && !*c->common.out) return usage(c, "--out: needs a value, FILE");
    if (c->common.captions && !c->common.list)
        return usage(c, "--captions: needs --list, the videos that they belong to");
    return 0;
}

/* For --help and --version: their reader may have gone, or its disk may be full. */
static int end_output(const ma_cli *c, FILE *out) {
    if (fflush(out) == 0 && !ferror(out)) return 0;
    ma_say(c, 0, "standard output: %s", strerror(errno));
    return 1;
}

int ma_cli_parse(ma_cli *c, int argc, char **argv, FILE *out) {
    c->verb = -1;
    c->inputs = (ma_list){0};
    c->common = (ma_common){.device = "auto", .level = 1, .max_bad = -1, .part = {0, 1}};
    c->given = 0;
    c->names = (ma_buf){0};
    c->preset = (ma_preset){0};
    parser p = {.c = c, .argv = argv, .argc = argc, .at = 1};
    const int own = options(c, &c->common, p.table);
    int rc = parse_arguments(&p);
    if (rc == 0 && c->common.help) {
        ma_cli_help(c, out);
        return end_output(c, out);
    }
    if (rc == 0 && c->common.version) {
        fprintf(out, "%s %s\n", c->name, MA_VERSION);
        return end_output(c, out);
    }
    if (rc == 0 && c->verbs && c->verb < 0) rc = no_verb(c);
    if (rc == 0) rc = apply_preset(&p, own);
    if (rc == 0) rc = check_common(c);
    if (rc == 0) rc = files_from(c);
    if (rc) return rc;
    if (c->common.strict) c->common.max_bad = 0;
    if (c->common.threads) omp_set_num_threads((int)c->common.threads);
    return -1;
}

bool ma_cli_given(const ma_cli *c, const char *name) {
    ma_common none;
    ma_opt table[NOPTS + 1];
    options(c, &none, table);
    for (int i = 0; table[i].name; i++) {
        if (!strcmp(table[i].name, name)) return c->given >> i & 1;
    }
    return false;
}

void ma_cli_free(ma_cli *c) {
    for (const ma_opt *o = c->opts; o && o->name; o++) {
        if (o->type != MA_OPT_LIST) continue;
        ma_list *l = o->to;
        free(l->at);
        *l = (ma_list){0};
    }
    free(c->common.drop.at);
    free(c->inputs.at);
    c->common.drop = c->inputs = (ma_list){0};
    ma_buf_free(&c->names);
    ma_preset_free(&c->preset);
}

/* Help */

enum { COLUMNS = 100, LEFT = 40 }; /* LEFT: where the text stands, unless an option is longer */

static int width(const char *s) {
    int n = 0;
    for (; *s; s++) n += (*s & 0xc0) != 0x80;
    return n;
}

/* Words of text from column `at` on, wrapped and indented to column LEFT. */
static void wrapped(FILE *out, const char *text, int at) {
    for (bool first = true; *text; first = false) {
        char word[128];
        size_t n = strcspn(text, " ");
        snprintf(word, sizeof word, "%.*s", (int)n, text);
        bool fits = first || at + 1 + width(word) <= COLUMNS;
        if (!fits)
            at = fprintf(out, "\n%*s", LEFT, "") - 1;
        else if (!first)
            at += fprintf(out, " ");
        fputs(word, out);
        at += width(word);
        text += n + strspn(text + n, " ");
    }
    fputc('\n', out);
}

/* " (default 12)" for a number or a choice whose text has none; what stands in the table is the default. */
static void add_default(const ma_opt *o, ma_buf *text) {
    if (strstr(o->help, "(default")) return;
    if (o->type == MA_OPT_INT) ma_buf_printf(text, " (default %lld)", (long long)*(const int64_t *)o->to);
    if (o->type == MA_OPT_REAL) ma_buf_printf(text, " (default %g)", *(const double *)o->to);
    if (o->type == MA_OPT_CHOICE) {
        const char *word = o->arg;
        for (int i = *(const int *)o->to; i > 0 && *word; i--) word += strcspn(word, "|") + 1;
        ma_buf_printf(text, " (default %.*s)", (int)strcspn(word, "|"), word);
    }
}

static void option_help(FILE *out, const ma_opt *o, bool own) {
    char letter[8] = "    ", left[128];
    ma_buf text = {0};
    if (o->letter) snprintf(letter, sizeof letter, "-%c, ", o->letter);
    snprintf(left, sizeof left, "  %s--%s%s%s", letter, o->name, o->arg ? " " : "", o->arg ? o->arg : "");
    int gap = width(left) + 2 <= LEFT ? LEFT - width(left) : 2;
    fprintf(out, "%s%*s", left, gap, "");
    ma_buf_printf(&text, "%s", o->help);
    if (own) add_default(o, &text);
    wrapped(out, text.data ? text.data : o->help, width(left) + gap);
    ma_buf_free(&text);
}

void ma_cli_help(const ma_cli *c, FILE *out) {
    ma_common none;
    ma_opt table[NOPTS + 1];
    int own = options(c, &none, table);
    fprintf(out, "Usage: %s ", c->name);
    for (int i = 0; c->verbs && c->verbs[i]; i++) fprintf(out, "%s%s", i ? "|" : "", c->verbs[i]);
    fprintf(out, "%s[OPTION]… %s\n%s %s.\n", c->verbs ? " " : "", c->args, c->name, c->does);
    for (int i = 0; table[i].name; i++) {
        if (i == 0 && own) fprintf(out, "\nOptions:\n");
        if (i == own) fprintf(out, "\nCommon options:\n");
        option_help(out, &table[i], i < own);
    }
}
