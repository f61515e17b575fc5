/* world: the toy world as a whole: what is drawn from which seed, the run of it, where things are, and the caption.
 *
 * Limits: the camera moves to the left or the right only.
 * Trap: everything depends on draws in a fixed order, and on which stream they are from: what moves how must not ask
 * the stream of looks, nor the other way round. A new draw goes to the end of its stream, or all clips change.
 */
#include "world_private.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double STEP = 1.0 / 480; /* seconds, at most */

/* The streams of a seed and key. */
enum { MOTION, LOOK };

/* --- making --- */

/* One of the kinds whose bits are set. */
static ma_world_kind draw_kind(unsigned kinds, ma_rng *g) {
    int64_t left = ma_rng_below(g, __builtin_popcount(kinds));
    int kind = 0;
    while (!(kinds >> kind & 1) || left--) kind++;
    return (ma_world_kind)kind;
}

/* The camera goes some way along the wall; the room is what it sees all that way, so that no ball is lost from sight.
 */
static void make_room(ma_world *w, ma_rng *g, double pan) {
    double height = (double)w->size.height, width = (double)w->size.width;
    bool moves = ma_rng_uniform(g) < pan, back = ma_rng_uniform(g) < 0.5;
    double way = ma_between(g, 0.15, 0.3) * width * (back ? -1 : 1);
    ma_room *r = &w->start.room;
    r->gravity = ma_between(g, 0.8, 2) * height;
    r->restitution = ma_between(g, 0.75, 0.95);
    r->floor = height;
    r->right = width;
    if (!moves || w->size.frames < 2) return;
    w->pan = way / (double)(w->size.frames - 1);
    if (back)
        r->right += way;
    else
        r->left = way;
}

static double seconds(const ma_clip_size *size) {
    return (double)(size->frames > 1 ? size->frames - 1 : 1) / size->fps;
}

/* What happens after the last frame but one is hardly to be seen, and is no event. */
static void run(ma_world *w) {
    int steps = (int)ceil(1 / (w->size.fps * STEP));
    double dt = 1 / (w->size.fps * steps);
    ma_scene s = w->start;
    for (int64_t t = 0; t < w->size.frames; t++) {
        for (int k = 0; k < s.balls; k++)
            memcpy(w->path[t * s.balls + k], (double[2]){s.ball[k].x, s.ball[k].y}, sizeof w->path[0]);
        if (t + 1 == w->size.frames) break;
        for (int i = 0; i < steps; i++) {
            unsigned events = ma_world_step(&s, dt);
            if (t + 2 < w->size.frames) w->events |= events;
        }
    }
}

unsigned ma_world_step(ma_scene *s, double dt) {
    return ma_world_laws[s->kind].step(s, dt);
}

ma_world *ma_world_make(const ma_world_opts *o, const char *key, ma_err *e) {
    ma_world *w = ma_alloc(1, sizeof *w);
    size_t most;
    if (w && ma_mul((size_t)o->size.frames, MA_WORLD_BALLS, &most)) w->path = ma_alloc(most, sizeof *w->path);
    if (!w || !w->path) {
        ma_fail(e, MA_MEMORY, "%s: out of memory", key);
        ma_world_free(w);
        return NULL;
    }
    ma_rng motion = ma_rng_make(o->motion_seed, key, MOTION, MA_RNG_TOY);
    ma_rng look = ma_rng_make(o->look_seed, key, LOOK, MA_RNG_TOY);
    w->size = o->size;
    w->start.kind = draw_kind(o->kinds ? o->kinds : (1u << MA_WORLD_KINDS) - 1, &motion);
    make_room(w, &motion, o->pan);
    ma_world_laws[w->start.kind].make(&w->start, &motion, o->balls, fmin((double)o->size.height, (double)o->size.width),
                                      seconds(&o->size));
    ma_looks_make(&w->looks, &o->size, &look);
    run(w);
    return w;
}

void ma_world_free(ma_world *w) {
    if (w) ma_release(w->path);
    ma_release(w);
}

/* --- where --- */

void ma_world_where(const ma_world *w, int64_t frame, int k, double xy[2]) {
    const double *p = w->path[frame * w->start.balls + k];
    xy[0] = p[0] - w->pan * (double)frame;
    xy[1] = p[1];
}

