/* t5: what the text encoder of CogVideoX (T5 v1.1 XXL, 226 tokens a prompt) takes on the GPU, with random weights.
 *     build/tests/bench/t5 [TYPE…]      bf16 f16 (default: bf16)
 * From tokens on the host to the embedding on the device. One line a figure: name, median ms of the runs (min, max),
 * products done a second, prompts a second, memory. PROFILE=1: and what each op took, every call on a clock of its own.
 */
#include "../../common/models/t5.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS = 9, TOKENS = 226, MOST = 16 };

static ma_kernel plain[MA_NOPS];
static ma_device *device;
static double spent[MA_NOPS];
static int calls[MA_NOPS];

static int timed(const ma_call *call) {
    device->timer(device, false);
    int rc = plain[call->op](call);
    spent[call->op] += device->timer(device, true);
    calls[call->op]++;
    return rc;
}

static void run(ma_ctx *c, const t5 *net, const int32_t *ids, int64_t batch) {
    t5_forward(c, net, ids, batch, TOKENS);
    ma_reset(c);
}

static void profile(ma_ctx *c, const t5 *net, const int32_t *ids, int64_t batch) {
    memset(spent, 0, sizeof spent);
    memset(calls, 0, sizeof calls);
    memcpy(plain, device->fwd, sizeof plain);
    for (int k = 0; k < MA_NOPS; k++) device->fwd[k] = timed;
    run(c, net, ids, batch);
    memcpy(device->fwd, plain, sizeof plain);
    for (int k = 0; k < MA_NOPS; k++)
        if (calls[k]) printf("    %9.3f ms %4d × %s\n", spent[k], calls[k], ma_op_name((ma_op)k));
}

static int by_value(const void *a, const void *b) {
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

static double flop_of(const t5_config *c, double batch) {
    double d = c->width, inner = (double)c->heads * c->head_dim, f = c->hidden;
    return batch * TOKENS * c->layers * (8 * d * inner + 6 * d * f + 4 * TOKENS * inner);
}

static void measure(ma_ctx *c, const t5 *net, const t5_config *config, int64_t batch) {
    int32_t ids[MOST * TOKENS];
    double ms[RUNS];
    for (int k = 0; k < batch * TOKENS; k++) ids[k] = k % TOKENS < 60 ? (k * 7919) % 32000 : 0;
    for (int k = 0; k < 3; k++) run(c, net, ids, batch);
    for (int k = 0; k < RUNS; k++) {
        device->timer(device, false);
        run(c, net, ids, batch);
        ms[k] = device->timer(device, true);
    }
    qsort(ms, RUNS, sizeof *ms, by_value);
    ma_memory m = ma_ctx_memory(c);
    double median = ms[RUNS / 2];
    printf("T5-XXL %s, %2lld prompts: %.2f ms (%.2f, %.2f) %.0f TFLOP/s %.1f prompts/s memory %.2f GiB\n",
           ma_type_name(ma_get_type(c)), (long long)batch, median, ms[0], ms[RUNS - 1],
           flop_of(config, (double)batch) / median / 1e9, (double)batch / median * 1e3,
           (double)(m.keep + m.stack_peak + m.work) / (1 << 30));
    if (getenv("PROFILE")) profile(c, net, ids, batch);
}

static int bench(ma_type type) {
    ma_err e = {0};
    t5_config config;
    ma_ctx *c = ma_ctx_new(device, &e);
    ma_set_type(c, type);
    t5_xxl(&config);
    t5 *net = t5_load(c, NULL, &config, 1);
    for (int64_t batch = 1; net && batch <= MOST; batch *= 2) measure(c, net, &config, batch);
    if (ma_failed(c)) printf("FAILED: %s\n", ma_ctx_err(c)->text);
    int rc = ma_failed(c);
    t5_free(net);
    ma_ctx_free(c);
    return rc;
}

int main(int argc, char **argv) {
    ma_err e = {0};
    char note[160];
    device = ma_device_open("cuda", false, note, &e);
    if (!device) {
        fprintf(stderr, "t5: %s\n", e.text);
        return 1;
    }
    int rc = argc > 1 ? 0 : bench(MA_BF16);
    for (int k = 1; k < argc; k++) rc |= bench(strcmp(argv[k], "f16") ? MA_BF16 : MA_F16);
    ma_device_close(device);
    return rc;
}
