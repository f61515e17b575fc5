/* weights: opening, looking up, hashing and reading named arrays, whatever the container. The containers themselves are
 * safetensors.c and pth.c.
 *
 * Limits: at most MA_MAX_DIMS dimensions; little-endian files and machines. The file is mapped, not copied: cutting it
 * short while it is open is a bus error, as with every mapping.
 * Traps: data in files may be unaligned (old .pth) or strided (any .pth); nothing here dereferences it in place unless
 * it is neither. Names are compared as bytes. */
#include "weights_private.h"
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- what the containers fill in ---- */

/* Maps path as the next of w->files. Returns its number, or -1. */
static int map_file(ma_weights *w, const char *path, ma_err *err) {
    ma_mapped *files = realloc(w->files, ((size_t)w->nfiles + 1) * sizeof *files);
    if (!files) return ma_fail(err, MA_MEMORY, "%s: out of memory", path);
    w->files = files;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st)) {
        ma_fail(err, errno == ENOENT ? MA_MISSING : MA_IO, "%s: %s", path, strerror(errno));
        if (fd >= 0) close(fd);
        return -1;
    }
    void *data = MAP_FAILED;
    if (!S_ISREG(st.st_mode))
        ma_fail(err, MA_UNSUPPORTED, "%s: weights must be a regular file", path);
    else if (st.st_size == 0)
        ma_fail(err, MA_CUT, "%s: the file is empty", path);
    else if ((data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0)) == MAP_FAILED)
        ma_fail(err, MA_IO, "%s: %s", path, strerror(errno));
    close(fd);
    if (data == MAP_FAILED) return -1;
    files[w->nfiles] = (ma_mapped){.path = ma_strdup(path), .data = data, .size = (size_t)st.st_size};
    if (!files[w->nfiles++].path) return ma_fail(err, MA_MEMORY, "%s: out of memory", path);
    return w->nfiles - 1;
}

ma_entry *ma_weights_add(ma_weights *w, int file, const char *name, size_t len, ma_err *err) {
    const char *path = w->files[file].path;
    if (memchr(name, 0, len)) {
        ma_fail(err, MA_CORRUPT, "%s: a name has a zero byte in it", path);
        return NULL;
    }
    if (w->n == w->room) {
        int room = w->room ? 2 * w->room : 64;
        ma_item *items = w->room > (1 << 28) ? NULL : realloc(w->items, (size_t)room * sizeof *items);
        if (!items) {
            ma_fail(err, MA_MEMORY, "%s: out of memory", path);
            return NULL;
        }
        w->items = items;
        w->room = room;
    }
    char *copy = strndup(name, len);
    if (!copy) {
        ma_fail(err, MA_MEMORY, "%s: out of memory", path);
        return NULL;
    }
    w->items[w->n] = (ma_item){.e.name = copy, .file = file};
    return &w->items[w->n++].e;
}

int ma_entry_dense(const char *path, ma_entry *e, size_t *bytes, ma_err *err) {
    size_t count = 1;
    for (int d = e->nd - 1; d >= 0; d--) {
        e->stride[d] = (int64_t)count;
        /* A dimension of 0 must not hide an overflow before it: strides are kept as if it were 1. */
        size_t n = e->n[d] > 0 ? (size_t)e->n[d] : 1;
        if (e->n[d] < 0 || !ma_mul(count, n, &count) || count > INT64_MAX / 8)
            return ma_fail(err, MA_CORRUPT, "%s: %s is too large", path, e->name);
    }
    *bytes = ma_entry_count(e) * ma_type_size(e->type);
    return 0;
}

size_t ma_entry_count(const ma_entry *e) {
    size_t count = 1;
    for (int d = 0; d < e->nd; d++) count *= (size_t)e->n[d];
    return count;
}

