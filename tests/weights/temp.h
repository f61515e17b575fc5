/* temp: a folder for a test's files, removed at the end. */
#ifndef TEMP_H
#define TEMP_H

#include "../../common/base.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char temp_folder[] = "/tmp/ma-weights-XXXXXX";

static inline void temp_remove(void) {
    DIR *d = opendir(temp_folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        char *path = ma_format("%s/%s", temp_folder, e->d_name);
        if (e->d_name[0] != '.') unlink(path);
        free(path);
    }
    if (d) closedir(d);
    rmdir(temp_folder);
}

static inline void temp_make(void) {
    if (!mkdtemp(temp_folder)) {
        printf("Bail out! no temporary folder\n");
        exit(1);
    }
    atexit(temp_remove);
}

/* TEMP/name, in one of four buffers that take turns. */
static inline const char *temp_path(const char *name) {
    static char room[4][256];
    static int turn;
    char *path = room[turn++ % 4];
    snprintf(path, sizeof room[0], "%s/%s", temp_folder, name);
    return path;
}

#endif
