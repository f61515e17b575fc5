/* ma-score: how far clips of the toy world show what their captions say and obey physics, without a network: balls are
 * found by colour and followed, laws of motion fitted to their ways. A line of CSV a clip. ma-score summary makes a
 * table of such files, where those that differ in a number at their name's end are seeds of one row.
 *
 * Limits: captions of the toy world only (ma-toy(1)); a whole clip is in memory, at 14 bytes a pixel on top of its own.
 */
#include "../common/clip.h"
#include "../common/csv.h"
#include "../common/figures.h"
#include "../common/file.h"
#include "../common/score.h"
#include "../common/stage.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LEAST_FRAMES = 4, LEAST_SIDE = 16 };
enum { TEXT, MARKDOWN };

static const char *member;
static double fps = 12, pass = MA_SCORE_PASS;
static bool measured, with_parts, still;
static int format;

static const ma_opt options[] = {
    {"member", 0, MA_OPT_TEXT, &member, "EXT",
     "the member to score, a video or .npy (T,H,W,3) (default sample.mp4, else mp4, mkv …)", 0, 0},
    {"static", 0, MA_OPT_FLAG, &still, NULL, "score the first frame of each clip, held for its length", 0, 0},
    {"fps", 0, MA_OPT_REAL, &fps, "X", "frames per second of an .npy (default 12)", 0.1, 1000},
    {"measured", 0, MA_OPT_FLAG, &measured, NULL, "write what was measured in place of the parts' scores", 0, 0},
    {"parts", 0, MA_OPT_FLAG, &with_parts, NULL, "summary: a column for each part, too", 0, 0},
    {"pass", 0, MA_OPT_REAL, &pass, "P", "summary: SA and PC of P and more pass (default 0.5)", 0.001, 1},
    {"format", 0, MA_OPT_CHOICE, &format, "text|markdown", "summary: of the table (default text)", 0, 0},
    {0},
};
static ma_cli cli = {
    .name = "ma-score",
    .does = "scores clips of the toy world: caption adherence and physics",
    .args = "[INPUT]… | summary CSV…",
    .opts = options,
    .video = true,
};

/* ---- a clip */

typedef struct job {
    char *caption;
    ma_score score;
    double flickering;
    bool has_flow;
    ma_figures figures;
} job;

static const ma_member *find_member(const ma_sample *s, ma_err *e) {
    const ma_member *m = ma_sample_get(s, member ? member : "sample.mp4");
    if (!m && !member) m = ma_clip_member(s);
    if (!m && member) ma_fail(e, MA_MISSING, "%s.%s: not in the sample", s->key, member);
    if (!m && !member) ma_fail(e, MA_MISSING, "%s: no video: none of sample.mp4, mp4, mkv, webm, mov, avi", s->key);
    return m;
}

static bool ends_in(const char *text, const char *end) {
    const size_t n = strlen(text), k = strlen(end);
    return n >= k && !strcmp(text + n - k, end);
}

/* Frames as an array. */
static int read_npy(const ma_sample *s, const char *ext, ma_clip *out, ma_err *e) {
    ma_array a = {0};
    char shape[160];
    int rc = ma_sample_array(s, ext, &a, e);
    const size_t size = rc ? 0 : ma_array_bytes(&a);
    if (!rc && (a.type != MA_U8 || a.nd != 4 || a.n[3] != 3 || !size))
        rc = ma_fail(e, MA_SHAPE, "%s.%s: %s %s, not u8 (T,H,W,3)", s->key, ext, ma_type_name(a.type),
                     ma_shape_text(shape, a.nd, a.n));
    if (!rc) *out = (ma_clip){.frames = a.n[0], .height = a.n[1], .width = a.n[2], .rgb = malloc(size), .fps = fps};
    if (!rc && !out->rgb) rc = ma_fail(e, MA_MEMORY, "%s: out of memory", s->key);
    if (!rc) memcpy(out->rgb, a.data, size);
    ma_array_free(&a);
    return rc;
}

