/* state: the checkpoints of a training: folders STATE/step-000100. Each is written beside its place and renamed, and
 * its state.json, written last, lists every file with its size, so that one that was cut is seen not to be whole. */
#ifndef MA_STATE_H
#define MA_STATE_H

#include "base.h"

#include <cjson/cJSON.h>

typedef struct ma_state {
    int64_t step;   /* done, those that were skipped too */
    int64_t draws;  /* samples taken from the data */
    uint32_t keys;  /* a digest of their keys, in order */
    cJSON *options; /* what the run was asked for: texts by name. Of ma_state_read: cJSON_Delete */
} ma_state;

/* STATE/step-000100. free(); NULL: out of memory. */
char *ma_state_folder(const char *state, int64_t step, ma_err *);
/* The newest step below that has a folder, whole or not; -1: none. */
int64_t ma_state_newest(const char *state, int64_t below);
/* Removes what runs that were killed have left half-made. */
int ma_state_sweep(const char *state, ma_err *);
/* The last file of a checkpoint; everything else is in the folder. */
int ma_state_write(const char *folder, const ma_state *, ma_err *);
/* -1, and e names the file: it is not whole. */
int ma_state_read(const char *folder, ma_state *, ma_err *);
/* That the disk below the folder has room for so many bytes: an error says how many it needs and has. */
int ma_state_room(const char *folder, size_t bytes, ma_err *);

/* Replaces the folder `to` by `from`, so that at any moment one of them is whole. */
int ma_folder_replace(const char *from, const char *to, ma_err *);
int ma_folder_remove(const char *path, ma_err *); /* with all in it; nothing there is fine */

#endif
