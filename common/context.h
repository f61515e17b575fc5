/* context: a device and a context as the command line asks for them, and what they took. */
#ifndef MA_CONTEXT_H
#define MA_CONTEXT_H

#include "cli.h"
#include "tensor.h"

/* Device and context as --device, --dtype and --dry-run ask for. A dtype that the device lacks is MA_USAGE.
 * Closed with ma_ctx_free, ma_device_close. */
int ma_context_open(const ma_cli *, ma_device **, ma_ctx **, ma_err *);
/* "parameters 345.1 MB, activations 96.0 MB, workspace 12.5 MB": the peaks. out holds 160 bytes; returns out. */
char *ma_memory_text(char *out, const ma_ctx *);

#endif
