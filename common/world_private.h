/* world_private: what the rooms of the toy world share: world.c (the whole), world_kinds.c (what moves how),
 * world_look.c (what it looks like). */
#ifndef MA_WORLD_PRIVATE_H
#define MA_WORLD_PRIVATE_H
#include "rng.h"
#include "world.h"

/* A verb of the caption, for one ball and for several (NULL: not said), said if all of `if_all` and none of `if_none`
 * happened. */
typedef struct ma_verb {
    const char *one, *many;
    unsigned if_all, if_none;
} ma_verb;

/* A kind of physics. */
typedef struct ma_world_law {
    const char *name;
    /* Places balls, at most so many, in a scene whose room is made; side: the picture's shorter, seconds: the clip's.
     */
    void (*make)(ma_scene *, ma_rng *, int most, double side, double seconds);
    unsigned (*step)(ma_scene *, double dt);
    ma_verb verbs[4]; /* in the order of the caption; ended by {0} where fewer */
} ma_world_law;

extern const ma_world_law ma_world_laws[MA_WORLD_KINDS];

/* Draws all that has to do with looks. */
void ma_looks_make(ma_looks *, const ma_clip_size *, ma_rng *);

/* From lo up to hi. */
static inline double ma_between(ma_rng *g, double lo, double hi) {
    return lo + (hi - lo) * ma_rng_uniform(g);
}

#endif