/* Valid UTF-8: no stray or missing continuation byte, no overlong form, no surrogate, nothing above U+10FFFF. */
static bool utf8(const unsigned char *s, size_t n) {
    for (size_t i = 0; i < n;) {
        unsigned c = s[i++], more = c < 0x80 ? 0 : c < 0xc2 ? 9 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : c < 0xf5 ? 3 : 9;
        if (more > n - i) return false;
        unsigned low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80, high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
        for (; more > 0; more--, i++, low = 0x80, high = 0xbf)
            if (s[i] < low || s[i] > high) return false;
    }
    return true;
}

cJSON *ma_weights_json(const char *path, const char *text, size_t n, ma_err *err) {
    /* cJSON would end a string at an escaped zero, and two names could become one. */
    if (n == 0 || text[0] != '{' || memchr(text, 0, n) || memmem(text, n, "\\u0000", 6) ||
        !utf8((const unsigned char *)text, n)) {
        ma_fail(err, MA_CORRUPT, "%s: not a JSON object in UTF-8", path);
        return NULL;
    }
    return ma_json_parse(text, n, path, err);
}

/* ---- opening ---- */

static int by_name(const void *a, const void *b) {
    return strcmp(((const ma_item *)a)->e.name, ((const ma_item *)b)->e.name);
}

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

/* Maps a file and adds what is in it. Only .safetensors is told by its name: the others begin with a signature. */
static int read_file(ma_weights *w, const char *path, ma_err *err) {
    int file = map_file(w, path, err);
    if (file < 0) return -1;
    const ma_mapped *m = &w->files[file];
    if (!ends_with(path, ".safetensors") && ma_pth_is(m->data, m->size)) return ma_pth_read(w, file, err);
    return ma_safetensors_read(w, file, err);
}

/* Sorts, and refuses a name that is there twice. */
static int sort_items(ma_weights *w, ma_err *err) {
    if (w->n > 1) qsort(w->items, (size_t)w->n, sizeof *w->items, by_name);
    for (int i = 1; i < w->n; i++)
        if (!strcmp(w->items[i - 1].e.name, w->items[i].e.name))
            return ma_fail(err, MA_DUPLICATE, "%s: %s is there twice", w->path, w->items[i].e.name);
    return 0;
}

