/* ma-sheet: a contact sheet of a stream: a row a member, frames evenly spaced. Videos are shown as they are, flow as
 * the colour wheel, all flows of a sheet on one scale. A row shows the first sample that has its member, or, where it
 * is the name of a video file, that.
 */
#include "../common/file.h"
#include "../common/stage.h"
#include "../common/video.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST = 16, GAP = 2 }; /* rows; pixels between frames */

static const char *rows = "mp4,flow.npy";
static int64_t columns = 8, cell[2] = {96, 144};

static const ma_opt options[] = {
    {"rows", 0, MA_OPT_TEXT, &rows, "MEMBER,…",
     "a row each: members of the stream, video or (T,H,W,2) flow, or video files (default mp4,flow.npy)", 0, 0},
    {"columns", 0, MA_OPT_INT, &columns, "N", "frames a row (default 8)", 1, 64},
    {"cell", 0, MA_OPT_SIZE, cell, "HxW", "a frame's size on the sheet (default 96x144)", 1, 4096},
    {0},
};
static ma_cli cli = {
    .name = "ma-sheet", .does = "draws a contact sheet of a stream, as PNG", .args = "[INPUT]…", .opts = options};

typedef struct row {
    char ext[64];
    ma_clip video; /* rgb NULL: none yet */
    ma_array flow; /* or (T,H,W,2) */
} row;

static bool is_flow(const row *r) {
    size_t n = strlen(r->ext);
    return n > 4 && !strcmp(r->ext + n - 4, ".npy");
}

static bool filled(const row *r) {
    return r->video.rgb || r->flow.data;
}

/* --rows into r; how many. */
static int parse_rows(row r[MOST], ma_err *e) {
    int n = 0;
    for (const char *s = rows; *s; s += strcspn(s, ","), s += *s == ',') {
        size_t len = strcspn(s, ",");
        if (n == MOST || !len || len >= sizeof r->ext)
            return ma_fail(e, MA_USAGE, "--rows: 1 to %d members, separated by commas", MOST);
        memcpy(r[n].ext, s, len);
        r[n++].ext[len] = 0;
    }
    return n ? n : ma_fail(e, MA_USAGE, "--rows: no member");
}

static int take(row *r, const ma_sample *s, ma_err *e) {
    const ma_member *m = ma_sample_get(s, r->ext);
    const ma_clip_opts all = {0};
    if (!m) return 0;
    if (!is_flow(r)) return ma_video_read(m->data, m->size, s->key, &all, &r->video, e);
    if (ma_sample_array(s, r->ext, &r->flow, e)) return -1;
    if (r->flow.nd == 4 && r->flow.n[3] == 2) return 0;
    ma_array_free(&r->flow);
    return ma_fail(e, MA_SHAPE, "%s: %s is not (T,H,W,2)", s->key, r->ext);
}

/* Rows that are files. */
static int read_files(row *r, int n, ma_err *e) {
    const ma_clip_opts all = {0};
    int rc = 0;
    for (int k = 0; k < n && !rc; k++) {
        ma_buf file = {0};
        if (is_flow(&r[k]) || access(r[k].ext, R_OK)) continue;
        rc = ma_read_file(r[k].ext, (size_t)4 << 30, &file, e);
        if (!rc) rc = ma_video_read(file.data, file.size, r[k].ext, &all, &r[k].video, e);
        ma_buf_free(&file);
    }
    return rc;
}

/* Reads on until every row has something. */
static int gather(row *r, int n, ma_tally *tally, ma_err *e) {
    int missing = 0;
    for (int k = 0; k < n; k++) missing += !filled(&r[k]);
    ma_inputs *in = ma_inputs_open(&cli, true, e);
    int rc = in ? 1 : -1;
    while (rc > 0 && missing && !ma_stopped) {
        ma_err why = {0};
        ma_sample *s = NULL;
        int got = ma_inputs_next(in, &s, &why);
        if (!got) break;
        missing = 0;
        for (int k = 0; k < n; k++) {
            if (got > 0 && !filled(&r[k])) take(&r[k], s, &why);
            missing += !filled(&r[k]);
        }
        if (why.reason != MA_OK && ma_tally_bad(tally, s ? s->key : NULL, &why))
            rc = ma_fail(e, why.reason, "%s", why.text);
        ma_sample_free(s);
    }
    ma_inputs_close(in);
    if (rc > 0 && missing && ma_stopped) rc = ma_fail(e, MA_IO, "stopped");
    for (int k = 0; k < n && rc > 0; k++)
        if (!filled(&r[k])) rc = ma_fail(e, MA_MISSING, "no sample has %s", r[k].ext);
    return rc > 0 ? 0 : -1;
}

/* The longest flow of all rows: full saturation. */
static float longest(const row *r, int n) {
    float most = 0;
    for (int k = 0; k < n; k++) {
        float *uv = r[k].flow.data ? ma_array_f32(&r[k].flow, NULL) : NULL;
        if (uv) most = fmaxf(most, ma_flow_longest(uv, (int64_t)ma_array_count(&r[k].flow) / 2));
        ma_release(uv);
    }
    return most;
}

static int64_t frames_of(const row *r) {
    return r->video.rgb ? r->video.frames : r->flow.n[0];
}

/* Frame f of a row as RGB (ma_release); n: its height and width. */
static uint8_t *frame_of(const row *r, int64_t f, float most, int64_t n[2], ma_err *e) {
    n[0] = r->video.rgb ? r->video.height : r->flow.n[1];
    n[1] = r->video.rgb ? r->video.width : r->flow.n[2];
    size_t pixels = (size_t)(n[0] * n[1]);
    uint8_t *rgb = ma_alloc(pixels, 3);
    if (rgb && r->video.rgb) memcpy(rgb, r->video.rgb + (size_t)f * pixels * 3, pixels * 3);
    float *uv = rgb && !r->video.rgb ? ma_array_f32(&r->flow, e) : NULL;
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
            if (!rgb) rc = -1;
            if (rgb) ma_image_resize(rgb, size[0], size[1], small, cell[0], cell[1]);
            for (int64_t y = 0; rgb && y < cell[0]; y++)
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
    if (!rc) rc = draw(r, n, &png, e);
    if (!rc)
        rc = cli.common.out ? ma_write_file(cli.common.out, png.data, png.size, e)
                            : ma_write_all(STDOUT_FILENO, png.data, png.size, e);
    for (int k = 0; k < n; k++) {
        ma_clip_free(&r[k].video);
        ma_array_free(&r[k].flow);
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
    const int status = ma_exit_status(&cli, &e, STDOUT_FILENO);
    rc = ma_tally_end(&tally);
    ma_cli_free(&cli);
    return status ? status : rc;
}