static int read_clip(const ma_sample *s, const ma_member *m, ma_clip *out, ma_err *e) {
    const ma_clip_opts all = {0};
    char *name = ma_format("%s.%s", s->key, m->ext);
    int rc = name ? 0 : ma_fail(e, MA_MEMORY, "%s: out of memory", s->key);
    if (!rc)
        rc = ends_in(m->ext, ".npy") || !strcmp(m->ext, "npy") ? read_npy(s, m->ext, out, e)
                                                               : ma_video_read(m->data, m->size, name, &all, out, e);
    if (!rc && out->frames < LEAST_FRAMES)
        rc =
            ma_fail(e, MA_SHORT, "%s: %lld frames, at least %d are needed", name, (long long)out->frames, LEAST_FRAMES);
    if (!rc && (out->height < LEAST_SIDE || out->width < LEAST_SIDE))
        rc = ma_fail(e, MA_SHAPE, "%s: %lldx%lld pixels, at least %dx%d are needed", name, (long long)out->height,
                     (long long)out->width, LEAST_SIDE, LEAST_SIDE);
    for (int64_t k = 1, n = 3 * out->height * out->width; still && !rc && k < out->frames; k++)
        memcpy(out->rgb + k * n, out->rgb, (size_t)n);
    free(name);
    return rc;
}

/* KEY.txt in one line. */
static char *read_caption(const ma_sample *s, ma_err *e) {
    const ma_member *m = ma_sample_get(s, "txt");
    if (!m) {
        ma_fail(e, MA_MISSING, "%s: no caption: KEY.txt is not in the sample", s->key);
        return NULL;
    }
    char *text = ma_format("%.*s", (int)(m->size < 65536 ? m->size : 65536), (const char *)m->data);
    if (!text) ma_fail(e, MA_MEMORY, "%s: out of memory", s->key);
    for (char *p = text; p && *p; p++)
        if ((unsigned char)*p < ' ') *p = ' ';
    for (size_t n = text ? strlen(text) : 0; n && text[n - 1] == ' '; n--) text[n - 1] = 0;
    return text;
}

/* Which frames flow.npy is of, as its maker says in KEY.json; stride 0: nobody says so. */
static void find_pairs(ma_sample *s, ma_flow_clip *c) {
    static const char *const makers[] = {"ma-flow", "ma-toy"};
    const cJSON *json = ma_sample_json(s, NULL), *o = NULL;
    for (int k = 0; k < 2 && !o; k++)
        o = cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(json, makers[k]), "options");
    const cJSON *stride = cJSON_GetObjectItemCaseSensitive(o, "stride"),
                *skip = cJSON_GetObjectItemCaseSensitive(o, "skip");
    const double most = (double)c->frames;
    if (!cJSON_IsNumber(stride) || !(stride->valuedouble >= 1 && stride->valuedouble < most)) return;
    c->stride = (int64_t)stride->valuedouble;
    c->skip = c->frames % c->stride;
    if (cJSON_IsNumber(skip) && skip->valuedouble >= 0 && skip->valuedouble < most)
        c->skip = (int64_t)skip->valuedouble;
}

/* The figures that need flow, where flow.npy is that of this clip: its pairs are those of so many frames, its grid has
 * the clip's shape. */
static int look_at_flow(ma_sample *s, const ma_clip *clip, job *j, ma_err *e) {
    ma_flow_clip c = {clip->rgb, clip->frames, clip->height, clip->width, .fps = clip->fps};
    ma_array a = {0};
    int rc = 0;
    find_pairs(s, &c);
    if (!c.stride || !ma_sample_get(s, "flow.npy")) return 0;
    if (ma_sample_array(s, "flow.npy", &a, e)) return -1;
    const bool fits = a.nd == 4 && a.n[3] == 2 && a.n[0] > 0 && a.n[0] == (c.frames - c.skip - 1) / c.stride &&
                      a.n[1] > 0 && a.n[2] > 0 &&
                      fabs((double)a.n[1] / (double)a.n[2] * (double)c.width / (double)c.height - 1) < 0.02;
    float *uv = fits ? ma_array_f32(&a, e) : NULL;
    if (fits && !uv) rc = -1;
    if (uv) {
        c.flow = uv;
        c.pairs = a.n[0];
        c.h = a.n[1];
        c.w = a.n[2];
        rc = ma_figures_of(&c, &j->figures, e);
        j->has_flow = !rc;
    }
    ma_release(uv);
    ma_array_free(&a);
    return rc;
}

