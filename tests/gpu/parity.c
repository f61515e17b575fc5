/* parity: every op on the GPU against the CPU, on the odd shapes of tests/op and a few large ones, forward and backward,
 * in fp32, bf16 and fp16; and the same bits when it is run again.
 *
 * parity [small]
 * Tolerances are relative norms: 1e-5 in fp32 (sums in another order); in 16 bits what rounding inputs and outputs once
 * costs: 2^-8 for bf16, 2^-11 for fp16, with room for an intermediate that is rounded too, and twice that where there are
 * so few numbers that their roundings do not average. The CPU works on the same rounded inputs.
 */
#include "../op/cases.h"

static const struct {
    ma_type type;
    double limit;
} kinds[] = {{MA_F32, 1e-5}, {MA_BF16, 1e-2}, {MA_F16, 2e-3}};

/* What the GPU will see of the inputs. */
static void round_inputs(const op_case *k, trial *t, ma_type type) {
    for (int j = 0; j < INPUTS; j++) {
        int64_t n = elements(k->in[j]);
        uint16_t half;
        for (int64_t e = 0; e < n && type != MA_F32 && !(k->fixed >> j & 1); e++) {
            ma_from_f32(&half, &t->in[j][e], type, 1);
            ma_to_f32(&t->in[j][e], &half, type, 1);
        }
    }
}

static trial run_on(const op_case *k, ma_device *dev, ma_type type, ma_type rounded, ma_err *e) {
    trial t = trial_new(k);
    ma_ctx *c = ma_ctx_new(dev, e);
    round_inputs(k, &t, rounded);
    ma_set_type(c, type);
    if (trial_run(k, c, dev->bwd[k->op] ? all_wanted(k) : 0, 0, &t)) *e = *ma_ctx_err(c);
    ma_ctx_free(c);
    return t;
}

static bool same(const op_case *k, const trial *a, const trial *b) {
    bool good = a->out && b->out && !memcmp(a->out, b->out, (size_t)a->count * sizeof *a->out);
    for (int j = 0; j < INPUTS && good; j++)
        good = !wants(k, j) || !memcmp(a->grad[j], b->grad[j], (size_t)elements(k->in[j]) * sizeof(float));
    return good;
}

static double limit_of(int kind, int64_t numbers) {
    return kinds[kind].limit * (kinds[kind].type != MA_F32 && numbers < 16 ? 2 : 1);
}

static void check(const op_case *k, ma_device *cpu, ma_device *gpu, int kind) {
    const ma_type type = kinds[kind].type;
    ma_err e = {0}, none = {0};
    trial want = run_on(k, cpu, MA_F32, type, &none), got = run_on(k, gpu, type, type, &e), again = {0};
    const char *name = ma_type_name(type);
    if (ok(e.reason == MA_OK && got.out, "%s: %s: runs %s", name, k->name, e.text)) {
        double error = rel_error(got.out, want.out, (size_t)want.count);
        ok(error <= limit_of(kind, want.count), "%s: %s: out %.1e", name, k->name, error);
        for (int j = 0; j < INPUTS && gpu->bwd[k->op]; j++) {
            if (!wants(k, j)) continue;
            error = rel_error(got.grad[j], want.grad[j], (size_t)elements(k->in[j]));
            ok(error <= limit_of(kind, elements(k->in[j])), "%s: %s: gradient %d %.1e", name, k->name, j, error);
        }
        again = run_on(k, gpu, type, type, &e);
        ok(same(k, &got, &again), "%s: %s: again the same bits", name, k->name);
    }
    trial_free(&want);
    trial_free(&got);
    trial_free(&again);
}

