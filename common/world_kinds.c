/* world_kinds: what moves how in the toy world, a kind of physics at a time: how it begins, a step of it, its words.
 *
 * Limits: balls are spheres of one density; they do not turn, and the air does not slow them. A kind's step is exact
 * but for the moment of a contact (known to a step) and the pendulum (fourth order). Traps:
 *  - A make takes its draws in a fixed order: a new one goes to its end, or all clips change.
 *  - Sizes and speeds go by the picture's shorter side, so that a clip of any shape shows the same things.
 */
#include "world_private.h"
#include <math.h>

/* --- what several kinds need --- */

static double draw_radius(ma_rng *g, double side) {
    return side * ma_between(g, 0.08, 0.16);
}

static bool clashes(const ma_scene *s, const ma_ball *b) {
    for (int k = 0; k < s->balls; k++)
        if (hypot(b->x - s->ball[k].x, b->y - s->ball[k].y) < b->radius + s->ball[k].radius) return true;
    return false;
}

/* Pushes apart two balls that overlap by so many pixels along (nx, ny), from a to b, and exchanges momentum. */
static bool collide(ma_ball *a, ma_ball *b, double overlap, double nx, double ny, double restitution) {
    if (overlap <= 0) return false;
    double ma = pow(a->radius, 3), mb = pow(b->radius, 3), part = mb / (ma + mb); /* how far a gives way */
    a->x -= part * overlap * nx;
    a->y -= part * overlap * ny;
    b->x += (1 - part) * overlap * nx;
    b->y += (1 - part) * overlap * ny;
    double closing = (a->vx - b->vx) * nx + (a->vy - b->vy) * ny;
    if (closing <= 0) return true;
    double push = (1 + restitution) * closing; /* the change of relative speed */
    a->vx -= part * push * nx;
    a->vy -= part * push * ny;
    b->vx += (1 - part) * push * nx;
    b->vy += (1 - part) * push * ny;
    return true;
}

static bool touch_room(ma_ball *b, const ma_room *r) {
    bool floor = b->y > r->floor - b->radius;
    if (floor) {
        b->y = r->floor - b->radius;
        if (b->vy > 0) b->vy *= -r->restitution;
    }
    if (b->x < r->left + b->radius) {
        b->x = r->left + b->radius;
        b->vx = fabs(b->vx) * r->restitution;
    }
    if (b->x > r->right - b->radius) {
        b->x = r->right - b->radius;
        b->vx = -fabs(b->vx) * r->restitution;
    }
    return floor;
}

/* --- fall: gravity, bounces, collisions --- */

static void make_fall(ma_scene *s, ma_rng *g, int most, double side, double seconds) {
    (void)seconds;
    int wanted = 1 + (int)ma_rng_below(g, most);
    for (int tries = 0; s->balls < wanted && tries < 1000; tries++) { /* a full room gets fewer */
        ma_ball b = {.radius = draw_radius(g, side)};
        b.x = ma_between(g, s->room.left + b.radius, s->room.right - b.radius);
        b.vx = side * ma_between(g, -0.8, 0.8);
        b.vy = side * ma_between(g, -0.4, 0.3);
        double rise = b.vy < 0 ? b.vy * b.vy / (2 * s->room.gravity) : 0; /* thrown, it stays in sight */
        b.y = ma_between(g, b.radius + rise, 0.6 * s->room.floor);
        if (!clashes(s, &b)) s->ball[s->balls++] = b;
    }
}

static bool touch_ball(ma_ball *a, ma_ball *b, double restitution) {
    double dx = b->x - a->x, dy = b->y - a->y, d = hypot(dx, dy);
    return d > 0 && collide(a, b, a->radius + b->radius - d, dx / d, dy / d, restitution);
}

static unsigned step_fall(ma_scene *s, double dt) {
    const ma_room *r = &s->room;
    ma_ball *b = s->ball;
    unsigned events = 0;
    for (int i = 0; i < s->balls; i++) { /* exact in free fall */
        b[i].x += b[i].vx * dt;
        b[i].y += b[i].vy * dt + r->gravity * dt * dt / 2;
        b[i].vy += r->gravity * dt;
    }
    for (int i = 0; i < s->balls; i++)
        for (int j = i + 1; j < s->balls; j++)
            if (touch_ball(&b[i], &b[j], r->restitution)) events |= MA_WORLD_MET;
    for (int i = 0; i < s->balls; i++)
        if (touch_room(&b[i], r)) events |= MA_WORLD_BOUNCED;
    return events;
}

