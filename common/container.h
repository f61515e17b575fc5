/* container: whether a video file is all there, told from the sizes that its own structure promises. */
#ifndef MA_CONTAINER_H
#define MA_CONTAINER_H
#include "base.h"

/* MP4/MOV boxes, Matroska/WebM elements, AVI (RIFF) chunks: one that goes beyond the end is MA_CUT; an MP4 without its
 * index too. Other containers pass. name: for the message. */
int ma_container_whole(const void *bytes, size_t size, const char *name, ma_err *);

#endif