/* Shapes as the networks have them, where the fast paths are. */
static const op_case large[] = {
    {"linear, 512x1920x7680, gelu_tanh", .op = MA_OP_LINEAR, .run = run_linear, .in = {{512, 1920}, {7680, 1920}, {7680}},
     .i = {MA_GELU_TANH}},
    {"linear, 777x768x2304", .op = MA_OP_LINEAR, .run = run_linear, .in = {{777, 768}, {2304, 768}, {2304}}},
    {"attention, 1x520x6x64", .op = MA_OP_ATTENTION, .run = run_attention,
     .in = {{1, 520, 6, 64}, {1, 520, 6, 64}, {1, 520, 6, 64}}, .f = {0.125}},
    {"attention, 2x1568x12x64", .op = MA_OP_ATTENTION, .run = run_attention,
     .in = {{2, 1568, 12, 64}, {2, 1568, 12, 64}, {2, 1568, 12, 64}}, .f = {0.125}},
    {"layer_norm over heads", .op = MA_OP_LAYER_NORM, .run = run_layer_norm, .in = {{2, 300, 30, 64}, {64}, {64}}, .f = {1e-6}},
    {"modulate, 2x700x1920", .op = MA_OP_MODULATE, .run = run_modulate, .in = {{2, 700, 1920}, {1920}, {1920}, {2, 6, 1920}},
     .i = {226, 0, 1, 3, 4}, .f = {1e-5}},
    {"gate, 2x700x1920", .op = MA_OP_GATE, .run = run_gate, .in = {{2, 700, 1920}, {2, 700, 1920}, {2, 6, 1920}}, .i = {226, 2, 5}},
    {"conv, 3x3x3, 64 to 128", .op = MA_OP_CONV, .run = run_conv, .in = {{1, 5, 30, 44, 64}, {128, 3, 3, 3, 64}, {128}},
     .i = {1, 1, 1, 1, 1, 1}},
    {"conv, 7x7 of 3 channels, stride 2", .op = MA_OP_CONV, .run = run_conv, .in = {{2, 1, 64, 96, 3}, {64, 1, 7, 7, 3}, {64}},
     .i = {1, 2, 2, 0, 3, 3}, .f = {MA_RELU}},
    {"conv, 1x5", .op = MA_OP_CONV, .run = run_conv, .in = {{2, 1, 20, 30, 384}, {128, 1, 1, 5, 384}, {128}}, .i = {1, 1, 1, 0, 0, 2}},
    {"conv, 3x1x1, silu", .op = MA_OP_CONV, .run = run_conv, .in = {{2, 24, 10, 15, 768}, {256, 3, 1, 1, 768}, {256}},
     .i = {1, 1, 1, 1, 0, 0}, .f = {MA_SILU}},
    {"conv_transpose, x2", .op = MA_OP_CONV_TRANSPOSE, .run = run_conv_transpose,
     .in = {{2, 23, 10, 15, 64}, {64, 1, 4, 4, 64}, {64}}, .i = {1, 2, 2, 0, 1, 1}, .f = {MA_SILU}},
    {"patch embedding", .op = MA_OP_CONV, .run = run_conv, .in = {{2, 4, 64, 96, 3}, {768, 2, 16, 16, 3}, {768}},
     .i = {2, 16, 16, 0, 0, 0}},
    {"patches of odd length", .op = MA_OP_CONV, .run = run_conv, .in = {{2, 4, 6, 10, 3}, {5, 2, 3, 2, 3}, {5}}, .i = {2, 3, 2, 0, 0, 0}},
    {"instance norm, relu", .op = MA_OP_GROUP_NORM, .run = run_group_norm, .in = {{2, 1, 60, 90, 96}}, .i = {96, MA_RELU}, .f = {1e-5}},
    {"relation, 24 frames of 150", .op = MA_OP_RELATION, .run = run_relation, .in = {{1, 24, 150, 64}, {1, 24, 150, 64}, {24}},
     .fixed = 6, .f = {0.05}},
    {"matmul, 1x2400x2400x256", .op = MA_OP_MATMUL, .run = run_matmul, .in = {{1, 2400, 256}, {1, 2400, 256}}, .f = {0.0625}},
};

int main(int argc, char **argv) {
    const bool small = argc > 1 && !strcmp(argv[1], "small"); /* under compute-sanitizer: fp32 on odd shapes, our own kernels nearly all */
    ma_err e = {0};
    char note[160];
    ma_device *cpu = ma_device_open("cpu", false, note, &e), *gpu = ma_device_open("cuda", false, note, &e);
    if (!gpu) {
        ok(false, "%s", e.text);
        return tap_done();
    }
    for (int kind = 0; kind < (small ? 1 : 3); kind++) {
        for (int k = 0; k < CASES; k++) check(&cases[k], cpu, gpu, kind);
        for (size_t k = 0; k < (small ? 0 : sizeof large / sizeof *large); k++) check(&large[k], cpu, gpu, kind);
    }
    ma_device_close(gpu);
    return tap_done();
}