/* --- pendulum: θ'' = -(g/L) sin θ --- */

/* The ball is where the string is. */
static void hang(ma_scene *s) {
    ma_ball *b = &s->ball[0];
    double across = sin(s->angle), down = cos(s->angle), speed = s->length * s->spin;
    b->x = s->pivot[0] + s->length * across;
    b->y = s->pivot[1] + s->length * down;
    b->vx = speed * down;
    b->vy = -speed * across;
}

/* Gravity is drawn by the time of a small swing, so that a short clip shows most of one. */
static void make_pendulum(ma_scene *s, ma_rng *g, int most, double side, double seconds) {
    (void)most, (void)seconds;
    const ma_room *r = &s->room;
    double radius = draw_radius(g, side);
    s->balls = 1;
    s->ball[0].radius = radius;
    s->pivot[0] = (r->left + r->right) / 2 + (r->right - r->left) * ma_between(g, -0.05, 0.05);
    s->pivot[1] = r->floor * ma_between(g, 0, 0.12);
    s->length = r->floor * ma_between(g, 0.4, 0.65);
    double period = ma_between(g, 1.3, 2.4);
    s->room.gravity = s->length * pow(2 * M_PI / period, 2);
    double reach = fmin(s->pivot[0] - r->left, r->right - s->pivot[0]) - radius; /* to the nearer wall */
    double swing = fmin(ma_between(g, 0.5, 1.1), asin(fmin(1, reach / s->length)));
    s->angle = swing * ma_between(g, -1, 1);
    s->spin = sqrt(2 * s->room.gravity / s->length * fmax(0, cos(s->angle) - cos(swing)));
    if (ma_rng_uniform(g) < 0.5) s->spin = -s->spin;
    hang(s);
}

static unsigned step_pendulum(ma_scene *s, double dt) {
    const double pull = -s->room.gravity / s->length, half = dt / 2; /* Runge and Kutta's classical step */
    double a = s->angle, w = s->spin;
    double w1 = w, f1 = pull * sin(a);
    double w2 = w + half * f1, f2 = pull * sin(a + half * w1);
    double w3 = w + half * f2, f3 = pull * sin(a + half * w2);
    double w4 = w + dt * f3, f4 = pull * sin(a + dt * w3);
    s->angle = a + dt / 6 * (w1 + 2 * w2 + 2 * w3 + w4);
    s->spin = w + dt / 6 * (f1 + 2 * f2 + 2 * f3 + f4);
    hang(s);
    return 0;
}

/* --- slide: friction on the floor until at rest, collisions --- */

/* Friction is drawn by the time in which a ball of mean speed comes to rest: some do within the clip, some do not. */
static void make_slide(ma_scene *s, ma_rng *g, int most, double side, double seconds) {
    int wanted = 1 + (int)ma_rng_below(g, most < 2 ? most : 2);
    double time = fmax(1, fmin(seconds, 5)) * ma_between(g, 0.6, 1.8);
    s->room.friction = 0.9 * side / (time * s->room.gravity);
    for (int tries = 0; s->balls < wanted && tries < 1000; tries++) {
        ma_ball b = {.radius = draw_radius(g, side)};
        b.x = ma_between(g, s->room.left + b.radius, s->room.right - b.radius);
        b.y = s->room.floor - b.radius;
        b.vx = side * ma_between(g, 0.6, 1.2) * (ma_rng_uniform(g) < 0.5 ? -1 : 1);
        if (!clashes(s, &b)) s->ball[s->balls++] = b;
    }
}

/* Moves a ball that loses `loss` of its speed a second; exact. */
static void brake(ma_ball *b, double loss, double dt) {
    double speed = fabs(b->vx), after = fmax(0, speed - loss * dt), time = after > 0 ? dt : speed / loss;
    if (speed == 0) return;
    b->x += copysign((speed + after) / 2 * time, b->vx);
    b->vx = copysign(after, b->vx);
}

