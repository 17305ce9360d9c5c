/* kernels.h: the CUDA kernels of kernels/, found in libkernels.so when a GPU is used.
 *
 * The library is looked for as $STEP_LLM_KERNELS, then beside the program (../lib/libkernels.so, lib/libkernels.so).
 * A kernel's launcher is a C function `int k_NAME(...)` that returns a cudaError_t; the headers
 * in kernels/ declare them with their types, and a caller takes one by name:
 *
 *     k_adamw_fn *step = (k_adamw_fn *)kernel("k_adamw");
 *     if (!step) return err_code();                          // not built, or of another version: the text says which
 *     return kernel_check("k_adamw", step(kernel_stream(), ...));
 */
#ifndef SHIM_KERNELS_H
#define SHIM_KERNELS_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef void kernel_fn(void); /* cast to its own type */

/* NULL with ERR_EXTERN when there is no library or no such function in it. */
kernel_fn *kernel(const char *name);
/* True if the library is there: without it ATen's operators are used where there is a choice. */
bool kernels_here(void);
/* ATen's present CUDA stream (a cudaStream_t), on which kernels take their place among its operators. */
void *kernel_stream(void);
/* "NVIDIA H200"; "" when there is no GPU.  And what its tensor cores do at most, bfloat16 without sparsity, in
 * operations a second, from the maker's data sheets: 0 when that is not known here. */
const char *kernel_device_name(void);
double kernel_device_peak(void);
/* ERR_OK, or ERR_EXTERN with the name and CUDA's text of the error. */
int kernel_check(const char *name, int cuda_error);

#ifdef __cplusplus
}
#endif
#endif
