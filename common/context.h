/* context: a device and a context as the command line asks for them, and what they took. */
#ifndef MA_CONTEXT_H
#define MA_CONTEXT_H

#include "cli.h"
#include "tensor.h"

/* Device and context as --device, --dtype and --dry-run ask for. A dtype that the device lacks is MA_USAGE.
 * Closed with ma_ctx_free, ma_device_close. */
int ma_context_open(const ma_cli *, ma_device **, ma_ctx **, ma_err *);
/* A plan of the same device, to ask what something would take; the device itself where it is one. Given back with
 * ma_device_close, unless it is the device. NULL: e says why. */
ma_device *ma_context_plan(const ma_cli *, ma_device *, ma_err *);
/* "parameters 345.1, gradients 690.2, optimiser 1380.4, activations 96.0, workspace 12.5, in all 2674.1 of 85000.0 MB",
 * and ", the host's 4141.2" where the optimiser has some of that: the peaks; the last of what there is, where that is known. What the parts lack of the whole are the ends of chunks
 * and what the driver takes to load code; its context, which is there before, does not count. Of a plan what would be,
 * of a run what the device says. out holds 160 bytes; returns out. */
char *ma_memory_text(char *out, const ma_ctx *);

#endif
