/* real: published files, where they are at hand. The numbers were read off with PyTorch. */
#include "../tap.h"
#include "../../common/weights.h"

#include <string.h>
#include <unistd.h>

typedef struct known {
    const char *name;
    int64_t count;
    float first, second, last;
} known;

static int64_t count_of(const ma_entry *e) {
    int64_t n = 1;
    for (int d = 0; d < e->nd; d++) n *= e->n[d];
    return n;
}

static void check(const char *file, int tensors, int64_t parameters, const known *k, int n) {
    const char *shared = getenv("SHARED");
    char *path = ma_format("%s/assets/%s", shared ? shared : "../shared", file);
    if (access(path, R_OK)) {
        skip(path);
        free(path);
        return;
    }
    ma_err err = {0};
    ma_weights *w = ma_weights_open(path, &err);
    ok(w != NULL, "%s opens: %s", file, err.text);
    int64_t sum = 0;
    for (int i = 0; w && i < ma_weights_count(w); i++) sum += count_of(ma_weights_at(w, i));
    ok(w && ma_weights_count(w) == tensors, "%s: %d tensors", file, tensors);
    ok(sum == parameters, "%s: %lld parameters", file, (long long)sum);
    for (int i = 0; w && i < n; i++) {
        const ma_entry *e = ma_weights_find(w, k[i].name);
        float *v = e ? ma_alloc((size_t)count_of(e), sizeof *v) : NULL;
        ok(v && count_of(e) == k[i].count && !ma_entry_read(e, v, NULL) && v[0] == k[i].first && v[1] == k[i].second &&
               v[k[i].count - 1] == k[i].last,
           "%s: %s", file, k[i].name);
        ma_release(v);
    }
    ma_weights_close(w);
    free(path);
}

int main(void) {
    static const known raft[] = {
        {"module.fnet.conv1.weight", 4704, -0x1.c37ac2p-5f, -0x1.300c1ap-5f, -0x1.e26132p-4f},
        {"module.cnet.conv2.bias", 160, -0x1.2c5f8ap-2f, 0x1.9186dcp-4f, 0x1.4c34b6p-5f},
        {"module.update_block.flow_head.conv2.bias", 2, 0x1.124d22p-10f, -0x1.2e43dap-9f, -0x1.2e43dap-9f}};
    static const known t5[] = {{"shared.weight", 41664, -0x1.aec4p-10f, 0x1.54256ap-9f, -0x1.9077cap-9f}};
    check("raft/raft-small.pth", 106, 990162, raft, 3); /* the old run of pickles */
    check("t5/tiny/pytorch_model.bin", 113, 252704, t5, 1);
    return tap_done();
}