static int score_clip(ma_sample *s, job *j, ma_err *e) {
    ma_caption said;
    ma_clip clip = {0};
    ma_tracks tracks = {0};
    const ma_member *m = find_member(s, e);
    if (!m || !(j->caption = read_caption(s, e))) return -1;
    if (ma_caption_read(j->caption, &said, e)) return -1;
    int rc = read_clip(s, m, &clip, e);
    if (!rc) rc = ma_tracks_find(&tracks, clip.rgb, clip.frames, clip.height, clip.width, clip.fps, e);
    if (!rc) rc = ma_score_of(&tracks, &said, &j->score, e);
    j->flickering = 1 - tracks.flicker / 255;
    if (!rc && !still && m == ma_clip_member(s)) rc = look_at_flow(s, &clip, j, e);
    ma_tracks_free(&tracks);
    ma_clip_free(&clip);
    return rc;
}

/* ---- the stream */

typedef struct run {
    ma_buf csv;
    int64_t clips, sa, pc, joint;
} run;

static void *prepare(void *self, ma_sample **s, ma_err *why) {
    job *j = calloc(1, sizeof *j);
    (void)self;
    if (!j)
        ma_fail(why, MA_MEMORY, "%s: out of memory", (*s)->key);
    else
        score_clip(*s, j, why);
    return j;
}

static void release(void *self, void *pre) {
    job *j = pre;
    (void)self;
    free(j->caption);
    free(j);
}

static int put_header(ma_buf *b) {
    int rc = ma_buf_printf(b, "key,caption,sa,pc,joint");
    for (int p = 0; p < MA_PARTS; p++) rc |= ma_buf_printf(b, ",%s", ma_part_name((ma_part)p));
    return rc | ma_buf_printf(b, ",camera,flickering,smoothness,dynamic\n");
}

static int put_row(ma_buf *b, const char *key, const job *j) {
    const ma_score *s = &j->score;
    int rc = ma_csv_put(b, key, ',') | ma_csv_put(b, j->caption, ',');
    rc |= ma_buf_printf(b, "%.4f,%.4f,%d", s->sa, s->pc, s->joint);
    for (int p = 0; p < MA_PARTS; p++) rc |= ma_buf_printf(b, ",%.4f", measured ? s->measured[p] : s->part[p]);
    rc |= ma_buf_printf(b, ",%d,%.4f,", s->camera, j->flickering);
    return rc | (j->has_flow ? ma_buf_printf(b, "%.4f,%d\n", j->figures.smoothness, j->figures.dynamic)
                             : ma_buf_printf(b, ",\n"));
}

static int work(void *self, ma_sample **s, void **pre, int n, ma_err *why, ma_err *e) {
    run *r = self;
    (void)why;
    for (int k = 0; k < n; k++) {
        const job *j = pre[k];
        if (put_row(&r->csv, s[k]->key, j)) return ma_fail(e, MA_MEMORY, "out of memory");
        r->clips++;
        r->sa += j->score.sa >= MA_SCORE_PASS;
        r->pc += j->score.pc >= MA_SCORE_PASS;
        r->joint += j->score.joint;
    }
    return 0;
}

static int score_all(void) {
    run r = {0};
    ma_err e = {0};
    int rc = put_header(&r.csv);
    if (rc) ma_fail(&e, MA_MEMORY, "out of memory");
    if (!rc)
        rc = ma_stage_run(&(ma_stage){.cli = &cli,
                                      .self = &r,
                                      .prepare = prepare,
                                      .work = work,
                                      .release = release,
                                      .video = true,
                                      .no_output = true},
                          STDOUT_FILENO);
    if (!ma_stopped && rc < 2 && e.reason == MA_OK) ma_output_write(&cli, &r.csv, &e);
    const double percent = 100 / fmax(1, (double)r.clips);
    if (!ma_stopped && r.clips && e.reason == MA_OK)
        ma_say(&cli, 1, "%lld clips: SA %.1f %%, PC %.1f %%, Joint %.1f %%", (long long)r.clips, percent * (double)r.sa,
               percent * (double)r.pc, percent * (double)r.joint);
    ma_buf_free(&r.csv);
    const int status = ma_exit_status(&cli, &e, STDOUT_FILENO);
    return status ? status : rc;
}

/* --dry-run: what is measured, and what scores 1 and 0. */
static int plan(ma_err *e) {
    printf("%-12s %9s %9s   pass: %g and more\n", "part", "scores 1", "scores 0", MA_SCORE_PASS);
    for (int p = 0; p < MA_PARTS; p++) {
        double good, bad;
        ma_part_range((ma_part)p, &good, &bad);
        printf("%-12s %9g %9g\n", ma_part_name((ma_part)p), good, bad);
    }
    return ma_flush_stdout(e);
}

/* ---- ma-score summary */

