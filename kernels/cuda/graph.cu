/* graph: descriptors are made, filled, finalised and destroyed here alone. An attribute that cuDNN refuses marks the
 * graph as bad, and a bad graph has no plan: that is how what cuDNN does not support is found out. */
#include "graph.h"

#include <cstdio>
#include <map>

namespace {

enum { ENGINES = 64 }; /* configurations asked for, at most */
enum { INNER = 1000 }; /* tensors that live inside are numbered from here on */

using cache = std::map<std::vector<int64_t>, ma_plan>;

void complain(ma_cuda *c, cudnnStatus_t status) {
    char why[160] = "";
    cudnnGetLastErrorString(why, sizeof why);
    snprintf(c->failure, sizeof c->failure, "cuDNN: %s: %.120s", cudnnGetErrorString(status), why);
}

} // namespace

cudnnDataType_t ma_dnn_type(ma_type type) {
    return type == MA_BF16 ? CUDNN_DATA_BFLOAT16 : type == MA_F16 ? CUDNN_DATA_HALF : CUDNN_DATA_FLOAT;
}

bool ma_graph_aligned(std::initializer_list<const void *> all) {
    for (const void *p : all)
        if ((uintptr_t)p % MA_GRAPH_ALIGN) return false;
    return true;
}

ma_graph::ma_graph(ma_cuda *c) : dnn((cudnnHandle_t)ma_cuda_dnn(c)), bad(!dnn), inner(INNER) {}

ma_graph::~ma_graph() {
    for (size_t i = nodes.size(); i--;) cudnnBackendDestroyDescriptor(nodes[i]);
}

ma_node ma_graph::make(cudnnBackendDescriptorType_t type) {
    ma_node node = NULL;
    if (bad || cudnnBackendCreateDescriptor(type, &node) != CUDNN_STATUS_SUCCESS) {
        bad = true;
        return NULL;
    }
    nodes.push_back(node);
    return node;
}

void ma_graph::set(ma_node node, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t n,
                   const void *value) {
    if (!bad) bad = cudnnBackendSetAttribute(node, name, type, n, value) != CUDNN_STATUS_SUCCESS;
}

void ma_graph::link(ma_node node, cudnnBackendAttributeName_t name, ma_node to) {
    set(node, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &to);
}

void ma_graph::seal(ma_node node) {
    if (!bad) bad = cudnnBackendFinalize(node) != CUDNN_STATUS_SUCCESS;
}

void ma_graph::operation(ma_node node) {
    seal(node);
    operations.push_back(node);
}

