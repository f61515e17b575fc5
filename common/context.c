/* context: see context.h. A dtype that the device lacks is refused, not replaced: results depend on it. auto is bf16
 * where there is bf16, else f32. */
#include "context.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What -d says, or else MA_DEVICE: "cuda:2", or "auto:2", for the process that is number 2 on this host, where that
 * leaves it open which GPU. A scheduler may show each process fewer GPUs than the host has. */
static const char *own_device(const ma_cli *cli, char room[32]) {
    const char *wish = getenv("MA_DEVICE");
    const char *name = ma_cli_given(cli, "device") || !wish || !*wish ? cli->common.device : wish;
    const char *shown = getenv("CUDA_VISIBLE_DEVICES");
    int count = shown && *shown ? 1 : 0;
    for (; shown && *shown; shown++) count += *shown == ',';
    if (cli->ranks < 2 || (strcmp(name, "cuda") && strcmp(name, "auto"))) return name;
    snprintf(room, 32, "%s:%d", name, count ? cli->local % count : cli->local);
    return room;
}

int ma_context_open(const ma_cli *cli, ma_device **dev, ma_ctx **c, ma_err *e) {
    enum { BF16 = 2, F16 = 3, TF32 = 4 }; /* of --dtype */
    static const char *const names[] = {"auto", "f32", "bf16", "f16", "tf32"};
    int asked = cli->common.dtype;
    char note[160] = "", room[32];
    if (!(*dev = ma_device_open(own_device(cli, room), cli->common.dry_run, note, e))) return -1;
    if (*note) ma_say(cli, 1, "%s", note);
    if (cli->common.memory) ma_device_limit(*dev, (size_t)cli->common.memory);
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

ma_device *ma_context_plan(const ma_cli *cli, ma_device *dev, ma_err *e) {
    char note[160], room[32];
    if (dev->plan) return dev;
    return ma_device_open(strcmp(dev->name, "cpu") ? own_device(cli, room) : dev->name, true, note, e);
}

char *ma_memory_text(char *out, const ma_ctx *c) {
    const ma_memory m = ma_ctx_memory(c);
    const size_t there = ma_ctx_device((ma_ctx *)c)->free_bytes;
    const double mb = 1e6;
    char of[32] = "", host[32] = "";
    if (m.host) snprintf(host, sizeof host, ", the host's %.1f", (double)m.host / mb);
    if (there) snprintf(of, sizeof of, " of %.1f", (double)there / mb);
    snprintf(out, 160,
             "parameters %.1f, gradients %.1f, optimiser %.1f, activations %.1f, workspace %.1f, in all %.1f%s MB%s",
             (double)m.keep / mb, (double)m.keep_grad / mb, (double)m.optimiser / mb,
             (double)(m.stack_peak + m.pool) / mb, (double)m.work / mb, (double)m.in_all / mb, of, host);
    return out;
}