enum { SA, PC, JOINT, HEADS = 7, COLUMNS = HEADS + MA_PARTS };

/* Columns of the table: those of the files. SA, PC and Joint count as passed or not, by --pass. */
static const char *const heads[HEADS] = {"SA", "PC", "Joint", "camera", "flickering", "smoothness", "dynamic"};

static const char *column_name(int c) {
    return c < HEADS ? heads[c] : ma_part_name((ma_part)(c - HEADS));
}

/* Files of one path but for the number at its end. */
typedef struct group {
    char *name;
    int64_t files, clips;
    double sum[COLUMNS], squares[COLUMNS], n[COLUMNS]; /* of the files' means; files that have any */
} group;

/* "runs/base-3.csv", "runs/base/3.csv" → "runs/base" */
static char *group_name(const char *path) {
    const char *slash = strrchr(path, '/'), *dot = strrchr(slash ? slash : path, '.');
    const size_t whole = dot && dot > path ? (size_t)(dot - path) : strlen(path);
    size_t n = whole;
    while (n && strchr("0123456789", path[n - 1])) n--;
    while (n && n < whole && strchr("-_./", path[n - 1])) n--;
    return ma_format("%.*s", (int)(n ? n : whole), path);
}

static const char *last_part(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* A value of a record; NAN: an empty field. -1: it is no number. */
static int value_of(const ma_csv *c, int column, int at, double *out, ma_err *e) {
    char *end;
    const char *text = c->field[at];
    *out = NAN;
    if (!*text) return 0;
    *out = strtod(text, &end);
    if (*end || !isfinite(*out))
        return ma_fail(e, MA_CORRUPT, "%s:%lld: %s: \"%.40s\" is no number", c->path, (long long)c->began,
                       column_name(column), text);
    return 0;
}

/* Means of a file's columns; how many clips it has. */
static int64_t read_means(ma_csv *c, double mean[COLUMNS], ma_err *e) {
    double sum[COLUMNS] = {0}, n[COLUMNS] = {0};
    int at[COLUMNS], rc = ma_csv_next(c, e), wide = c->n;
    int64_t clips = 0;
    if (rc <= 0) return ma_fail(e, MA_CUT, "%s: empty", c->path);
    for (int k = 0; k < COLUMNS; k++)
        if ((at[k] = ma_csv_column(c, (const char *const[]){column_name(k), NULL})) < 0)
            return ma_fail(e, MA_MISSING, "%s: no column %s: not what ma-score writes", c->path, column_name(k));
    while ((rc = ma_csv_row(c, wide, e)) > 0) {
        double v[COLUMNS];
        clips++;
        for (int k = 0; k < COLUMNS; k++)
            if (value_of(c, k, at[k], &v[k], e)) return -1;
        for (int k = SA; k <= PC; k++)
            if (!isnan(v[k])) v[k] = v[k] >= pass;
        v[JOINT] = v[SA] * v[PC];
        for (int k = 0; k < COLUMNS; k++) {
            if (isnan(v[k])) continue;
            sum[k] += v[k];
            n[k]++;
        }
    }
    if (!rc && !clips) return ma_fail(e, MA_MISSING, "%s: no clips", c->path);
    for (int k = 0; k < COLUMNS; k++) mean[k] = n[k] > 0 ? sum[k] / n[k] : NAN;
    return rc ? -1 : clips;
}

static int add_file(const char *path, group *g, int *groups, ma_err *e) {
    ma_buf text = {0};
    double mean[COLUMNS];
    int k = 0;
    if (ma_read_file(path, (size_t)1 << 30, &text, e)) {
        ma_buf_free(&text);
        return -1;
    }
    ma_csv csv = {.path = path, .at = text.data ? text.data : (char[]){0}, .between = ',', .line = 1};
    const int64_t clips = read_means(&csv, mean, e);
    free(csv.field);
    ma_buf_free(&text);
    if (clips < 0) return -1;
    char *name = group_name(path);
    if (!name) return ma_fail(e, MA_MEMORY, "out of memory");
    while (k < *groups && strcmp(g[k].name, name)) k++;
    if (k == *groups)
        g[(*groups)++].name = name;
    else
        free(name);
    g[k].files++;
    g[k].clips += clips;
    for (int c = 0; c < COLUMNS; c++) {
        if (isnan(mean[c])) continue;
        g[k].sum[c] += mean[c];
        g[k].squares[c] += mean[c] * mean[c];
        g[k].n[c]++;
    }
    return 0;
}

/* "41.3 ± 1.2": mean and standard deviation over files; no deviation of one; "-" of none. The first four columns and
 * the last are percentages. */
static const char *cell(const group *g, int c, char out[32]) {
    const bool percent = c < 4 || c == 6;
    const double n = g->n[c], mean = g->sum[c] / n, scale = percent ? 100 : 1;
    const double spread = sqrt(fmax(0, g->squares[c] / n - mean * mean) * n / fmax(1, n - 1));
    const int digits = percent ? 1 : 3;
    if (n < 1)
        snprintf(out, 32, "-");
    else if (n < 2)
        snprintf(out, 32, "%.*f", digits, scale * mean);
    else
        snprintf(out, 32, "%.*f ± %.*f", digits, scale * mean, digits, scale * spread);
    return out;
}

/* A field of the table in so many columns of the terminal, ± being two bytes; the first begins the line. */
static int put_cell(ma_buf *b, bool first, const char *text, int wide) {
    const int more = strstr(text, "±") ? 1 : 0;
    if (format == MARKDOWN) return ma_buf_printf(b, "%s %s |", first ? "|" : "", text);
    return first ? ma_buf_printf(b, "%-*s", wide, text) : ma_buf_printf(b, " %*s", wide + more, text);
}

static int put_head(ma_buf *b, int wide, int columns) {
    int rc = put_cell(b, true, "name", wide) | put_cell(b, false, "files", 5) | put_cell(b, false, "clips", 6);
    for (int c = 0; c < columns; c++) rc |= put_cell(b, false, column_name(c), 13);
    rc |= ma_buf_printf(b, "\n");
    for (int c = 0; format == MARKDOWN && c < columns + 3; c++) rc |= ma_buf_printf(b, c ? "---:|" : "|---|");
    return format == MARKDOWN ? rc | ma_buf_printf(b, "\n") : rc;
}

static int put_group(ma_buf *b, const group *g, int wide, int columns) {
    char text[32];
    int rc = put_cell(b, true, last_part(g->name), wide);
    snprintf(text, sizeof text, "%lld", (long long)g->files);
    rc |= put_cell(b, false, text, 5);
    snprintf(text, sizeof text, "%lld", (long long)g->clips);
    rc |= put_cell(b, false, text, 6);
    for (int c = 0; c < columns; c++) rc |= put_cell(b, false, cell(g, c, text), 13);
    return rc | ma_buf_printf(b, "\n");
}

static int put_table(ma_buf *b, const group *g, int groups) {
    const int columns = with_parts ? COLUMNS : HEADS;
    int wide = 8;
    for (int k = 0; k < groups; k++) {
        const int n = (int)strlen(last_part(g[k].name));
        wide = n > wide ? n : wide;
    }
    int rc = put_head(b, wide, columns);
    for (int k = 0; k < groups; k++) rc |= put_group(b, &g[k], wide, columns);
    return rc;
}

static int summary(void) {
    const int n = cli.inputs.n - 1;
    group *g = ma_alloc((size_t)n + 1, sizeof *g);
    ma_err e = {0};
    ma_buf table = {0};
    int groups = 0, rc = g ? 0 : ma_fail(&e, MA_MEMORY, "out of memory");
    if (!n) rc = ma_fail(&e, MA_USAGE, "summary: give the CSV files that ma-score wrote");
    for (int k = 0; k < n && !rc; k++) rc = add_file(cli.inputs.at[k + 1], g, &groups, &e);
    if (!rc && put_table(&table, g, groups)) rc = ma_fail(&e, MA_MEMORY, "out of memory");
    if (!rc) rc = ma_output_write(&cli, &table, &e);
    for (int k = 0; k < groups; k++) free(g[k].name);
    ma_release(g);
    ma_buf_free(&table);
    return ma_exit_status(&cli, &e, STDOUT_FILENO);
}

int main(int argc, char **argv) {
    int rc = ma_cli_parse(&cli, argc, argv, stdout);
    if (rc >= 0) return rc;
    if (cli.common.print_list) return ma_inputs_print(&cli, stdout);
    ma_err e = {0};
    if (cli.common.dry_run)
        plan(&e);
    else
        rc = cli.inputs.n && !strcmp(cli.inputs.at[0], "summary") ? summary() : score_all();
    const int status = ma_exit_status(&cli, &e, -1);
    ma_cli_free(&cli);
    return cli.common.dry_run || status ? status : rc;
}
