/* ahead: the samples of a stage between input and output. Threads read them, prepare those to come and finish those
 * that were worked on, while the caller works; to the caller they come, and leave, in the order of the input. */
#ifndef MA_AHEAD_H
#define MA_AHEAD_H
#include "stage.h"

/* A sample on its way. why: it is bad, or what was to be read there; s may be NULL then, or where a tool took it. */
typedef struct ma_ticket {
    ma_sample *s;
    void *pre;
    ma_err why;
    int state; /* ahead.c's */
} ma_ticket;

/* What the caller's time went to. Who is behind when it waits: the input, where a thread stands idle for want of a
 * sample; else whoever prepares. */
typedef enum { MA_SPENT_INPUT, MA_SPENT_PREPARE, MA_SPENT_WORK, MA_SPENT_WRITER, MA_SPENT_KINDS } ma_spent;

typedef struct ma_ahead ma_ahead;
/* threads: for prepare and finish; a stage that has neither gets one. NULL: none can be started. */
ma_ahead *ma_ahead_start(const ma_stage *, ma_inputs *, int threads, ma_err *);
/* The next thing to do, waiting for it: MA_TO_WORK, a sample that is to be given back by ma_ahead_worked;
 * MA_TO_HAND_ON, the one whose turn it is to leave, whose s and why the caller takes: its place is free at the next
 * call; MA_AHEAD_END: no more to work on, or the run is being stopped, or so many bad ones followed that those to work
 * on are to be given back first. */
typedef enum { MA_AHEAD_END, MA_TO_WORK, MA_TO_HAND_ON } ma_todo;
ma_todo ma_ahead_next(ma_ahead *, ma_ticket **);
/* The same when all that came has been given back and no more is wanted: MA_TO_HAND_ON until all have left. */
ma_todo ma_ahead_last(ma_ahead *, ma_ticket **);
void ma_ahead_worked(ma_ahead *, ma_ticket **, int n);
void ma_ahead_spent(ma_ahead *, ma_spent, double seconds);
/* At most so many samples are under way from now on, but never more than at the start. */
void ma_ahead_limit(ma_ahead *, size_t most);
/* Percent of the time since the start: "62 % decoder, 35 % device"; what is below one is left out. */
const char *ma_ahead_account(ma_ahead *, char text[96]);
/* Ends the threads and frees what is under way. Reading must be able to end: see ma_stopped. NULL is fine. */
void ma_ahead_stop(ma_ahead *);

#endif
