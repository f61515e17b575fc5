/* context: see context.h. A dtype that the device lacks is refused, not replaced: results depend on it. auto is bf16
 * where there is bf16, else f32. */
#include "context.h"

#include <stdio.h>
#include <stdlib.h>

int ma_context_open(const ma_cli *cli, ma_device **dev, ma_ctx **c, ma_err *e) {
    enum { BF16 = 2, F16 = 3, TF32 = 4 }; /* of --dtype */
    static const char *const names[] = {"auto", "f32", "bf16", "f16", "tf32"};
    int asked = cli->common.dtype;
    char note[160] = "";
    const char *wish = getenv("MA_DEVICE");
    const char *name = ma_cli_given(cli, "device") || !wish || !*wish ? cli->common.device : wish;
    if (!(*dev = ma_device_open(name, cli->common.dry_run, note, e))) return -1;
    if (*note) ma_say(cli, 1, "%s", note);
    ma_type type = asked == BF16 ? MA_BF16 : asked == F16 ? MA_F16 : MA_F32;
    if (!asked && (*dev)->types[MA_BF16]) type = MA_BF16;
    if (asked == TF32 && (*dev)->tf32)
        (*dev)->tf32(*dev, true);
    else if (!(*dev)->types[type] || asked == TF32)
        return ma_fail(e, MA_USAGE, "--dtype %s: %s does not compute in it", names[asked], (*dev)->name);
    if (!(*c = ma_ctx_new(*dev, e))) return -1;
    ma_set_type(*c, type);
    return 0;
}

char *ma_memory_text(char *out, const ma_ctx *c) {
    ma_memory m = ma_ctx_memory(c);
    snprintf(out, 160, "parameters %.1f MB, activations %.1f MB, workspace %.1f MB", (double)m.keep / 1e6,
             (double)m.stack_peak / 1e6, (double)m.work / 1e6);
    return out;
}
