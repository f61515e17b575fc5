/* world: a small physical world whose every pixel's motion is known: balls that fall, swing, slide or pass behind a
 * pillar, before a textured wall. How they move and how they look are drawn apart, each from its own seed. */
#ifndef MA_WORLD_H
#define MA_WORLD_H
#include "cli.h"

enum { MA_WORLD_BALLS = 5 };

typedef enum { MA_WORLD_FALL, MA_WORLD_PENDULUM, MA_WORLD_SLIDE, MA_WORLD_PASS, MA_WORLD_KINDS } ma_world_kind;

/* Positions are in pixels, x to the right and y down, from the left upper corner of the picture at frame 0; the pixel
 * in column j of row i has its centre at (j + 0.5, i + 0.5). The room stands still, the camera may move along it: only
 * what is said to be in the picture moves with the camera. Times are in seconds. */
typedef struct ma_ball {
    double x, y, vx, vy; /* centre in the room, and its velocity */
    double radius;
} ma_ball;

/* Where the balls are: walls at left and right, a floor, no ceiling. */
typedef struct ma_room {
    double left, right, floor;
    double gravity;     /* pixels / s² */
    double restitution; /* relative speed after a contact over that before; 1: elastic */
    double friction;    /* on the floor: deceleration / gravity */
} ma_room;

/* All that moves, at one time. */
typedef struct ma_scene {
    ma_world_kind kind;
    ma_room room;
    int balls;
    ma_ball ball[MA_WORLD_BALLS];
    double pivot[2], length; /* of the pendulum's string; length: from the pivot to the ball's centre */
    double angle, spin;      /* of the string: radians from straight down, to the right; radians / s */
    double pillar[4];        /* x0, y0, x1, y1 */
} ma_scene;

/* What has happened in a scene; bits. */
enum {
    MA_WORLD_BOUNCED = 1, /* a ball touched the floor */
    MA_WORLD_MET = 2,     /* two balls touched */
    MA_WORLD_STOPPED = 4, /* all balls are at rest */
    MA_WORLD_EMERGED = 8, /* a ball's centre has come out behind the pillar */
};

typedef struct ma_paint {
    int colour, pattern;
    double axis[2], phase; /* of the pattern: across its stripes, a unit vector; radii */
} ma_paint;

typedef struct ma_looks {
    ma_paint ball[MA_WORLD_BALLS];
    int wall;               /* kind of background */
    double period, axis[2]; /* of its pattern: pixels; across its stripes, a unit vector */
    double tone[2][3];      /* of the wall, dark and light: rgb, 0..255 */
    double pillar[3];
    double string; /* grey */
    float noise[256];
    uint8_t shuffle[256];
} ma_looks;

typedef struct ma_world {
    ma_clip_size size;
    ma_scene start;    /* at frame 0 */
    double (*path)[2]; /* (frames, balls, 2): x, y of each centre in the room */
    double pan;        /* of the camera, to the right: pixels a frame */
    unsigned events;   /* MA_WORLD_BOUNCED | … */
    ma_looks looks;
} ma_world;

typedef struct ma_world_opts {
    ma_clip_size size;
    unsigned kinds; /* bit k: ma_world_kind k may be drawn; 0: any */
    int balls;      /* at most; 1..MA_WORLD_BALLS */
    double pan;     /* how likely the camera moves, 0..1 */
    uint64_t motion_seed, look_seed;
} ma_world_opts;

/* The world of these seeds and key, all frames of it. NULL: out of memory. */
ma_world *ma_world_make(const ma_world_opts *, const char *key, ma_err *);
void ma_world_free(ma_world *);

/* A frame: rgb (height, width, 3). */
void ma_world_render(const ma_world *, int64_t frame, uint8_t *rgb);
/* What each pixel of `frame` moves by until frame `until`: uv (height, width, 2). */
void ma_world_flow(const ma_world *, int64_t frame, int64_t until, float *uv);
/* What is at that place of the picture: a ball's number, or one of these. */
enum { MA_WORLD_WALL = -1, MA_WORLD_STRING = -2, MA_WORLD_PILLAR = -3 };
int ma_world_seen(const ma_world *, int64_t frame, double x, double y);
/* Where ball k is in the picture of that frame. */
void ma_world_where(const ma_world *, int64_t frame, int k, double xy[2]);
/* The share of ball k that no pillar hides in that frame, 0..1. */
double ma_world_visible(const ma_world *, int64_t frame, int k);
/* What is to be seen: "two balls, one red and one blue, fall and bounce …". Freed with free(); NULL: out of memory. */
char *ma_world_caption(const ma_world *);

const char *ma_world_kind_name(int kind);       /* "fall", "pendulum", "slide", "pass" */
const char *ma_world_colour_name(int colour);   /* "red" */
const char *ma_world_pattern_name(int pattern); /* "plain", "striped", "chequered", "dotted" */
const char *ma_world_wall_name(int wall);       /* "mottled", "chequered", "striped", "plain" */
/* "fall,slide", as --kinds has it, to ma_world_opts.kinds. */
int ma_world_parse_kinds(const char *list, unsigned *kinds, ma_err *);

/* One step of dt seconds. Returns what happened in it: MA_WORLD_BOUNCED | … */
unsigned ma_world_step(ma_scene *, double dt);

#endif
