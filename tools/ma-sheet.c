/* ma-sheet: a contact sheet of a stream: a row a member, frames evenly spaced. Videos are shown as they are, flow as
 * the colour wheel, all flows of a sheet on one scale, features by their three principal components, which are the same
 * for all rows of a member. A row shows the first sample that has its member, or, where it is the name of a video file,
 * that; --samples repeats the rows for the next ones.
 */
#include "../common/file.h"
#include "../common/linear.h"
#include "../common/stage.h"
#include "../common/video.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST = 16, GAP = 2 }; /* rows; pixels between frames */

static const char *rows = "mp4,flow.npy";
static int64_t columns = 8, samples = 1, cell[2] = {96, 144};

static const ma_opt options[] = {
    {"rows", 0, MA_OPT_TEXT, &rows, "MEMBER,…",
     "a row each: members, video, (T,H,W,2) flow or (T,H,W,D) features, or video files (default mp4,flow.npy)", 0, 0},
    {"samples", 0, MA_OPT_INT, &samples, "N", "repeat the rows for so many samples (default 1)", 1, MOST},
    {"columns", 0, MA_OPT_INT, &columns, "N", "frames a row (default 8)", 1, 64},
    {"cell", 0, MA_OPT_SIZE, cell, "HxW", "a frame's size on the sheet (default 96x144)", 1, 4096},
    {0},
};
static ma_cli cli = {
    .name = "ma-sheet", .does = "draws a contact sheet of a stream, as PNG", .args = "[INPUT]…", .opts = options};

typedef struct row {
    char ext[64];
    ma_clip video;  /* rgb NULL: none yet */
    ma_array array; /* or (T,H,W,2) flow, or (T,H,W,D) features until they are coloured */
} row;

static bool is_array(const row *r) {
    size_t n = strlen(r->ext);
    return n > 4 && !strcmp(r->ext + n - 4, ".npy");
}

static bool filled(const row *r) {
    return r->video.rgb || r->array.data;
}

/* --rows into r, --samples times; how many. */
static int parse_rows(row r[MOST], ma_err *e) {
    int n = 0;
    for (const char *s = rows; *s; s += strcspn(s, ","), s += *s == ',') {
        size_t len = strcspn(s, ",");
        if ((n + 1) * samples > MOST || !len || len >= sizeof r->ext)
            return ma_fail(e, MA_USAGE, "--rows: 1 to %d members, separated by commas", MOST / (int)samples);
        memcpy(r[n].ext, s, len);
        r[n++].ext[len] = 0;
    }
    for (int k = n; k < n * samples; k++) r[k] = r[k - n];
    return n ? n * (int)samples : ma_fail(e, MA_USAGE, "--rows: no member");
}

static int take(row *r, const ma_sample *s, ma_err *e) {
    const ma_member *m = ma_sample_get(s, r->ext);
    const ma_clip_opts all = {0};
    if (!m) return 0;
    if (!is_array(r)) return ma_video_read(m->data, m->size, s->key, &all, &r->video, e);
    if (ma_sample_array(s, r->ext, &r->array, e)) return -1;
    if (r->array.nd == 4 && ma_array_count(&r->array) && r->array.n[3] > 1) return 0;
    ma_array_free(&r->array);
    return ma_fail(e, MA_SHAPE, "%s: %s is not (T,H,W,2) or wider", s->key, r->ext);
}

/* Rows that are files. */
static int read_files(row *r, int n, ma_err *e) {
    const ma_clip_opts all = {0};
    int rc = 0;
    for (int k = 0; k < n && !rc; k++) {
        ma_buf file = {0};
        if (is_array(&r[k]) || access(r[k].ext, R_OK)) continue;
        rc = ma_read_file(r[k].ext, (size_t)4 << 30, &file, e);
        if (!rc) rc = ma_video_read(file.data, file.size, r[k].ext, &all, &r[k].video, e);
        ma_buf_free(&file);
    }
    return rc;
}

/* Gives a sample to the first of each member's rows that has nothing yet; how many have nothing then. */
static int deal(row *r, int n, const ma_sample *s, ma_err *why) {
    int missing = 0;
    const int members = n / (int)samples;
    for (int m = 0; m < members; m++) {
        int k = m;
        while (k < n && filled(&r[k])) k += members;
        if (k < n && s) take(&r[k], s, why);
        for (; k < n; k += members) missing += !filled(&r[k]);
    }
    return missing;
}

