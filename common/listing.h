/* listing: a list of videos and captions as users have them. Told by what is in the file:
 *   CSV         its first line names the columns (tabs between them where the name ends in .tsv)
 *   JSON lines  an object a line
 *   lines       a video a line; captions, if there are any, line by line in a second file
 * Columns and fields: videopath, video_path, path, video or file_name; caption, text or prompt; key or id. The first of
 * these that is there is taken; others are let be. Paths are relative to the list's own folder. */
#ifndef MA_LISTING_H
#define MA_LISTING_H

#include "base.h"

typedef struct ma_listed {
    char *video;   /* as it can be opened; NULL: a caption without a video */
    char *caption; /* "": it has none; NULL: the list does not tell */
    char *key;     /* NULL: the list does not tell */
    int64_t line;  /* where it begins in the list, from 1 */
} ma_listed;

typedef struct ma_listing {
    ma_listed *at;
    size_t n;
} ma_listing;

/* captions: the second file, or NULL. Errors name file and line. Zero-initialise; free also on error. */
int ma_listing_read(const char *path, const char *captions, ma_listing *, ma_err *);
void ma_listing_free(ma_listing *);

#endif
