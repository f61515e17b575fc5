/* gemm: see gemm.h.
 *
 * cuBLASLt's matrices are column-major, so a row-major c = a·b is asked for as cᵀ = bᵀ·aᵀ: our b is its A, our a its B,
 * and a row-major matrix as it stands is the column-major transpose. Our bias, one a column, is its bias, one a row.
 *
 * Traps: its heuristics assume addresses on 256 bytes unless told, read the addresses of bias and pre from the
 * descriptor, and may offer split sums that are added in place by whoever comes first: only those that pass through the
 * workspace, in fp32 and in order, are allowed. An empty answer is kept too, so that it is asked for once.
 */
#include "gemm.h"

#include <cublasLt.h>

#include <cstdio>
#include <cstring>
#include <map>

namespace {

/* All that the choice depends on. Compared byte by byte: made from zeros. */
struct key {
    int64_t batch, m, n, k;
    int32_t ta, tb, in, out, act, tf32;
    int32_t align[5]; /* of a, b, c, bias (0: none), pre (0: none) */
    int32_t unused;
};

struct by_bytes {
    bool operator()(const key &x, const key &y) const {
        return memcmp(&x, &y, sizeof x) < 0;
    }
};

struct plan {
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t a, b, c; /* of our a, b and c */
    cublasLtMatmulAlgo_t algo;
    bool usable;
};

using cache = std::map<key, plan, by_bytes>;

/* The largest power of two, up to 256, that the address is a multiple of. */
int32_t alignment(const void *p) {
    if (!p) return 0;
    uintptr_t at = (uintptr_t)p | 256;
    return (int32_t)(at & (~at + 1));
}

key key_of(const ma_cuda *c, const ma_gemm *g) {
    key k;
    memset(&k, 0, sizeof k);
    k.batch = g->batch, k.m = g->m, k.n = g->n, k.k = g->k;
    k.ta = g->ta, k.tb = g->tb, k.in = g->in, k.out = g->out, k.act = g->act;
    k.tf32 = g->in == MA_F32 && c->tf32;
    const void *at[] = {g->a, g->b, g->c, g->bias, g->pre};
    for (int i = 0; i < 5; i++) k.align[i] = alignment(at[i]);
    return k;
}

/* -1 and the words, unless status is good. */
int check(ma_cuda *c, cublasStatus_t status, const char *where) {
    if (status == CUBLAS_STATUS_SUCCESS) return 0;
    snprintf(c->failure, sizeof c->failure, "cuBLASLt: %s: %s", where, cublasLtGetStatusString(status));
    return -1;
}

cudaDataType_t data_type(int32_t type) {
    return type == MA_BF16 ? CUDA_R_16BF : type == MA_F16 ? CUDA_R_16F : CUDA_R_32F;
}

cublasLtEpilogue_t epilogue_of(const key &k) {
    bool bias = k.align[3], pre = k.align[4];
    switch (k.act) {
    case MA_RELU: return bias ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_RELU;
    case MA_GELU_TANH:
        if (pre) return bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
        return bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
    default: return bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    }
}

template <class T> bool set(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t what, T value) {
    return cublasLtMatmulDescSetAttribute(d, what, &value, sizeof value) == CUBLAS_STATUS_SUCCESS;
}

template <class T> bool prefer(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t what, T value) {
    return cublasLtMatmulPreferenceSetAttribute(p, what, &value, sizeof value) == CUBLAS_STATUS_SUCCESS;
}

/* Addresses that the descriptor holds: told before the choice, and before each run. */
bool point(const plan &p, const ma_gemm *g) {
    return (!g->bias || set(p.product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g->bias)) &&
           (!g->pre || set(p.product, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, (const void *)g->pre));
}

bool describe_product(plan &p, const key &k) {
    cublasComputeType_t compute = k.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    if (cublasLtMatmulDescCreate(&p.product, compute, CUDA_R_32F) != CUBLAS_STATUS_SUCCESS) return false;
    return set(p.product, CUBLASLT_MATMUL_DESC_TRANSA, k.tb ? CUBLAS_OP_T : CUBLAS_OP_N) &&
           set(p.product, CUBLASLT_MATMUL_DESC_TRANSB, k.ta ? CUBLAS_OP_T : CUBLAS_OP_N) &&
           set(p.product, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue_of(k)) &&
           (!k.align[3] || set(p.product, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, data_type(k.out))) &&
           (!k.align[4] || set(p.product, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, k.n));
}

/* A row-major matrix, as the column-major transpose. */
bool describe_matrix(cublasLtMatrixLayout_t *l, int32_t type, int64_t rows, int64_t columns, int64_t batch) {
    int32_t count = (int32_t)batch;
    int64_t stride = rows * columns;
    return cublasLtMatrixLayoutCreate(l, data_type(type), (uint64_t)columns, (uint64_t)rows, columns) ==
               CUBLAS_STATUS_SUCCESS &&
           cublasLtMatrixLayoutSetAttribute(*l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count) ==
               CUBLAS_STATUS_SUCCESS &&
           cublasLtMatrixLayoutSetAttribute(*l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride) ==
               CUBLAS_STATUS_SUCCESS;
}

/* The first answer of the heuristics that keeps to the workspace. */
bool choose(ma_cuda *c, plan &p, const key &k, cublasLtMatmulPreference_t wish) {
    enum { ASKED = 8 };
    cublasLtMatmulHeuristicResult_t found[ASKED];
    int n = 0;
    bool good =
        prefer(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (uint64_t)MA_GEMM_WORK) &&
        prefer(wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, (uint32_t)CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE) &&
        prefer(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)k.align[1]) &&
        prefer(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)k.align[0]) &&
        prefer(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)k.align[2]) &&
        prefer(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)k.align[2]);
    if (!good || check(c,
                       cublasLtMatmulAlgoGetHeuristic((cublasLtHandle_t)c->blas, p.product, p.b, p.a, p.c, p.c, wish,
                                                      ASKED, found, &n),
                       "choosing an algorithm"))
        return false;
    for (int i = 0; i < n; i++)
        if (found[i].state == CUBLAS_STATUS_SUCCESS && found[i].workspaceSize <= MA_GEMM_WORK) {
            p.algo = found[i].algo;
            return true;
        }
    return false;
}