/* Reads on until every row has something. */
static int gather(row *r, int n, ma_tally *tally, ma_err *e) {
    int missing = deal(r, n, NULL, NULL);
    ma_inputs *in = ma_inputs_open(&cli, true, e);
    int rc = in ? 1 : -1;
    while (rc > 0 && missing && !ma_stopped) {
        ma_err why = {0};
        ma_sample *s = NULL;
        int got = ma_inputs_next(in, &s, &why);
        if (!got) break;
        if (got > 0) missing = deal(r, n, s, &why);
        if (why.reason != MA_OK && ma_tally_bad(tally, s ? s->key : NULL, &why))
            rc = ma_fail(e, why.reason, "%s", why.text);
        ma_sample_free(s);
    }
    ma_inputs_close(in);
    if (rc > 0 && missing && ma_stopped) rc = ma_fail(e, MA_IO, "stopped");
    for (int k = 0; k < n && rc > 0; k++)
        if (!filled(&r[k]))
            rc = ma_fail(e, MA_MISSING, k < n / samples ? "no sample has %s" : "too few samples have %s", r[k].ext);
    return rc > 0 ? 0 : -1;
}

/* ---- features ---- */

static bool has_features(const row *r) {
    return r->array.data && r->array.n[3] > 2;
}

/* The tokens of all rows from r[k] on that have its member, (tokens, D) (ma_release). */
static double *tokens_of(const row *r, int n, int k, int64_t *tokens, ma_err *e) {
    const int64_t width = r[k].array.n[3];
    size_t count = 0, at = 0;
    for (int j = k; j < n; j++)
        if (!strcmp(r[j].ext, r[k].ext)) {
            if (r[j].array.n[3] != width) return ma_fail(e, MA_SHAPE, "%s: of two widths", r[k].ext), NULL;
            count += ma_array_count(&r[j].array);
        }
    double *x = ma_alloc(count, sizeof *x);
    if (!x) ma_fail(e, MA_MEMORY, "out of memory");
    for (int j = k; j < n && x; j++) {
        if (strcmp(r[j].ext, r[k].ext)) continue;
        float *f = ma_array_f32(&r[j].array, e);
        for (size_t i = 0; f && i < ma_array_count(&r[j].array); i++) x[at++] = f[i];
        ma_release(f);
    }
    *tokens = (int64_t)count / width;
    return x;
}

/* Three deviations to either side of the mean are black and full colour. */
static void colour(const double *x, int64_t width, const double *mean, const double *axis, const double *deviation,
                   uint8_t rgb[3]) {
    for (int c = 0; c < 3; c++) {
        double along = 0;
        for (int64_t d = 0; d < width; d++) along += (x[d] - mean[d]) * axis[c * width + d];
        const double level = deviation[c] > 0 ? 0.5 + along / (6 * deviation[c]) : 0.5;
        rgb[c] = (uint8_t)lround(255 * fmin(fmax(level, 0), 1));
    }
}

/* The features of r[k], and of all rows of its member, become a video. */
static int colour_member(row *r, int n, int k, ma_err *e) {
    const int64_t width = r[k].array.n[3];
    int64_t tokens = 0;
    double *x = tokens_of(r, n, k, &tokens, e), deviation[3];
    double *mean = ma_alloc((size_t)width, sizeof *mean), *axis = ma_alloc((size_t)width, 3 * sizeof *axis); // (3,D)
    int rc = x && mean && axis ? ma_principal(x, tokens, width, 3, mean, axis, deviation, e)
                               : ma_fail(e, MA_MEMORY, "out of memory");
    const double *token = x;
    for (int j = k; j < n && !rc; j++) {
        if (strcmp(r[j].ext, r[k].ext)) continue;
        ma_array *a = &r[j].array;
        const size_t count = ma_array_count(a) / (size_t)width;
        ma_clip *video = &r[j].video;
        *video = (ma_clip){.frames = a->n[0], .height = a->n[1], .width = a->n[2], .rgb = calloc(count, 3)};
        if (!video->rgb) rc = ma_fail(e, MA_MEMORY, "out of memory");
        for (size_t i = 0; i < count && !rc; i++, token += width)
            colour(token, width, mean, axis, deviation, video->rgb + 3 * i);
        if (j > k) ma_array_free(a); // r[k]'s tells what is alike
    }
    ma_array_free(&r[k].array);
    ma_release(x);
    ma_release(mean);
    ma_release(axis);
    return rc;
}

static int colour_features(row *r, int n, ma_err *e) {
    for (int k = 0; k < n; k++)
        if (has_features(&r[k]) && colour_member(r, n, k, e)) return -1;
    return 0;
}

/* ---- drawing ---- */

/* The longest flow of all rows: full saturation. */
static float longest(const row *r, int n) {
    float most = 0;
    for (int k = 0; k < n; k++) {
        float *uv = r[k].array.data ? ma_array_f32(&r[k].array, NULL) : NULL;
        if (uv) most = fmaxf(most, ma_flow_longest(uv, (int64_t)ma_array_count(&r[k].array) / 2));
        ma_release(uv);
    }
    return most;
}

