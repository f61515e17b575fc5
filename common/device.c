/* device: from a name on the command line to a table of kernels. The CPU's is linked in; the CUDA half is one shared
 * object, libma-cuda.so, opened when asked for: beside the program, in ../lib/ma-tools, or where the loader looks.
 */
#include "tensor.h"

#include "../kernels/cpu/cpu.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LIBRARY "libma-cuda.so"

/* What the library exports: a device, or NULL and the reason. */
typedef ma_device *(*open_cuda)(int index, bool plan, ma_err *);

/* Beside the program first, so that a build folder uses its own. */
static void *open_library(ma_err *e) {
    static const char *const places[] = {"", "../lib/ma-tools/", "../lib/"};
    char self[PATH_MAX], path[PATH_MAX + 64];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    char *slash = n > 0 ? (self[n] = 0, strrchr(self, '/')) : NULL;
    for (size_t k = 0; slash && k < sizeof places / sizeof *places; k++) {
        snprintf(path, sizeof path, "%.*s/%s" LIBRARY, (int)(slash - self), self, places[k]);
        if (access(path, R_OK)) continue;
        void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!lib) ma_fail(e, MA_DEVICE, "cuda: %s", dlerror());
        return lib;
    }
    void *lib = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!lib) ma_fail(e, MA_MISSING, "cuda: %s (make builds it where nvcc is found)", dlerror());
    return lib;
}

static ma_device *cuda(int index, bool plan, ma_err *e) {
    void *lib = open_library(e);
    if (!lib) return NULL;
    open_cuda make;
    *(void **)&make = dlsym(lib, "ma_cuda_device");
    if (make) return make(index, plan, e);
    ma_fail(e, MA_DEVICE, "cuda: " LIBRARY " lacks ma_cuda_device: of another version?");
    return NULL;
}

/* One for all, but without the limit that somebody set before. A plan is a copy, which has taken nothing yet. */
static ma_device *cpu(bool plan) {
    ma_device *d = ma_cpu_device(plan);
    d->limit = d->free_bytes = 0;
    if (plan) d->taken = 0;
    return d;
}

/* The number after "kind:", or 0 for "kind" alone; -1: it is neither. */
static int index_of(const char *name, const char *kind) {
    const size_t n = strlen(kind);
    char *end = NULL;
    if (!strcmp(name, kind)) return 0;
    long index = !strncmp(name, kind, n) && name[n] == ':' ? strtol(name + n + 1, &end, 10) : -1;
    return end && end > name + n + 1 && !*end && index >= 0 && index < 1024 ? (int)index : -1;
}

ma_device *ma_device_open(const char *name, bool plan, char note[160], ma_err *e) {
    note[0] = 0;
    if (!strcmp(name, "cpu")) return cpu(plan);
    int index = index_of(name, "auto");
    if (index >= 0) {
        ma_err why = {0};
        ma_device *d = cuda(index, plan, &why);
        if (d && d->free_bytes) return d;
        ma_device_close(d); /* a plan opens without a GPU too; it is not what would run */
        if (why.reason != MA_OK && why.reason != MA_MISSING)
            snprintf(note, 160, "running on the CPU (%.130s)", why.text);
        return cpu(plan);
    }
    if ((index = index_of(name, "cuda")) >= 0) return cuda(index, plan, e);
    ma_fail(e, MA_USAGE, "device: '%s' is not auto, cpu, cuda or cuda:N", name);
    return NULL;
}

void ma_device_close(ma_device *d) {
    if (d && d->close) d->close(d);
}

void ma_device_limit(ma_device *d, size_t bytes) {
    if (d->free_bytes && d->free_bytes <= bytes) return;
    d->free_bytes = d->limit = bytes;
}
