/* ma-toy: clips of a small physical world, with captions, exact optical flow and true trajectories: the source of the
 * demo, of the toy pipeline and of tests, and ground truth for whoever wants it.
 *
 * Limits: a batch of clips, two a thread, is held in memory.
 * Traps: a clip depends on the seeds and its key alone, so threads take whole clips and the writer gets them in order.
 */
#include "../common/stage.h"
#include "../common/video.h"
#include "../common/world.h"

#include <errno.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int64_t clips = 16, first, crf = 18, stride = 2, balls = MA_WORLD_BALLS, motion_seed, look_seed;
static ma_clip_size size = {49, 160, 240, 12};
static double pan = 0.5;
static const char *kinds = "fall,pendulum,slide,pass";
static unsigned kinds_set; /* as bits */

static const ma_opt options[] = {
    {"clips", 'n', MA_OPT_INT, &clips, "N", "how many clips (default 16)", 0, 1e6},
    {"first", 0, MA_OPT_INT, &first, "N", "number of the first clip (default 0)", 0, 1e9},
    {"clip", 0, MA_OPT_CLIP, &size, "FxHxW@FPS", "frames, height, width and rate (default 49x160x240@12)", 0, 0},
    {"stride", 0, MA_OPT_INT, &stride, "N", "frames from one flow to the next, as ma-flow counts them (default 2)", 1,
     1000},
    {"kinds", 0, MA_OPT_TEXT, &kinds, "LIST", "kinds of physics, drawn evenly (default fall,pendulum,slide,pass)", 0,
     0},
    {"balls", 0, MA_OPT_INT, &balls, "N", "most balls in a clip (default 5)", 1, MA_WORLD_BALLS},
    {"pan", 0, MA_OPT_REAL, &pan, "P", "share of clips in which the camera moves (default 0.5)", 0, 1},
    {"motion-seed", 0, MA_OPT_INT, &motion_seed, "N", "seed of what moves how (default: that of --seed)", 0, INFINITY},
    {"look-seed", 0, MA_OPT_INT, &look_seed, "N", "seed of what it looks like (default: that of --seed)", 0, INFINITY},
    {"crf", 0, MA_OPT_INT, &crf, "N", "H.264's rate factor; 0 is lossless in YUV (default 18)", 0, 51},
    {0},
};

static ma_cli cli = {
    .name = "ma-toy",
    .does = "makes clips of balls that fall, swing, slide and hide, with their exact flow",
    .args = "",
    .opts = options,
};

/* Flows a clip: from frame skip + k·stride to the next such frame, skip being what the stride leaves over. */
static int64_t pairs(void) {
    return (size.frames - size.frames % stride - 1) / stride;
}

static int check_options(ma_err *e) {
    if (cli.inputs.n) return ma_fail(e, MA_USAGE, "%s: there are no inputs", cli.inputs.at[0]);
    if (size.fps == 0) size.fps = 12;
    if (!ma_cli_given(&cli, "motion-seed")) motion_seed = cli.common.seed;
    if (!ma_cli_given(&cli, "look-seed")) look_seed = cli.common.seed;
    if (ma_world_parse_kinds(kinds, &kinds_set, e)) return -1;
    if (size.frames < 2 || size.frames > 10000)
        return ma_fail(e, MA_USAGE, "--clip: %lld frames: 2 to 10000 are possible", (long long)size.frames);
    if (size.height < 16 || size.width < 16 || size.height > 4096 || size.width > 4096 || size.height % 2 ||
        size.width % 2)
        return ma_fail(e, MA_USAGE, "--clip: %lldx%lld: height and width must be even, from 16 to 4096",
                       (long long)size.height, (long long)size.width);
    if (pairs() < 1)
        return ma_fail(e, MA_USAGE, "--stride: %lld in %lld frames leaves no pair", (long long)stride,
                       (long long)size.frames);
    if (size.fps < 1 || size.fps > 1000)
        return ma_fail(e, MA_USAGE, "--clip: %g frames per second: 1 to 1000 are possible", size.fps);
    return 0;
}

/* --- the members of a sample --- */

static int put_video(ma_sample *s, const ma_world *w, ma_err *e) {
    size_t frame = (size_t)(size.height * size.width) * 3;
    uint8_t *rgb = ma_alloc((size_t)size.frames, frame); // (F,H,W,3)
    ma_buf b = {0};
    if (!rgb) return ma_fail(e, MA_MEMORY, "%s: out of memory", s->key);
    for (int64_t t = 0; t < size.frames; t++) ma_world_render(w, t, rgb + (size_t)t * frame);
    int rc = ma_video_write(rgb, size.frames, size.height, size.width, size.fps, "mp4", (int)crf, &b, e);
    ma_release(rgb);
    if (!rc) return ma_sample_put(s, "mp4", b.data, b.size, e);
    ma_buf_free(&b);
    return -1;
}