static int64_t frames_of(const row *r) {
    return r->video.rgb ? r->video.frames : r->array.n[0];
}

/* Frame f of a row as RGB (ma_release); n: its height and width. */
static uint8_t *frame_of(const row *r, int64_t f, float most, int64_t n[2], ma_err *e) {
    n[0] = r->video.rgb ? r->video.height : r->array.n[1];
    n[1] = r->video.rgb ? r->video.width : r->array.n[2];
    size_t pixels = (size_t)(n[0] * n[1]);
    uint8_t *rgb = ma_alloc(pixels, 3);
    if (rgb && r->video.rgb) memcpy(rgb, r->video.rgb + (size_t)f * pixels * 3, pixels * 3);
    float *uv = rgb && !r->video.rgb ? ma_array_f32(&r->array, e) : NULL;
    if (uv) ma_flow_picture(uv + (size_t)f * pixels * 2, n[0], n[1], most, rgb);
    ma_release(uv);
    if (!rgb) ma_fail(e, MA_MEMORY, "out of memory");
    return rgb;
}

static int64_t sheet_height(int64_t n) {
    return n * (cell[0] + GAP) + GAP;
}

static int64_t sheet_width(void) {
    return columns * (cell[1] + GAP) + GAP;
}

/* The sheet: white between frames. */
static int draw(const row *r, int n, ma_buf *png, ma_err *e) {
    const int64_t gap = GAP, height = sheet_height(n), width = sheet_width();
    const float most = longest(r, n);
    uint8_t *sheet = ma_alloc((size_t)(height * width), 3), *small = ma_alloc((size_t)(cell[0] * cell[1]), 3);
    int rc = sheet && small ? 0 : ma_fail(e, MA_MEMORY, "out of memory");
    if (!rc) memset(sheet, 255, (size_t)(height * width * 3));
    for (int k = 0; k < n && !rc; k++)
        for (int64_t c = 0; c < columns && !rc; c++) {
            int64_t size[2], frames = frames_of(&r[k]), f = columns > 1 ? c * (frames - 1) / (columns - 1) : 0;
            uint8_t *rgb = frame_of(&r[k], f, most, size, e);
            if (!rgb)
                rc = -1;
            else if (ma_image_resize(rgb, size[0], size[1], small, cell[0], cell[1]))
                rc = ma_fail(e, MA_MEMORY, "%s: out of memory for %lldx%lld pixels", r[k].ext, (long long)size[0],
                             (long long)size[1]);
            for (int64_t y = 0; !rc && y < cell[0]; y++)
                memcpy(sheet + ((gap + k * (cell[0] + gap) + y) * width + gap + c * (cell[1] + gap)) * 3,
                       small + y * cell[1] * 3, (size_t)cell[1] * 3);
            ma_release(rgb);
        }
    if (!rc) rc = ma_png_write(sheet, height, width, png, e);
    ma_release(sheet);
    ma_release(small);
    return rc;
}

static int run(ma_tally *tally, ma_err *e) {
    row r[MOST] = {0};
    ma_buf png = {0};
    int n = parse_rows(r, e), rc = n > 0 ? 0 : -1;
    if (!rc && cli.common.dry_run) {
        printf("a sheet of %lldx%lld pixels: %d rows of %lld frames\n", (long long)sheet_height(n),
               (long long)sheet_width(), n, (long long)columns);
        return ma_flush_stdout(e);
    }
    if (!rc && !cli.common.out && isatty(STDOUT_FILENO))
        rc = ma_fail(e, MA_USAGE, "a picture is not for a terminal: -o FILE");
    if (!rc) rc = read_files(r, n, e);
    if (!rc) rc = gather(r, n, tally, e);
    if (!rc) rc = colour_features(r, n, e);
    if (!rc) rc = draw(r, n, &png, e);
    if (!rc) rc = ma_output_write(&cli, &png, e);
    for (int k = 0; k < n; k++) {
        ma_clip_free(&r[k].video);
        ma_array_free(&r[k].array);
    }
    ma_buf_free(&png);
    return rc;
}

int main(int argc, char **argv) {
    int rc = ma_cli_parse(&cli, argc, argv, stdout);
    if (rc >= 0) return rc;
    ma_catch_signals();
    ma_err e = {0};
    ma_tally tally = {.cli = &cli};
    run(&tally, &e);
    rc = ma_tally_status(&tally, &e, STDOUT_FILENO);
    ma_cli_free(&cli);
    return rc;
}
