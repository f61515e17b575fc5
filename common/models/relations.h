/* relations: the losses that align hidden tokens to a teacher's (METHOD, stage 2). One table says what each is: how
 * much a pair of tokens counts by its distance in frames, and the margin. */
#ifndef MA_RELATIONS_H
#define MA_RELATIONS_H

#include "../ops.h"

typedef enum { ALIGN_SOFT_TRD, ALIGN_TRD, ALIGN_TRD_SPATIAL, ALIGN_TRD_TEMPORAL, ALIGN_REPA, ALIGN_KINDS } align_loss;

const char *align_name(align_loss); /* "soft-trd" */

/* The losses of a run, and what each counts beside the diffusion loss. */
typedef struct align_terms {
    struct {
        align_loss kind;
        double weight;
    } at[ALIGN_KINDS];
    int n; /* 0: none */
} align_terms;
/* From "soft-trd", "soft-trd=0.5,repa=0.1" or "none"; lambda: the weight where none is given. */
int align_terms_read(const char *text, double lambda, align_terms *, ma_err *);

/* z, m (B,F,h,w,D); m is the teacher, without a gradient. tau: frames; margin: of the trd kinds. → one element. */
ma_tensor *align_loss_of(ma_ctx *, align_loss, ma_tensor *z, ma_tensor *m, double tau, double margin);

#endif
