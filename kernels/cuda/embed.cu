/* embed: rows of a table by number. Forward only. A number that is no row's takes the nearest; NaN takes the first. */
#include "pack.cuh"

using namespace packs;

namespace {

struct rows_of {
    array table, which, out;
    int64_t width, last;
    template <int N> __device__ void at(int64_t row, int64_t column) const {
        float w = load_one(which, row);
        int64_t r = !(w > 0) ? 0 : w < (float)last ? (int64_t)w : last;
        store<N>(out, row * width + column, load<N>(table, r * width + column));
    }
};

} // namespace

int ma_cuda_embed_fwd(const ma_call *call) {
    const ma_tensor *table = call->in[0]; // (V, D)
    int64_t width = table->n[1];
    rows_of f = {data_of(table), data_of(call->in[1]), data_of(call->out), width, table->n[0] - 1};
    return run_plane((ma_cuda *)call->stream, "embed", f, ma_count(call->in[1]), width, grain(width, {f.table, f.out}));
}