/* The share of a disc of radius 1 that is left of x. */
static double disc_left_of(double x) {
    x = fmax(-1, fmin(1, x));
    return 0.5 + (x * sqrt(1 - x * x) + asin(x)) / M_PI;
}

/* Pillars are higher than balls. */
double ma_world_visible(const ma_world *w, int64_t frame, int k) {
    const double x = w->path[frame * w->start.balls + k][0], r = w->start.ball[k].radius, *p = w->start.pillar;
    if (w->start.kind != MA_WORLD_PASS) return 1;
    return 1 - (disc_left_of((p[2] - x) / r) - disc_left_of((p[0] - x) / r));
}

/* --- words --- */

const char *ma_world_kind_name(int kind) {
    return ma_world_laws[kind].name;
}

int ma_world_parse_kinds(const char *list, unsigned *kinds, ma_err *e) {
    *kinds = 0;
    for (const char *s = list; *s; s += *s == ',') {
        size_t n = strcspn(s, ",");
        int kind = 0;
        while (kind < MA_WORLD_KINDS &&
               (strlen(ma_world_laws[kind].name) != n || strncmp(s, ma_world_laws[kind].name, n) != 0))
            kind++;
        if (kind == MA_WORLD_KINDS)
            return ma_fail(e, MA_USAGE, "--kinds: '%.*s': fall, pendulum, slide and pass are known", (int)n, s);
        *kinds |= 1u << kind;
        s += n;
    }
    return *kinds ? 0 : ma_fail(e, MA_USAGE, "--kinds: none is named");
}

/* "striped red", "red" */
static int name_paint(const ma_paint *p, ma_buf *b) {
    const char *colour = ma_world_colour_name(p->colour);
    return p->pattern ? ma_buf_printf(b, "%s %s", ma_world_pattern_name(p->pattern), colour)
                      : ma_buf_printf(b, "%s", colour);
}

/* What stands before number i of n: "one red, one blue and one green". */
static const char *between_words(int i, int n) {
    return i == 0 ? "" : i == n - 1 ? " and " : ", ";
}

/* "an orange ball ", "two balls, one striped red and one blue, " */
static int name_balls(const ma_world *w, ma_buf *b) {
    static const char *const count[] = {"no", "one", "two", "three", "four", "five"};
    const int n = w->start.balls;
    const ma_paint *p = w->looks.ball;
    int rc = 0;
    if (n == 1) {
        bool vowel = !p->pattern && strchr("aeio", ma_world_colour_name(p->colour)[0]);
        rc |= ma_buf_printf(b, vowel ? "an " : "a ");
        rc |= name_paint(p, b);
        return rc | ma_buf_printf(b, " ball ");
    }
    rc |= ma_buf_printf(b, "%s balls, ", count[n]);
    for (int k = 0; k < n; k++) {
        rc |= ma_buf_printf(b, "%sone ", between_words(k, n));
        rc |= name_paint(&p[k], b);
    }
    return rc | ma_buf_printf(b, ", ");
}

/* "fall, bounce and hit each other" */
static int name_verbs(const ma_world *w, ma_buf *b) {
    const ma_world_law *law = &ma_world_laws[w->start.kind];
    const char *said[sizeof law->verbs / sizeof *law->verbs];
    int n = 0, rc = 0;
    for (size_t i = 0; i < sizeof said / sizeof *said; i++) {
        const ma_verb *v = &law->verbs[i];
        const char *word = w->start.balls == 1 ? v->one : v->many;
        if (word && (w->events & v->if_all) == v->if_all && !(w->events & v->if_none)) said[n++] = word;
    }
    for (int i = 0; i < n; i++) rc |= ma_buf_printf(b, "%s%s", between_words(i, n), said[i]);
    return rc;
}

char *ma_world_caption(const ma_world *w) {
    ma_buf b = {0};
    int rc = name_balls(w, &b);
    rc |= name_verbs(w, &b);
    rc |= ma_buf_printf(&b, " in front of a %s wall", ma_world_wall_name(w->looks.wall));
    if (w->pan != 0) rc |= ma_buf_printf(&b, ", the camera pans %s", w->pan > 0 ? "right" : "left");
    if (!rc) return b.data;
    ma_buf_free(&b);
    return NULL;
}
