/* state: see state.h.
 *
 *     state.json   {"version", "step", "draws", "keys", "options": {NAME: TEXT, …}, "files": {PATH: BYTES, …}}
 *
 * Traps: a size that is right says nothing of the bytes, but the files' own formats do; a name that is not step-DIGITS
 * is never taken for a checkpoint (step-000100.tmp). */
#include "state.h"

#include "cli.h"
#include "file.h"
#include "shard.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* ---- folders ---- */

static int io_error(const char *path, ma_err *e) {
    return ma_fail(e, MA_IO, "%s: %s", path, strerror(errno));
}

static int remove_one(const char *path, const struct stat *s, int kind, struct FTW *where) {
    (void)s, (void)kind, (void)where;
    return remove(path);
}

int ma_folder_remove(const char *path, ma_err *e) {
    return nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) && errno != ENOENT ? io_error(path, e) : 0;
}

/* Makes a folder's names, and its files' bytes, durable. */
static int sync_one(const char *path, const struct stat *s, int kind, struct FTW *where) {
    (void)s, (void)where;
    int fd = open(path, O_RDONLY | (kind == FTW_DP ? O_DIRECTORY : 0));
    int rc = fd < 0 ? -1 : fsync(fd);
    if (fd >= 0) close(fd);
    return rc;
}

int ma_folder_replace(const char *from, const char *to, ma_err *e) {
    char *old = ma_format("%s.old", to);
    int rc = old ? ma_folder_remove(old, e) : ma_fail(e, MA_MEMORY, "%s: out of memory", to);
    if (!rc && nftw(from, sync_one, 16, FTW_DEPTH | FTW_PHYS)) rc = io_error(from, e);
    if (!rc && rename(to, old) && errno != ENOENT) rc = io_error(to, e);
    if (!rc && rename(from, to)) rc = io_error(to, e);
    if (!rc) rc = ma_folder_remove(old, e);
    free(old);
    return rc;
}

int ma_state_room(const char *folder, size_t bytes, ma_err *e) {
    struct statvfs s;
    if (statvfs(folder, &s)) return io_error(folder, e);
    const double gb = 1e9, need = (double)bytes, have = (double)s.f_bavail * (double)s.f_frsize;
    if (need <= have) return 0;
    return ma_fail(e, MA_IO, "%s: the checkpoints need %.3g GB, the disk has %.3g GB left: lower --keep, or make room",
                   folder, need / gb, have / gb);
}

/* ---- names ---- */

char *ma_state_folder(const char *state, int64_t step, ma_err *e) {
    char *path = ma_format("%s/step-%06lld", state, (long long)step);
    if (!path) ma_fail(e, MA_MEMORY, "%s: out of memory", state);
    return path;
}

/* The number in "step-000100", with *rest behind it; -1: another name. */
static int64_t step_of(const char *name, const char **rest) {
    static const char head[] = "step-";
    const size_t n = sizeof head - 1;
    *rest = name;
    if (strncmp(name, head, n) || !name[n] || strchr("+- ", name[n])) return -1;
    char *end;
    const long long step = strtoll(name + n, &end, 10);
    *rest = end;
    return end > name + n ? step : -1;
}

int64_t ma_state_newest(const char *state, int64_t below) {
    int64_t best = -1;
    DIR *dir = opendir(state);
    for (struct dirent *d; dir && (d = readdir(dir));) {
        const char *rest;
        const int64_t step = step_of(d->d_name, &rest);
        if (step > best && step < below && !*rest) best = step;
    }
    if (dir) closedir(dir);
    return best;
}

int ma_state_sweep(const char *state, ma_err *e) {
    int rc = 0;
    DIR *dir = opendir(state);
    for (struct dirent *d; dir && !rc && (d = readdir(dir));) {
        const char *rest;
        if (step_of(d->d_name, &rest) < 0 || (strcmp(rest, ".tmp") && strcmp(rest, ".old"))) continue;
        char *path = ma_format("%s/%s", state, d->d_name);
        rc = path ? ma_folder_remove(path, e) : ma_fail(e, MA_MEMORY, "%s: out of memory", state);
        free(path);
    }
    if (dir) closedir(dir);
    return rc;
}

/* ---- state.json ---- */

