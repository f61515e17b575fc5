/* cpu: the kernels of the CPU. Tensors are f32, on the host; see op.h for what a kernel sees and ops.h for the meaning
 * and the attributes of each op.
 *
 * The rules of the house: backward adds. The result's bits do not depend on the number of threads: work is cut by
 * sizes, never by thread, and sums over what was cut are made in the order of the cuts. A kernel returns 0, or -1 for
 * what it does not take.
 */
#ifndef MA_CPU_H
#define MA_CPU_H

#include "../../common/op.h"

/* The device. One for all; plan: one that only counts. Nothing to free. */
ma_device *ma_cpu_device(bool plan);

#define MA_CPU_FWD(UPPER, lower) int ma_cpu_##lower##_fwd(const ma_call *);
#define MA_CPU_BWD(UPPER, lower) int ma_cpu_##lower##_bwd(const ma_call *);
MA_OPS(MA_CPU_FWD)
MA_OPS_BACKWARD(MA_CPU_BWD)
#undef MA_CPU_FWD
#undef MA_CPU_BWD

/* Scratch bytes that call->work must hold, from shapes alone. The ops that are not here need none. */
size_t ma_cpu_linear_work(const ma_call *, bool backward);
size_t ma_cpu_conv_work(const ma_call *, bool backward);
size_t ma_cpu_conv_transpose_work(const ma_call *, bool backward);
size_t ma_cpu_attention_work(const ma_call *, bool backward);
size_t ma_cpu_layer_norm_work(const ma_call *, bool backward);
size_t ma_cpu_modulate_work(const ma_call *, bool backward);
size_t ma_cpu_gate_work(const ma_call *, bool backward);
size_t ma_cpu_group_norm_work(const ma_call *, bool backward);
size_t ma_cpu_moments_work(const ma_call *, bool backward);
size_t ma_cpu_causal_norm_work(const ma_call *, bool backward);
size_t ma_cpu_relation_work(const ma_call *, bool backward);
size_t ma_cpu_cosine_work(const ma_call *, bool backward);

/* The gradient to add to, or NULL where none is wanted (or there is no such input). */
static inline float *ma_cpu_grad(const ma_tensor *t) {
    return t && t->want ? t->grad->data : NULL;
}

/* Σ over 0..n-1 of what part sums over from..to-1: parts on all threads, cut by n alone, added in order. */
typedef double (*ma_cpu_part)(const void *self, int64_t from, int64_t to);
double ma_cpu_sum(ma_cpu_part, const void *self, int64_t n);

#endif
