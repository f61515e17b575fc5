/* embed: rows of a table by number. Forward only. A number that is no row's takes the nearest; NaN takes the first. */
#include "cpu.h"

#include <string.h>

int ma_cpu_embed_fwd(const ma_call *call) {
    const ma_tensor *table = call->in[0], *at = call->in[1];
    const float *row = table->data, *which = at->data;
    float *out = call->out->data;
    int64_t width = table->n[1], last = table->n[0] - 1;
    for (int64_t k = 0; k < ma_count(at); k++) {
        int64_t r = !(which[k] > 0) ? 0 : which[k] < (float)last ? (int64_t)which[k] : last;
        memcpy(out + k * width, row + r * width, (size_t)width * sizeof *out);
    }
    return 0;
}