/* Adds the files of a folder with their sizes, those of its folders as FOLDER/FILE. */
static int list_files(const char *root, const char *inside, cJSON *list, ma_err *e) {
    char *path = ma_format("%s/%s", root, inside);
    DIR *dir = path ? opendir(path) : NULL;
    int rc = dir ? 0 : io_error(root, e);
    for (struct dirent *d; !rc && (d = readdir(dir));) {
        if (!strcmp(d->d_name, ".") || !strcmp(d->d_name, "..")) continue;
        struct stat s;
        char *name = ma_format("%s%s%s", inside, *inside ? "/" : "", d->d_name);
        if (!name || fstatat(dirfd(dir), d->d_name, &s, 0))
            rc = io_error(root, e);
        else if (S_ISDIR(s.st_mode))
            rc = list_files(root, name, list, e);
        else if (!cJSON_AddNumberToObject(list, name, (double)s.st_size))
            rc = ma_fail(e, MA_MEMORY, "%s: out of memory", root);
        free(name);
    }
    if (dir) closedir(dir);
    free(path);
    return rc;
}

int ma_state_write(const char *folder, const ma_state *s, ma_err *e) {
    char *path = ma_format("%s/state.json", folder), *text = NULL;
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "version", MA_VERSION);
    cJSON_AddNumberToObject(json, "step", (double)s->step);
    cJSON_AddNumberToObject(json, "draws", (double)s->draws);
    cJSON_AddNumberToObject(json, "keys", s->keys);
    cJSON_AddItemToObject(json, "options", cJSON_Duplicate(s->options, true));
    cJSON *files = cJSON_AddObjectToObject(json, "files");
    int rc = path && files ? list_files(folder, "", files, e) : ma_fail(e, MA_MEMORY, "%s: out of memory", folder);
    if (!rc && !(text = cJSON_Print(json))) rc = ma_fail(e, MA_MEMORY, "%s: out of memory", path);
    if (!rc) rc = ma_write_file(path, text, strlen(text), e);
    cJSON_Delete(json);
    free(text);
    free(path);
    return rc;
}

static int check_files(const char *folder, const cJSON *files, ma_err *e) {
    int rc = 0;
    const cJSON *f;
    cJSON_ArrayForEach(f, files) {
        struct stat s;
        char *path = ma_format("%s/%s", folder, f->string);
        if (!path)
            rc = ma_fail(e, MA_MEMORY, "%s: out of memory", folder);
        else if (stat(path, &s))
            rc = ma_fail(e, MA_MISSING, "%s: %s", path, strerror(errno));
        else if (!cJSON_IsNumber(f) || (double)s.st_size != f->valuedouble)
            rc = ma_fail(e, MA_CUT, "%s: %lld bytes, must be %.0f", path, (long long)s.st_size, f->valuedouble);
        free(path);
        if (rc) break;
    }
    return rc;
}

/* A whole number, zero or more; -1: it is none. */
static int64_t count_of(const cJSON *json, const char *name) {
    const cJSON *n = cJSON_GetObjectItemCaseSensitive(json, name);
    return cJSON_IsNumber(n) && n->valuedouble >= 0 && n->valuedouble < 1e15 ? (int64_t)n->valuedouble : -1;
}

int ma_state_read(const char *folder, ma_state *s, ma_err *e) {
    *s = (ma_state){0};
    ma_buf text = {0};
    char *path = ma_format("%s/state.json", folder);
    cJSON *json = NULL;
    int rc = path ? ma_read_file(path, (size_t)1 << 20, &text, e) : ma_fail(e, MA_MEMORY, "%s: out of memory", folder);
    if (!rc && !(json = ma_json_parse(text.data, text.size, path, e))) rc = -1;
    const cJSON *files = cJSON_GetObjectItemCaseSensitive(json, "files");
    s->step = count_of(json, "step");
    s->draws = count_of(json, "draws");
    const int64_t keys = count_of(json, "keys");
    s->keys = (uint32_t)keys;
    if (!rc && (s->step < 0 || s->draws < 0 || keys < 0 || !cJSON_IsObject(files)))
        rc = ma_fail(e, MA_CORRUPT, "%s: lacks step, draws, keys or files", path);
    if (!rc) rc = check_files(folder, files, e);
    if (!rc) s->options = cJSON_DetachItemFromObjectCaseSensitive(json, "options");
    cJSON_Delete(json);
    ma_buf_free(&text);
    free(path);
    return rc;
}
