/* graph: cuDNN's graph interface in few words. A graph is described (tensors, operations), cuDNN's heuristics name
 * engines for it, the first that we may use becomes a plan; plans are kept with the device, by a key of all that they
 * depend on. For conv.cu and attention.cu.
 *
 * The choice follows from the shapes, the card and cuDNN's version; nothing is timed, so that a run repeated computes
 * the same bits.
 *
 * Traps: an engine may be named and yet not be able to run: only the finished plan tells. Passed over are engines that
 * say that they do not give the same bits every time, those that add in less than fp32, and for plain fp32 those on the
 * tensor cores (tf32) and those by transforms.
 */
#ifndef MA_CUDA_GRAPH_H
#define MA_CUDA_GRAPH_H

#include "cuda.h"

#include <cudnn.h>
#include <initializer_list>
#include <vector>

enum { MA_GRAPH_ALIGN = 16 };                     /* bytes; addresses aligned to less must not go into a plan */
constexpr size_t MA_GRAPH_WORK = (size_t)13 << 28; /* 3.25 GiB: engines that need more scratch are passed over */

typedef cudnnBackendDescriptor_t ma_node;

typedef struct ma_plan {
    ma_node plan; /* NULL: there is none */
    size_t work;  /* bytes that it needs while it runs */
} ma_plan;

/* An address under the number that its tensor has in the graph. */
typedef struct ma_bind {
    int64_t id;
    const void *data; /* of a scalar: on the host */
} ma_bind;

class ma_graph {
  public:
    explicit ma_graph(ma_cuda *device);
    ~ma_graph();
    ma_graph(const ma_graph &) = delete;
    ma_graph &operator=(const ma_graph &) = delete;

    /* id > 0: its address is bound when the plan runs; 0: lives inside the plan only. Strides in elements. */
    ma_node tensor(int64_t id, cudnnDataType_t, const std::vector<int64_t> &n, const std::vector<int64_t> &stride,
                   int64_t align = MA_GRAPH_ALIGN);
    ma_node scalar(int64_t id, size_t nd); /* f32, bound to an address on the host; for tensors of nd dimensions */

    /* One of CUDNN_BACKEND_OPERATION_CONVOLUTION_{FORWARD,BACKWARD_DATA,BACKWARD_FILTER}_DESCRIPTOR; x is always the
     * side that the window slides over, y the other; which of the three is written follows from the operation. */
    void convolution(cudnnBackendDescriptorType_t, ma_node x, ma_node w, ma_node y, const std::vector<int64_t> &stride,
                     const std::vector<int64_t> &before, const std::vector<int64_t> &after);
    void matmul(ma_node a, ma_node b, ma_node c);
    void pointwise(cudnnPointwiseMode_t, ma_node x, ma_node b, ma_node y); /* b NULL: of one argument */
    void reduce(cudnnReduceTensorOp_t, ma_node x, ma_node y);
    void reshape(ma_node x, ma_node y);

    /* The first plan that heuristics name and the rules above let pass. exact: fp32 products in fp32. */
    ma_plan finish(bool exact);

  private:
    ma_node make(cudnnBackendDescriptorType_t);
    void set(ma_node, cudnnBackendAttributeName_t, cudnnBackendAttributeType_t, int64_t n, const void *);
    void link(ma_node, cudnnBackendAttributeName_t, ma_node);
    void seal(ma_node);
    void operation(ma_node);
    std::vector<ma_node> configurations(ma_node graph, cudnnBackendHeurMode_t);
    bool allowed(ma_node config, bool exact);
    ma_plan plan_of(ma_node config);

    cudnnHandle_t dnn;
    bool bad;      /* something failed: there will be no plan */
    int64_t inner; /* the last number given to a tensor that lives inside */
    std::vector<ma_node> nodes, operations;
};

/* The plan of this key, or NULL. make describes a graph and finishes it; it is called when the key is new. */
typedef ma_plan (*ma_plan_maker)(ma_cuda *, const void *what);
const ma_plan *ma_plan_of(ma_cuda *, const std::vector<int64_t> &key, ma_plan_maker, const void *what);
/* Runs it on the stream. 0, or -1 with the words in ->failure. */
int ma_plan_run(ma_cuda *, const ma_plan *, std::initializer_list<ma_bind>, void *work);
void ma_cuda_free_plans(ma_cuda *); /* when the device closes */

cudnnDataType_t ma_dnn_type(ma_type); /* f32, bf16, f16 */

/* Whether all addresses may go into a plan. */
bool ma_graph_aligned(std::initializer_list<const void *>);

#endif
