/* score: whether a clip of the toy world shows what its caption says (semantic adherence, SA) and obeys physics
 * (physical commonsense, PC), told from its pixels without a network. */
#ifndef MA_SCORE_H
#define MA_SCORE_H

#include "law.h"

/* What a caption says. */
typedef struct ma_caption {
    ma_world_kind kind;
    int balls;
    int colour[MA_TRACKS]; /* of each; index for ma_colour_name */
    bool emerges;          /* it "comes out" behind the pillar */
    int pan;               /* of the camera: -1 left, 1 right */
} ma_caption;

/* -1: it is not a caption of the toy world; says what is missing. */
int ma_caption_read(const char *text, ma_caption *, ma_err *);
const char *ma_colour_name(int colour);

/* Parts of the scores. A part is what was measured, put between 1 (good: it may be) and 0 (bad). */
typedef enum {
    MA_SA_NUMBER,
    MA_SA_COLOUR,
    MA_SA_MOTION,
    MA_PC_NUMBER,
    MA_PC_COLOUR,
    MA_PC_SIZE,
    MA_PC_JUMP,
    MA_PC_CONTACT,
    MA_PC_LAW,
    MA_PC_ENERGY,
    MA_PARTS
} ma_part;
const char *ma_part_name(ma_part); /* "sa_number", … */
/* What scores 1 and what 0; half-way between passes just so. */
void ma_part_range(ma_part, double *good, double *bad);

typedef struct ma_score {
    double measured[MA_PARTS], part[MA_PARTS];
    double sa, pc; /* each its worst part */
    bool joint;    /* both pass */
    bool camera;   /* the camera moves as the caption says, or does not; not a part */
} ma_score;

#define MA_SCORE_PASS 0.5 /* and more */

int ma_score_of(const ma_tracks *, const ma_caption *, ma_score *, ma_err *);

#endif