ma_node ma_graph::tensor(int64_t id, cudnnDataType_t type, const std::vector<int64_t> &n,
                         const std::vector<int64_t> &stride, int64_t align) {
    ma_node t = make(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    int64_t number = id ? id : ++inner;
    bool inside = !id;
    set(t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &number);
    set(t, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    set(t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &align);
    set(t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, (int64_t)n.size(), n.data());
    set(t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, (int64_t)stride.size(), stride.data());
    set(t, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &inside);
    seal(t);
    return t;
}

ma_node ma_graph::scalar(int64_t id, size_t nd) {
    ma_node t = make(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    std::vector<int64_t> ones(nd, 1);
    cudnnDataType_t type = CUDNN_DATA_FLOAT;
    int64_t align = sizeof(float);
    bool yes = true;
    set(t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
    set(t, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    set(t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &align);
    set(t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, (int64_t)nd, ones.data());
    set(t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, (int64_t)nd, ones.data());
    set(t, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &yes);
    seal(t);
    return t;
}

void ma_graph::convolution(cudnnBackendDescriptorType_t kind, ma_node x, ma_node w, ma_node y,
                           const std::vector<int64_t> &stride, const std::vector<int64_t> &before,
                           const std::vector<int64_t> &after) {
    struct names {
        cudnnBackendAttributeName_t window, x, w, y, alpha, beta;
    };
    static const names forward = {
        CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
        CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,         CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
        CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,     CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA};
    static const names to_data = {
        CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
        CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,         CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
        CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA};
    static const names to_filter = {
        CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
        CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,        CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
        CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA};
    const names &a = kind == CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR         ? forward
                     : kind == CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR ? to_data
                                                                                            : to_filter;
    int64_t nd = (int64_t)stride.size();
    std::vector<int64_t> ones(stride.size(), 1);
    cudnnDataType_t type = CUDNN_DATA_FLOAT;
    cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    ma_node window = make(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    set(window, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    set(window, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    set(window, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &nd);
    set(window, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, nd, before.data());
    set(window, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, nd, after.data());
    set(window, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, nd, ones.data());
    set(window, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, nd, stride.data());
    seal(window);
    float alpha = 1, beta = 0;
    ma_node op = make(kind);
    link(op, a.x, x);
    link(op, a.w, w);
    link(op, a.y, y);
    link(op, a.window, window);
    set(op, a.alpha, CUDNN_TYPE_FLOAT, 1, &alpha);
    set(op, a.beta, CUDNN_TYPE_FLOAT, 1, &beta);
    operation(op);
}

void ma_graph::matmul(ma_node a, ma_node b, ma_node c) {
    cudnnDataType_t type = CUDNN_DATA_FLOAT;
    ma_node how = make(CUDNN_BACKEND_MATMUL_DESCRIPTOR), op = make(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set(how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    seal(how);
    link(op, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    link(op, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    link(op, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
    link(op, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
    operation(op);
}

void ma_graph::pointwise(cudnnPointwiseMode_t mode, ma_node x, ma_node b, ma_node y) {
    cudnnDataType_t type = CUDNN_DATA_FLOAT;
    ma_node how = make(CUDNN_BACKEND_POINTWISE_DESCRIPTOR), op = make(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set(how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    set(how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &type);
    seal(how);
    link(op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    link(op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    if (b) link(op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    link(op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    operation(op);
}

void ma_graph::reduce(cudnnReduceTensorOp_t mode, ma_node x, ma_node y) {
    cudnnDataType_t type = CUDNN_DATA_FLOAT;
    ma_node how = make(CUDNN_BACKEND_REDUCTION_DESCRIPTOR), op = make(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set(how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &mode);
    set(how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    seal(how);
    link(op, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    link(op, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    link(op, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
    operation(op);
}

void ma_graph::reshape(ma_node x, ma_node y) {
    ma_node op = make(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    link(op, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    link(op, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y);
    operation(op);
}

/* Whether an engine with this property keeps the rules. */
static bool harmless(cudnnBackendNumericalNote_t note, bool exact) {
    switch (note) {
    case CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC:
    case CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION: return false;
    case CUDNN_NUMERICAL_NOTE_TENSOR_CORE:
    case CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS:
    case CUDNN_NUMERICAL_NOTE_FFT:
    case CUDNN_NUMERICAL_NOTE_WINOGRAD: return !exact;
    default: return true;
    }
}

bool ma_graph::allowed(ma_node config, bool exact) {
    cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    int64_t n = 0;
    ma_node engine = make(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    if (bad ||
        cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n, &engine) !=
            CUDNN_STATUS_SUCCESS ||
        cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                 CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &n, notes) != CUDNN_STATUS_SUCCESS)
        return false;
    for (int64_t i = 0; i < n; i++)
        if (!harmless(notes[i], exact)) return false;
    return true;
}

std::vector<ma_node> ma_graph::configurations(ma_node graph, cudnnBackendHeurMode_t mode) {
    std::vector<ma_node> all;
    int64_t n = 0;
    ma_node heuristics = make(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    link(heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
    set(heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    if (bad || cudnnBackendFinalize(heuristics) != CUDNN_STATUS_SUCCESS) return all;
    for (int i = 0; i < ENGINES; i++) all.push_back(make(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR));
    if (bad || cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                        ENGINES, &n, all.data()) != CUDNN_STATUS_SUCCESS)
        n = 0;
    if (n < ENGINES) all.resize((size_t)n); /* nodes still owns the rest */
    return all;
}

ma_plan ma_graph::plan_of(ma_node config) {
    ma_node plan = NULL;
    int64_t work = 0, n = 0;
    cudnnStatus_t s = cudnnBackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &plan);
    if (!s) s = cudnnBackendSetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &dnn);
    if (!s)
        s = cudnnBackendSetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                     &config);
    if (!s) s = cudnnBackendFinalize(plan);
    if (!s)
        s = cudnnBackendGetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &n, &work);
    if (!s && (size_t)work <= MA_GRAPH_WORK) return {plan, (size_t)work};
    if (plan) cudnnBackendDestroyDescriptor(plan);
    return {NULL, 0};
}

ma_plan ma_graph::finish(bool exact) {
    ma_node graph = make(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &dnn);
    set(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, (int64_t)operations.size(),
        operations.data());
    seal(graph);
    for (cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK})
        for (ma_node config : configurations(graph, mode)) {
            ma_plan p = allowed(config, exact) ? plan_of(config) : ma_plan{NULL, 0};
            if (p.plan) return p;
        }
    return {NULL, 0};
}

const ma_plan *ma_plan_of(ma_cuda *c, const std::vector<int64_t> &key, ma_plan_maker make, const void *what) {
    if (!c->dnn_plans) c->dnn_plans = new cache;
    cache &plans = *(cache *)c->dnn_plans;
    auto at = plans.find(key);
    if (at == plans.end()) at = plans.emplace(key, make(c, what)).first;
    return at->second.plan ? &at->second : NULL;
}

int ma_plan_run(ma_cuda *c, const ma_plan *plan, std::initializer_list<ma_bind> binds, void *work) {
    std::vector<int64_t> ids;
    std::vector<const void *> data;
    for (const ma_bind &b : binds) {
        ids.push_back(b.id);
        data.push_back(b.data);
    }
    ma_node pack = NULL;
    int64_t n = (int64_t)ids.size();
    cudnnStatus_t s = cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
    if (!s) s = cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, n, ids.data());
    if (!s)
        s = cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, n, data.data());
    if (!s) s = cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &work);
    if (!s) s = cudnnBackendFinalize(pack);
    if (!s) s = cudnnBackendExecute((cudnnHandle_t)ma_cuda_dnn(c), plan->plan, pack);
    if (s) complain(c, s);
    if (pack) cudnnBackendDestroyDescriptor(pack);
    return s ? -1 : 0;
}

void ma_cuda_free_plans(ma_cuda *c) {
    cache *plans = (cache *)c->dnn_plans;
    if (!plans) return;
    for (auto &p : *plans)
        if (p.second.plan) cudnnBackendDestroyDescriptor(p.second.plan);
    delete plans;
    c->dnn_plans = NULL;
}