/* The number of the file that stands beside the index under this plain name; read if it has not been. -1: failed. */
static int shard_file(ma_weights *w, const char *index, const char *name, ma_err *err) {
    if (!*name || strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
        return ma_fail(err, MA_CORRUPT, "%s: \"%s\" is not a plain file name", index, name);
    const char *slash = strrchr(index, '/');
    char *path = ma_format("%.*s%s", slash ? (int)(slash + 1 - index) : 0, index, name);
    if (!path) return ma_fail(err, MA_MEMORY, "%s: out of memory", index);
    int file = 0;
    while (file < w->nfiles && strcmp(w->files[file].path, path)) file++;
    if (file == w->nfiles && access(path, F_OK))
        file = ma_fail(err, MA_MISSING, "%s: %s, which it names, is not there", index, name);
    else if (file == w->nfiles && read_file(w, path, err))
        file = -1;
    free(path);
    return file;
}

/* Every name of the map is in the file that it says, once, and nothing else is in these files. */
static int check_index(ma_weights *w, const char *path, const cJSON *map, ma_err *err) {
    for (const cJSON *m = map->child; m; m = m->next) {
        int i = ma_weights_index(w, m->string);
        if (i < 0) return ma_fail(err, MA_MISSING, "%s: %s is not in %s", path, m->string, m->valuestring);
        ma_item *it = &w->items[i];
        const char *file = w->files[it->file].path, *slash = strrchr(file, '/');
        if (strcmp(slash ? slash + 1 : file, m->valuestring))
            return ma_fail(err, MA_CORRUPT, "%s: %s is not in %s but in %s", path, m->string, m->valuestring, file);
        it->listed = true;
    }
    for (int i = 0; i < w->n; i++)
        if (!w->items[i].listed)
            return ma_fail(err, MA_CORRUPT, "%s: does not list %s, which is in %s", path, w->items[i].e.name,
                           w->files[w->items[i].file].path);
    return 0;
}

static int read_index(ma_weights *w, const char *path, ma_err *err) {
    ma_buf text = {0};
    if (ma_read_file(path, MA_JSON_MOST, &text, err)) return -1;
    cJSON *j = ma_weights_json(path, text.data, text.size, err);
    ma_buf_free(&text);
    if (!j) return -1;
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(j, "weight_map");
    int rc = cJSON_IsObject(map) ? 0 : ma_fail(err, MA_CORRUPT, "%s: no object \"weight_map\"", path);
    for (const cJSON *m = rc ? NULL : map->child; m && !rc; m = m->next)
        if (!cJSON_IsString(m))
            rc = ma_fail(err, MA_CORRUPT, "%s: %s: not a file name", path, m->string);
        else
            rc = shard_file(w, path, m->valuestring, err) < 0 ? -1 : 0;
    if (!rc) rc = sort_items(w, err);
    if (!rc) rc = check_index(w, path, map, err);
    cJSON_Delete(j);
    return rc;
}

/* The file in a folder that holds its weights, freed by the caller. */
static char *find_in_folder(const char *folder, ma_err *err) {
    static const char *const names[] = {"diffusion_pytorch_model.safetensors",
                                        "model.safetensors",
                                        "diffusion_pytorch_model.safetensors.index.json",
                                        "model.safetensors.index.json",
                                        "diffusion_pytorch_model.bin",
                                        "pytorch_model.bin",
                                        "pytorch_model.bin.index.json",
                                        "diffusion_pytorch_model.pth",
                                        "pytorch_model.pth",
                                        "model.pth"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *path = ma_format("%s/%s", folder, names[i]);
        if (!path) {
            ma_fail(err, MA_MEMORY, "%s: out of memory", folder);
            return NULL;
        }
        if (!access(path, F_OK)) return path;
        free(path);
    }
    ma_fail(err, MA_MISSING, "%s: no weights in this folder (%s, %s, … or their index)", folder, names[0], names[1]);
    return NULL;
}

ma_weights *ma_weights_open(const char *path, ma_err *err) {
    ma_weights *w = calloc(1, sizeof *w);
    struct stat st;
    char *found = NULL;
    if (!w || !(w->path = ma_strdup(path)))
        ma_fail(err, MA_MEMORY, "%s: out of memory", path);
    else if (stat(path, &st))
        ma_fail(err, errno == ENOENT ? MA_MISSING : MA_IO, "%s: %s", path, strerror(errno));
    else
        found = S_ISDIR(st.st_mode) ? find_in_folder(path, err) : ma_strdup(path);
    int rc = !found                            ? -1
             : ends_with(found, ".index.json") ? read_index(w, found, err)
             : read_file(w, found, err)        ? -1
                                               : sort_items(w, err);
    free(found);
    if (!rc) return w;
    ma_fail(err, MA_MEMORY, "%s: out of memory", path); /* unless a better reason is there already */
    ma_weights_close(w);
    return NULL;
}

void ma_weights_close(ma_weights *w) {
    if (!w) return;
    for (int i = 0; i < w->nfiles; i++) {
        munmap((void *)w->files[i].data, w->files[i].size);
        free(w->files[i].path);
    }
    for (int i = 0; i < w->n; i++) free((char *)w->items[i].e.name);
    for (int i = 0; i < w->nmeta; i++) free(w->meta[i]);
    free(w->files);
    free(w->items);
    free(w->meta);
    free(w->path);
    free(w);
}

/* ---- looking up ---- */

const char *ma_weights_path(const ma_weights *w) {
    return w->path;
}

int ma_weights_count(const ma_weights *w) {
    return w->n;
}

const ma_entry *ma_weights_at(const ma_weights *w, int i) {
    return &w->items[i].e;
}

int ma_weights_index(const ma_weights *w, const char *name) {
    ma_item key = {.e.name = name};
    const ma_item *it = w->n ? bsearch(&key, w->items, (size_t)w->n, sizeof key, by_name) : NULL;
    return it ? (int)(it - w->items) : -1;
}

const ma_entry *ma_weights_find(const ma_weights *w, const char *name) {
    int i = ma_weights_index(w, name);
    return i < 0 ? NULL : &w->items[i].e;
}

const char *ma_weights_meta(const ma_weights *w, const char *key) {
    for (int i = 0; i + 1 < w->nmeta; i += 2)
        if (!strcmp(w->meta[i], key)) return w->meta[i + 1];
    return NULL;
}

/* ---- the data ---- */

enum { CHUNK = 4096 }; /* elements handled at once */

static bool is_dense(const ma_entry *e) {
    int64_t want = 1;
    for (int d = e->nd - 1; d >= 0; d--) {
        if (e->n[d] != 1 && e->stride[d] != want) return false;
        want *= e->n[d];
    }
    return true;
}

/* Elements from, …, from+n-1 in row-major order: where they are if that is dense and aligned, else gathered in room. */
static const void *chunk(const ma_entry *e, bool dense, size_t from, size_t n, void *room) {
    size_t size = ma_type_size(e->type);
    const unsigned char *data = e->data;
    if (dense && (uintptr_t)data % size == 0) return data + from * size;
    if (dense) return memcpy(room, data + from * size, n * size);
    int64_t at[MA_MAX_DIMS], offset = 0; /* the index of element `from`, and where that is */
    size_t rest = from;
    for (int d = e->nd - 1; d >= 0; d--) {
        at[d] = (int64_t)(rest % (size_t)e->n[d]);
        rest /= (size_t)e->n[d];
        offset += at[d] * e->stride[d];
    }
    for (size_t i = 0; i < n; i++) {
        memcpy((unsigned char *)room + i * size, data + (size_t)offset * size, size);
        int d = e->nd - 1;
        for (; d > 0 && at[d] + 1 == e->n[d]; d--) {
            offset -= at[d] * e->stride[d];
            at[d] = 0;
        }
        if (d >= 0) {
            at[d]++;
            offset += e->stride[d];
        }
    }
    return room;
}

int ma_entry_read(const ma_entry *e, float *out, ma_err *err) {
    size_t count = ma_entry_count(e), bad = SIZE_MAX;
    bool dense = is_dense(e);
#pragma omp parallel for reduction(min : bad) schedule(static) if (count > 16 * CHUNK)
    for (size_t from = 0; from < count; from += CHUNK) {
        uint64_t room[CHUNK]; /* elements of 8 bytes at most */
        size_t n = count - from < CHUNK ? count - from : CHUNK;
        ma_to_f32(out + from, chunk(e, dense, from, n, room), e->type, n);
        for (size_t i = n; i-- > 0;)
            if (!isfinite(out[from + i]) && from + i < bad) bad = from + i;
    }
    if (bad == SIZE_MAX) return 0;
    return ma_fail(err, MA_NOTFINITE, "%s: element %zu is %s", e->name, bad, isnan(out[bad]) ? "NaN" : "infinite");
}

const char *ma_weights_sha(ma_weights *w) {
    if (w->sha[0]) return w->sha;
    ma_sha *sha = ma_sha_new();
    if (!sha) return NULL;
    for (int i = 0; i < w->n; i++) {
        const ma_entry *e = &w->items[i].e;
        const char *type = ma_type_name(e->type);
        int64_t nd = e->nd;
        ma_sha_add(sha, e->name, strlen(e->name) + 1);
        ma_sha_add(sha, type, strlen(type) + 1);
        ma_sha_add(sha, &nd, sizeof nd);
        ma_sha_add(sha, e->n, (size_t)e->nd * sizeof *e->n);
        size_t count = ma_entry_count(e);
        bool dense = is_dense(e);
        for (size_t from = 0; from < count; from += CHUNK) {
            uint64_t room[CHUNK];
            size_t n = count - from < CHUNK ? count - from : CHUNK;
            ma_sha_add(sha, chunk(e, dense, from, n, room), n * ma_type_size(e->type));
        }
    }
    ma_sha_end(sha, w->sha);
    return w->sha;
}
