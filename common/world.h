/* world: a small physical world whose every pixel's motion is known: balls under gravity before a textured wall. */
#ifndef MA_WORLD_H
#define MA_WORLD_H
#include "cli.h"

enum { MA_WORLD_BALLS = 5 };

/* Positions are in pixels, x to the right and y down, from the left upper corner; the pixel in column j of row i has
 * its centre at (j + 0.5, i + 0.5). Times are in seconds. */
typedef struct ma_ball {
    double x, y, vx, vy; /* centre in the room, and its velocity */
    double radius;
    int colour, pattern;
    double angle, phase; /* of the pattern: radians; radii */
} ma_ball;

/* Where the balls are: walls at left and right, a floor, no ceiling. */
typedef struct ma_room {
    double left, right, floor;
    double gravity;     /* pixels / s² */
    double restitution; /* relative speed after a contact over that before; 1: elastic */
} ma_room;

typedef struct ma_world {
    ma_clip_size size;
    ma_room room;
    int balls;
    ma_ball ball[MA_WORLD_BALLS];
    double (*path)[2]; /* (frames, balls, 2): x, y of each centre in the room */
    double pan;        /* of the camera, to the right: pixels a frame */
    int wall;          /* kind of background */
    double wall_period, wall_angle;
    double wall_colour[2][3];
    float noise[256];
    uint8_t shuffle[256];
    bool bounces, meets; /* some ball touches the floor; two balls touch */
} ma_world;

/* The world of this seed and key, all frames of it. pan: how likely the camera moves, 0..1. NULL: out of memory. */
ma_world *ma_world_make(uint64_t seed, const char *key, ma_clip_size, double pan, ma_err *);
void ma_world_free(ma_world *);

/* A frame: rgb (height, width, 3). */
void ma_world_render(const ma_world *, int64_t frame, uint8_t *rgb);
/* What each pixel of `frame` moves by until frame `until`: uv (height, width, 2). */
void ma_world_flow(const ma_world *, int64_t frame, int64_t until, float *uv);
/* Where ball k is in the picture of that frame. */
void ma_world_where(const ma_world *, int64_t frame, int k, double xy[2]);
/* What is to be seen: "two balls, one red and one blue, fall and bounce …". Freed with free(); NULL: out of memory. */
char *ma_world_caption(const ma_world *);
const char *ma_world_colour(int colour); /* "red" */

/* One step of dt seconds. Returns 1 if a ball touched the floor, +2 if two balls touched. */
int ma_world_step(ma_ball *, int n, const ma_room *, double dt);

#endif
