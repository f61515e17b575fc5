/* track: the balls of a toy clip, found by their colours and followed from frame to frame, and the camera's way along
 * the wall. Nothing is known beforehand: not how many balls there are, nor their colours or sizes. */
#ifndef MA_TRACK_H
#define MA_TRACK_H

#include "base.h"

enum { MA_TRACKS = 8 }; /* most that are followed */

/* A ball in a frame. Positions are in pixels of the picture, x to the right and y down, from its left upper corner. */
typedef struct ma_seen {
    bool seen;     /* false: the rest is what lies between the frames before and after, or goes on from them */
    double x, y;   /* centre */
    double radius; /* as it was fitted in this frame */
    double hue;    /* degrees: 0 red, 120 green, 240 blue */
    double part;   /* of the ball's area, as it mostly is, that is seen: 1, or less where something hides it */
} ma_seen;

typedef struct ma_track {
    ma_seen *at;        /* (frames) */
    int64_t seen;       /* in how many frames */
    double radius, hue; /* medians */
} ma_track;

typedef struct ma_tracks {
    int64_t frames, height, width;
    double fps;
    double *camera;            /* (frames): how far it has gone to the right since frame 0, pixels */
    int n;                     /* those seen in fewer than an eighth of the frames, or in two, are left out */
    ma_track track[MA_TRACKS]; /* the ones seen longest first */
    /* Mean |difference| of the wall from frame to frame, camera's way removed, 0..255; what is not wall is left out. */
    double flicker;
} ma_tracks;

/* rgb (frames,height,width,3). Zero-initialise; free also on error. -1: out of memory. */
int ma_tracks_find(ma_tracks *, const uint8_t *rgb, int64_t frames, int64_t height, int64_t width, double fps,
                   ma_err *);
void ma_tracks_free(ma_tracks *);

/* Degrees between two hues, 0..180. */
double ma_hue_between(double, double);

/* Sorts n values, of which none is NaN; the one below which that part of them lies. n 0: 0. */
double ma_quantile(double *v, int64_t n, double part);

#endif
