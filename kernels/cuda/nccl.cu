/* nccl: several GPUs, a process each, that share gradients and weights (op.h, ma_team_ops). On a stream of its own,
 * beside the kernels: what is shared waits for what was queued before, and what comes after wait() waits for it.
 *
 * NCCL is opened when first asked for: a run on one GPU needs none. Its calls are made not to block (they say that they
 * are in progress, and are asked again), so that a rank that has died leaves nobody hanging: abort() comes from the
 * thread that saw it die.
 *
 * Traps: NCCL takes a communicator's calls from one thread at a time: a lock is held over each, and abort() takes it
 * after it has told the others to let go. Nothing may be recorded behind a call that is still in progress. NVLink
 * multicast stays off unless the user turns it on: it needs a fabric manager in good health.
 */
#include "cuda.h"

#if __has_include(<nccl.h>)
#include <nccl.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <mutex>
#include <new>
#include <string>
#include <unistd.h>

namespace {

constexpr size_t BUFFERS = (size_t)1 << 30; /* bytes that NCCL takes for its channels, about */
constexpr size_t BUCKET = (size_t)64 << 20;
constexpr char LIBRARY[] = "libnccl.so.2";

/* What is used of NCCL. */
struct functions {
    decltype(&ncclGetUniqueId) id;
    decltype(&ncclCommInitRankConfig) init;
    decltype(&ncclCommGetAsyncError) state;
    decltype(&ncclCommAbort) abort;
    decltype(&ncclGetErrorString) words;
    decltype(&ncclGroupStart) begin;
    decltype(&ncclGroupEnd) end;
    decltype(&ncclAllReduce) sum;
    decltype(&ncclReduce) reduce;
    decltype(&ncclBroadcast) broadcast;
};

struct team {
    functions f;
    ncclComm_t comm; /* NULL: not yet, or aborted */
    std::mutex lock; /* over comm */
    std::atomic<bool> aborted;
    cudaStream_t stream;
    cudaEvent_t before, after; /* on the kernels' stream; on ours */
};

ma_cuda *here(ma_device *d) {
    ma_cuda *c = (ma_cuda *)d;
    cudaSetDevice(c->index);
    return c;
}

team *of(const ma_cuda *c) {
    return (team *)c->team;
}

/* ---- the library ---- */

/* The folder that libma-cuda.so was loaded from, with a slash. */
std::string own_folder() {
    static const char mark = 0;
    Dl_info info;
    if (!dladdr(&mark, &info) || !info.dli_fname) return "";
    const char *slash = strrchr(info.dli_fname, '/');
    return slash ? std::string(info.dli_fname, (size_t)(slash - info.dli_fname) + 1) : "";
}

/* Beside ourselves first, then where the loader looks: LD_LIBRARY_PATH, the toolkit that we were built with, the
 * system. */
void *open_library(ma_cuda *c) {
    const std::string beside = own_folder() + LIBRARY;
    if (!getenv("NCCL_NVLS_ENABLE")) setenv("NCCL_NVLS_ENABLE", "0", 1);
    void *lib = access(beside.c_str(), R_OK) ? NULL : dlopen(beside.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!lib) lib = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!lib)
        snprintf(c->failure, sizeof c->failure,
                 "NCCL is needed: %s was looked for in %s, LD_LIBRARY_PATH and the system's folders: %s", LIBRARY,
                 own_folder().c_str(), dlerror());
    return lib;
}

int find(ma_cuda *c, void *lib, const char *name, void *to) {
    void *at = dlsym(lib, name);
    if (!at) snprintf(c->failure, sizeof c->failure, "%s lacks %s: too old", LIBRARY, name);
    memcpy(to, &at, sizeof at);
    return at ? 0 : -1;
}

int load(ma_cuda *c, functions *f) {
    void *lib = open_library(c);
    const struct {
        const char *name;
        void *to;
    } all[] = {
        {"ncclGetUniqueId", &f->id},     {"ncclCommInitRankConfig", &f->init}, {"ncclCommGetAsyncError", &f->state},
        {"ncclCommAbort", &f->abort},    {"ncclGetErrorString", &f->words},    {"ncclGroupStart", &f->begin},
        {"ncclGroupEnd", &f->end},       {"ncclAllReduce", &f->sum},           {"ncclReduce", &f->reduce},
        {"ncclBroadcast", &f->broadcast}};
    if (!lib) return -1;
    for (const auto &x : all)
        if (find(c, lib, x.name, x.to)) return -1;
    return 0;
}

/* ---- calls ---- */

int failed(ma_cuda *c, ncclResult_t r, const char *what) {
    const team *t = of(c);
    const char *why = t->aborted ? "aborted" : t->f.words(r);
    snprintf(c->failure, sizeof c->failure, "NCCL: %s: %s", what, why);
    return -1;
}

bool refused(ncclResult_t r) {
    return r != ncclSuccess && r != ncclInProgress;
}

/* Until what was asked for is under way, or fails, or is called off. The lock is held. */
int settle(ma_cuda *c, ncclResult_t r, const char *what) {
    team *t = of(c);
    while (!refused(r) && t->comm && !t->aborted) {
        ncclResult_t asked = t->f.state(t->comm, &r);
        if (asked != ncclSuccess) r = asked;
        if (r == ncclSuccess) return 0;
        if (r == ncclInProgress) usleep(20);
    }
    return failed(c, r, what);
}

