/* cuda: what the bodies in kernels/cuda share. They are one shared object, libma-cuda.so, whose only export is
 * ma_cuda_device; the op table is the CPU's, column for column (kernels/cpu/cpu.h), and the rules are the same: backward
 * adds, or sets where the call says fresh, a run repeated gives the same bits (no atomics in what ends in a gradient), 0
 * or -1 for what is not supported.
 *
 * Types: activations and parameters f32, bf16 or f16, one type a context; norms, softmax, losses, sums in fp32; leaves'
 * gradients are f32, gradients of activations have the activation's type. call->stream is the ma_cuda.
 */
#ifndef MA_CUDA_H
#define MA_CUDA_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "../../common/op.h" /* the library holds base.c and tensor.c, which are C */

/* One device. Handles are made when first needed (a tool that only copies loads no cuDNN). */
typedef struct ma_cuda {
    ma_device device;      /* first: a ma_device * is a ma_cuda * */
    int index;
    bool tf32;             /* fp32 products on the tensor cores, rounded to tf32 */
    cudaStream_t stream;
    void *blas, *dnn;      /* cublasLtHandle_t, cudnnHandle_t */
    void *blas_plans, *dnn_plans; /* caches of gemm.cu and graph.cu */
    void *team;            /* nccl.cu's; NULL where one GPU works alone */
    void *staging;         /* pinned */
    size_t staging_bytes;
    char failure[256];     /* the last CUDA, cuBLAS or cuDNN error, in words */
} ma_cuda;

/* True where it failed; the words stand in ->failure, after "where: ". */
bool ma_cuda_bad(ma_cuda *, cudaError_t, const char *where);
/* After a launch: 0, or -1. */
int ma_cuda_launched(const ma_call *);
void *ma_cuda_blas(ma_cuda *);  /* cublasLtHandle_t, or NULL */
void *ma_cuda_dnn(ma_cuda *);   /* cudnnHandle_t on our stream, or NULL */

const ma_team_ops *ma_cuda_team(void); /* NULL: built without NCCL */
void ma_cuda_team_close(ma_cuda *);

#define MA_CUDA_KERNEL(UPPER, lower)                                                                                   \
    int ma_cuda_##lower##_fwd(const ma_call *);                                                                        \
    int ma_cuda_##lower##_bwd(const ma_call *);
MA_OPS(MA_CUDA_KERNEL)
#undef MA_CUDA_KERNEL

/* Scratch bytes in call->work, from shapes alone (also in a plan, on a machine without a GPU). */
size_t ma_cuda_linear_work(ma_cuda *, const ma_call *, bool backward);
size_t ma_cuda_linear_add_work(ma_cuda *, const ma_call *, bool backward);
size_t ma_cuda_matmul_work(ma_cuda *, const ma_call *, bool backward);
size_t ma_cuda_conv_work(ma_cuda *, const ma_call *, bool backward);
size_t ma_cuda_conv_transpose_work(ma_cuda *, const ma_call *, bool backward);
size_t ma_cuda_attention_work(ma_cuda *, const ma_call *, bool backward);
size_t ma_cuda_layer_norm_work(ma_cuda *, const ma_call *, bool backward);
size_t ma_cuda_modulate_work(ma_cuda *, const ma_call *, bool backward);
size_t ma_cuda_gate_work(ma_cuda *, const ma_call *, bool backward);
size_t ma_cuda_group_norm_work(ma_cuda *, const ma_call *, bool backward);
size_t ma_cuda_moments_work(ma_cuda *, const ma_call *, bool backward);
size_t ma_cuda_reduce_work(ma_cuda *, const ma_call *, bool backward);    /* add, mul, l1, mse */
size_t ma_cuda_relation_work(ma_cuda *, const ma_call *, bool backward);
size_t ma_cuda_cosine_work(ma_cuda *, const ma_call *, bool backward);

/* attention on Hopper's tensor cores (attention_sm90_fwd.cu, attention_sm90_bwd.cu): whether it takes such a call on this
 * card, the scratch bytes that it needs backwards (forward: none), and the passes. These only where it does, with
 * addresses on 16 bytes: 0, or -1 with ->failure. */
bool ma_cuda_attention_sm90(ma_cuda *, const ma_call *);
size_t ma_cuda_attention_sm90_work(const ma_call *);
int ma_cuda_attention_sm90_fwd(const ma_call *);
int ma_cuda_attention_sm90_bwd(const ma_call *);

/* Pieces that several files use. All on ->stream. */

/* Column sums of dy (rows, n), to db (n, f32): = or +=, in a fixed order; work holds ma_cuda_columns_work bytes. */
size_t ma_cuda_columns_work(int64_t rows, int64_t n);
int ma_cuda_columns(ma_cuda *, const void *dy, ma_type, int64_t rows, int64_t n, float *db, bool add, void *work);
/* dpre = act'(…)·dout: from pre for silu, gelu, gelu_tanh; from out for relu, sigmoid, tanh. Types all alike. */
int ma_cuda_act_grad(ma_cuda *, ma_act, ma_type, const void *pre, const void *out, const void *dout, void *dpre,
                     int64_t n);
/* out = act(pre + bias[i mod columns]) where bias is not NULL; pre is kept where keep is not NULL. In place is fine. */
int ma_cuda_bias_act(ma_cuda *, ma_act, ma_type, const void *x, const void *bias, void *keep, void *out, int64_t rows,
                     int64_t columns);
/* dst (to) = or += src (from), n elements. */
int ma_cuda_cast_add(ma_cuda *, void *dst, ma_type to, const void *src, ma_type from, int64_t n, bool add);

#ifdef __cplusplus
}

/* ---- for the bodies, C++ ---- */

/* Any storage type as fp32 and back. */
template <class T> __device__ inline float ma_up(T x) { return (float)x; }
template <class T> __device__ inline T ma_down(float x) { return (T)x; }

/* Calls f.template operator()<T>() with the C++ type of a ma_type; -1 for types that there are no kernels for. */
template <class F> inline int ma_dispatch(ma_type type, F f) {
    switch (type) {
    case MA_F32: return f(float{});
    case MA_BF16: return f(__nv_bfloat16{});
    case MA_F16: return f(__half{});
    default: return -1;
    }
}
#endif
#endif