plan make(ma_cuda *c, const ma_gemm *g, const key &k) {
    plan p;
    memset(&p, 0, sizeof p);
    cublasLtMatmulPreference_t wish = NULL;
    p.usable = g->batch <= INT32_MAX && describe_product(p, k) &&
               describe_matrix(&p.a, k.in, k.ta ? k.k : k.m, k.ta ? k.m : k.k, k.batch) &&
               describe_matrix(&p.b, k.in, k.tb ? k.n : k.k, k.tb ? k.k : k.n, k.batch) &&
               describe_matrix(&p.c, k.out, k.m, k.n, k.batch) && point(p, g) &&
               cublasLtMatmulPreferenceCreate(&wish) == CUBLAS_STATUS_SUCCESS && choose(c, p, k, wish);
    if (wish) cublasLtMatmulPreferenceDestroy(wish);
    return p;
}

const plan &plan_of(ma_cuda *c, const ma_gemm *g) {
    if (!c->blas_plans) c->blas_plans = new cache;
    cache &plans = *(cache *)c->blas_plans;
    key k = key_of(c, g);
    auto at = plans.find(k);
    if (at == plans.end()) at = plans.emplace(k, make(c, g, k)).first;
    return at->second;
}

} // namespace

int ma_cuda_gemm(ma_cuda *c, const ma_gemm *g, void *work) {
    cublasLtHandle_t blas = (cublasLtHandle_t)ma_cuda_blas(c);
    if (!blas) return -1;
    const plan &p = plan_of(c, g);
    if (!p.usable || !point(p, g)) {
        snprintf(c->failure, sizeof c->failure, "cuBLASLt: nothing for a product of %lldx%lldx%lld in %s",
                 (long long)g->m, (long long)g->n, (long long)g->k, ma_type_name(g->in));
        return -1;
    }
    float beta = g->add ? 1 : 0;
    return check(c,
                 cublasLtMatmul(blas, p.product, &g->alpha, g->b, p.b, g->a, p.a, &beta, g->c, p.c, g->c, p.c, &p.algo,
                                work, MA_GEMM_WORK, c->stream),
                 "a product");
}

void ma_cuda_gemm_close(ma_cuda *c) {
    cache *plans = (cache *)c->blas_plans;
    if (!plans) return;
    for (auto &at : *plans) {
        plan &p = at.second;
        if (p.product) cublasLtMatmulDescDestroy(p.product);
        for (cublasLtMatrixLayout_t l : {p.a, p.b, p.c})
            if (l) cublasLtMatrixLayoutDestroy(l);
    }
    delete plans;
    c->blas_plans = NULL;
}