ncclResult_t share_one(const team *t, ma_share how, const ma_piece *p) {
    switch (how) {
    case MA_SUM_ALL: return t->f.sum(p->data, p->data, p->count, ncclFloat32, ncclSum, t->comm, t->stream);
    case MA_SUM_OWNER:
        return t->f.reduce(p->data, p->data, p->count, ncclFloat32, ncclSum, p->owner, t->comm, t->stream);
    case MA_SPREAD: return t->f.broadcast(p->data, p->data, p->count, ncclInt8, p->owner, t->comm, t->stream);
    }
    return ncclInvalidArgument;
}

/* As one launch. The lock is held. */
int share_all(ma_cuda *c, ma_share how, const ma_piece *pieces, int n) {
    team *t = of(c);
    if (!t->comm || t->aborted) return failed(c, ncclSuccess, "sharing");
    ncclResult_t r = t->f.begin(), end;
    for (int k = 0; k < n && !refused(r); k++) r = share_one(t, how, &pieces[k]);
    end = t->f.end();
    return settle(c, refused(r) ? r : end, "sharing");
}

/* ---- ma_team_ops ---- */

int team_open(ma_device *d) {
    ma_cuda *c = here(d);
    team *t = new (std::nothrow) team{};
    const char *where = "a stream for NCCL";
    int least, greatest;
    c->team = t;
    if (!t) {
        snprintf(c->failure, sizeof c->failure, "out of memory");
        return -1;
    }
    if (load(c, &t->f) || ma_cuda_bad(c, cudaDeviceGetStreamPriorityRange(&least, &greatest), where) ||
        ma_cuda_bad(c, cudaStreamCreateWithPriority(&t->stream, cudaStreamNonBlocking, greatest), where) ||
        ma_cuda_bad(c, cudaEventCreateWithFlags(&t->before, cudaEventDisableTiming), where) ||
        ma_cuda_bad(c, cudaEventCreateWithFlags(&t->after, cudaEventDisableTiming), where))
        return -1;
    return 0;
}

int team_id(ma_device *d, char id[128]) {
    ma_cuda *c = here(d);
    ncclUniqueId made;
    static_assert(sizeof made == 128, "op.h says so");
    ncclResult_t r = of(c)->f.id(&made);
    if (r != ncclSuccess) return failed(c, r, "an id");
    memcpy(id, &made, sizeof made);
    return 0;
}

int team_join(ma_device *d, const char id[128], int rank, int count) {
    ma_cuda *c = here(d);
    team *t = of(c);
    ncclUniqueId given;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    memcpy(&given, id, sizeof given);
    config.blocking = 0;
    std::lock_guard<std::mutex> held(t->lock);
    if (t->aborted) return failed(c, ncclSuccess, "joining");
    return settle(c, t->f.init(&t->comm, count, given, rank, &config), "joining");
}

int team_share(ma_device *d, ma_share how, const ma_piece *pieces, int n) {
    ma_cuda *c = here(d);
    team *t = of(c);
    if (ma_cuda_bad(c, cudaEventRecord(t->before, c->stream), "sharing") ||
        ma_cuda_bad(c, cudaStreamWaitEvent(t->stream, t->before, 0), "sharing"))
        return -1;
    std::lock_guard<std::mutex> held(t->lock);
    return share_all(c, how, pieces, n);
}

int team_wait(ma_device *d) {
    ma_cuda *c = here(d);
    team *t = of(c);
    return ma_cuda_bad(c, cudaEventRecord(t->after, t->stream), "sharing") ||
                   ma_cuda_bad(c, cudaStreamWaitEvent(c->stream, t->after, 0), "sharing")
               ? -1
               : 0;
}

int team_finish(ma_device *d) {
    ma_cuda *c = here(d);
    return ma_cuda_bad(c, cudaStreamSynchronize(of(c)->stream), "sharing") ? -1 : 0;
}

void team_abort(ma_device *d) {
    ma_cuda *c = here(d);
    team *t = of(c);
    if (!t) return;
    t->aborted = true;
    std::lock_guard<std::mutex> held(t->lock);
    if (t->comm) t->f.abort(t->comm);
    t->comm = NULL;
}

} // namespace

const ma_team_ops *ma_cuda_team() {
    static const ma_team_ops ops = {BUFFERS,    BUCKET,    team_open,   team_id,   team_join,
                                    team_share, team_wait, team_finish, team_abort};
    return &ops;
}

/* What was shared has come, or never will: to abort loses nothing, and waits for nobody. */
void ma_cuda_team_close(ma_cuda *c) {
    team *t = of(c);
    if (!t) return;
    team_abort(&c->device);
    if (t->before) cudaEventDestroy(t->before);
    if (t->after) cudaEventDestroy(t->after);
    if (t->stream) cudaStreamDestroy(t->stream);
    delete t;
    c->team = NULL;
}

#else

const ma_team_ops *ma_cuda_team() {
    return NULL;
}

void ma_cuda_team_close(ma_cuda *) {}

#endif