static int put_caption(ma_sample *s, const ma_world *w, ma_err *e) {
    char *text = ma_world_caption(w);
    return text ? ma_sample_put(s, "txt", text, strlen(text), e) : ma_fail(e, MA_MEMORY, "%s: out of memory", s->key);
}

static int put_flow(ma_sample *s, const ma_world *w, ma_err *e) {
    const int64_t skip = size.frames % stride, n[] = {pairs(), size.height, size.width, 2};
    size_t frame = (size_t)(size.height * size.width) * 2;
    float *uv = ma_alloc((size_t)n[0], frame * sizeof *uv); // (T,H,W,2)
    if (!uv) return ma_fail(e, MA_MEMORY, "%s: out of memory", s->key);
    for (int64_t t = 0; t < n[0]; t++)
        ma_world_flow(w, skip + t * stride, skip + (t + 1) * stride, uv + (size_t)t * frame);
    int rc = ma_sample_put_f16(s, "flow.npy", uv, 4, n, e);
    ma_release(uv);
    return rc;
}

/* To a millionth of a pixel: exact for any use, and short. */
static cJSON *point(double x, double y) {
    return cJSON_CreateDoubleArray((double[]){round(x * 1e6) / 1e6, round(y * 1e6) / 1e6}, 2);
}

/* {"radius", "color", "pattern", "path": [[x, y], …], "visible": [share, …] where something may hide it}: pixels of the
 * picture. */
static cJSON *ball_json(const ma_world *w, int k) {
    cJSON *ball = cJSON_CreateObject(), *path = cJSON_CreateArray();
    cJSON_AddNumberToObject(ball, "radius", w->start.ball[k].radius);
    cJSON_AddStringToObject(ball, "color", ma_world_colour_name(w->looks.ball[k].colour));
    cJSON_AddStringToObject(ball, "pattern", ma_world_pattern_name(w->looks.ball[k].pattern));
    cJSON_AddItemToObject(ball, "path", path);
    for (int64_t t = 0; t < size.frames; t++) {
        double xy[2];
        ma_world_where(w, t, k, xy);
        cJSON_AddItemToArray(path, point(xy[0], xy[1]));
    }
    if (w->start.kind != MA_WORLD_PASS) return ball;
    cJSON *visible = cJSON_AddArrayToObject(ball, "visible");
    for (int64_t t = 0; t < size.frames; t++)
        cJSON_AddItemToArray(visible, cJSON_CreateNumber(round(ma_world_visible(w, t, k) * 1e6) / 1e6));
    return ball;
}

static cJSON *options_json(void) {
    cJSON *o = cJSON_CreateObject();
    char text[96];
    snprintf(text, sizeof text, "%lldx%lldx%lld@%g", (long long)size.frames, (long long)size.height,
             (long long)size.width, size.fps);
    cJSON_AddStringToObject(o, "clip", text);
    cJSON_AddNumberToObject(o, "stride", (double)stride);
    cJSON_AddStringToObject(o, "kinds", kinds);
    cJSON_AddNumberToObject(o, "balls", (double)balls);
    cJSON_AddNumberToObject(o, "pan", pan);
    cJSON_AddNumberToObject(o, "crf", (double)crf);
    return o;
}