/* Two balls on the floor touch where their centres are 2√(ab) apart along it. The floor takes what is not along it. */
static bool touch_beside(ma_ball *a, ma_ball *b, double restitution) {
    double dx = b->x - a->x, overlap = 2 * sqrt(a->radius * b->radius) - fabs(dx);
    return collide(a, b, overlap, copysign(1, dx), 0, restitution);
}

static unsigned step_slide(ma_scene *s, double dt) {
    const ma_room *r = &s->room;
    ma_ball *b = s->ball;
    unsigned events = MA_WORLD_STOPPED;
    for (int i = 0; i < s->balls; i++) brake(&b[i], r->friction * r->gravity, dt);
    for (int i = 0; i < s->balls; i++)
        for (int j = i + 1; j < s->balls; j++)
            if (touch_beside(&b[i], &b[j], r->restitution)) events |= MA_WORLD_MET;
    for (int i = 0; i < s->balls; i++) {
        touch_room(&b[i], r);
        if (b[i].vx != 0) events &= ~(unsigned)MA_WORLD_STOPPED;
    }
    return events;
}

/* --- pass: at constant speed behind a pillar --- */

/* The pillar hides all of the ball, and the ball comes clear of it within the clip, unless that would be too fast to
 * follow: then it begins beside the pillar. */
static void make_pass(ma_scene *s, ma_rng *g, int most, double side, double seconds) {
    (void)most;
    double left = s->room.left, right = s->room.right;
    double radius = fmin(draw_radius(g, side), (right - left) / 7.2), half = radius * ma_between(g, 1.1, 1.5);
    double reach = half + radius; /* from the pillar's middle to a ball that is clear of it */
    double middle = ma_between(g, left + radius + reach, right - radius - reach);
    double from = ma_between(g, left + radius, middle - reach), to = ma_between(g, middle + reach, right - radius);
    double top = s->room.floor * ma_between(g, 0.05, 0.45);
    bool back = ma_rng_uniform(g) < 0.5;
    double speed = (to - from) / seconds, most_speed = 1.5 * side, start = back ? to : from;
    if (speed > most_speed) {
        speed = most_speed;
        start = back ? middle + reach : middle - reach;
    }
    s->balls = 1;
    s->ball[0] = (ma_ball){start, s->room.floor - radius, back ? -speed : speed, 0, radius};
    s->pillar[0] = middle - half;
    s->pillar[1] = top;
    s->pillar[2] = middle + half;
    s->pillar[3] = s->room.floor;
}

static unsigned step_pass(ma_scene *s, double dt) {
    ma_ball *b = &s->ball[0];
    b->x += b->vx * dt;
    return (b->vx > 0 ? b->x > s->pillar[2] : b->x < s->pillar[0]) ? MA_WORLD_EMERGED : 0;
}

/* --- all of them --- */

const ma_world_law ma_world_laws[MA_WORLD_KINDS] = {
    [MA_WORLD_FALL] = {"fall",
                       make_fall,
                       step_fall,
                       {{"falls", "fall", 0, 0},
                        {"bounces", "bounce", MA_WORLD_BOUNCED, 0},
                        {NULL, "hit each other", MA_WORLD_MET, 0}}},
    [MA_WORLD_PENDULUM] = {"pendulum", make_pendulum, step_pendulum, {{"swings on a string", NULL, 0, 0}}},
    [MA_WORLD_SLIDE] = {"slide",
                        make_slide,
                        step_slide,
                        {{"slides", "slide", 0, MA_WORLD_STOPPED},
                         {NULL, "hit each other", MA_WORLD_MET, 0},
                         {"slows down", "slow down", 0, MA_WORLD_STOPPED},
                         {"slides to a stop", "slide to a stop", MA_WORLD_STOPPED, 0}}},
    [MA_WORLD_PASS] = {"pass",
                       make_pass,
                       step_pass,
                       {{"rolls behind a pillar", NULL, 0, 0}, {"comes out", NULL, MA_WORLD_EMERGED, 0}}},
};