/* What is where in the room, and what acts in it: pixels of the picture at frame 0. */
static void add_scene(cJSON *entry, const ma_scene *scene) {
    const ma_room *r = &scene->room;
    const struct {
        const char *name;
        double value;
    } numbers[] = {{"gravity", r->gravity},   {"restitution", r->restitution},
                   {"friction", r->friction}, {"floor", r->floor},
                   {"left", r->left},         {"right", r->right}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        cJSON_AddNumberToObject(entry, numbers[i].name, numbers[i].value);
    if (scene->kind == MA_WORLD_PENDULUM) {
        cJSON_AddItemToObject(entry, "pivot", point(scene->pivot[0], scene->pivot[1]));
        cJSON_AddNumberToObject(entry, "length", scene->length);
    }
    if (scene->kind == MA_WORLD_PASS) cJSON_AddItemToObject(entry, "pillar", cJSON_CreateDoubleArray(scene->pillar, 4));
}

static int put_entry(ma_sample *s, const ma_world *w, ma_err *e) {
    cJSON *entry = cJSON_CreateObject(), *all = cJSON_CreateArray();
    cJSON_AddStringToObject(entry, "version", MA_VERSION);
    cJSON_AddNumberToObject(entry, "seed", (double)cli.common.seed);
    cJSON_AddNumberToObject(entry, "motion_seed", (double)motion_seed);
    cJSON_AddNumberToObject(entry, "look_seed", (double)look_seed);
    cJSON_AddItemToObject(entry, "options", options_json());
    cJSON_AddStringToObject(entry, "kind", ma_world_kind_name(w->start.kind));
    cJSON_AddNumberToObject(entry, "fps", size.fps);
    cJSON_AddStringToObject(entry, "wall", ma_world_wall_name(w->looks.wall));
    add_scene(entry, &w->start);
    cJSON_AddItemToObject(entry, "balls", all);
    for (int k = 0; k < w->start.balls; k++) cJSON_AddItemToArray(all, ball_json(w, k));
    cJSON_AddItemToObject(entry, "pan", point(w->pan, 0));
    return ma_entry_put(s, "ma-toy", entry, e);
}

/* Clip number i. NULL: e says why. */
static ma_sample *make_clip(int64_t i, ma_err *e) {
    char key[32];
    snprintf(key, sizeof key, "clip-%06lld", (long long)i);
    const ma_world_opts opts = {.size = size,
                                .kinds = kinds_set,
                                .balls = (int)balls,
                                .pan = pan,
                                .motion_seed = (uint64_t)motion_seed,
                                .look_seed = (uint64_t)look_seed};
    ma_world *w = ma_world_make(&opts, key, e);
    ma_sample *s = w ? ma_sample_new(key) : NULL;
    if (w && !s) ma_fail(e, MA_MEMORY, "%s: out of memory", key);
    bool good = s && !put_video(s, w, e) && !put_caption(s, w, e) && !put_flow(s, w, e) && !put_entry(s, w, e);
    ma_world_free(w);
    if (good) return s;
    ma_sample_free(s);
    return NULL;
}

/* --- the run --- */

/* Clips from, …, from+n-1, on all threads; written in order. */
static int do_batch(ma_writer *out, int64_t from, int64_t n, ma_progress *p, ma_err *e) {
    ma_sample **s = calloc((size_t)n, sizeof(ma_sample *));
    ma_err *why = calloc((size_t)n, sizeof *why);
    int rc = s && why ? 0 : ma_fail(e, MA_MEMORY, "out of memory");
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < (rc ? 0 : n); i++)
        if (!ma_stopped) s[i] = make_clip(from + i, &why[i]);
    for (int64_t i = 0; !rc && i < n && !ma_stopped; i++) {
        if (!s[i]) {
            rc = ma_fail(e, why[i].reason, "%s", why[i].text);
            break;
        }
        rc = ma_writer_add(out, s[i], e);
        s[i] = NULL;
        p->done += !rc;
        ma_progress_step(p);
    }
    for (int64_t i = 0; s && i < n; i++) ma_sample_free(s[i]);
    free(s);
    free(why);
    return rc;
}

static int write_clips(ma_err *e) {
    ma_progress p;
    ma_catch_signals();
    ma_writer *out = ma_output_open(&cli, STDOUT_FILENO, e);
    if (!out) return -1;
    int rc = 0;
    int64_t batch = 2 * omp_get_max_threads();
    ma_progress_start(&p, &cli, "clips", clips);
    for (int64_t i = 0; i < clips && !rc && !ma_stopped; i += batch)
        rc = do_batch(out, first + i, clips - i < batch ? clips - i : batch, &p, e);
    ma_progress_end(&p);
    if (!rc && !ma_stopped) return ma_writer_close(out, e);
    ma_writer_abort(out);
    return -1;
}

static int plan(ma_err *e) {
    int64_t pixels = size.height * size.width;
    double each = (double)size.frames * (double)pixels * 3 + (double)pairs() * (double)pixels * 12;
    printf("%lld clips of %lldx%lldx%lld at %g frames per second\n", (long long)clips, (long long)size.frames,
           (long long)size.height, (long long)size.width, size.fps);
    printf("  flow.npy: %lldx%lldx%lldx2 f16\n", (long long)pairs(), (long long)size.height, (long long)size.width);
    printf("memory: at most %.1f MB, in %d threads\n", each * 2 * omp_get_max_threads() / 1e6, omp_get_max_threads());
    return ma_flush_stdout(e);
}

int main(int argc, char **argv) {
    int rc = ma_cli_parse(&cli, argc, argv, stdout);
    if (rc >= 0) return rc;
    ma_err e = {0};
    rc = check_options(&e);
    if (!rc) rc = cli.common.dry_run ? plan(&e) : write_clips(&e);
    if (ma_stopped) ma_err_clear(&e); /* who stopped it knows why */
    const int status = ma_exit_status(&cli, &e, STDOUT_FILENO);
    ma_cli_free(&cli);
    return status ? status : rc ? 1 : 0;
}
