/* What CUDA's driver answers where a zero is not enough; see __main__.py. */
#include <stddef.h>
#include "cuda.h"

typedef CUresult status;

static void *something = (void *)16;

status cuDriverGetVersion(int *version) { *version = 13000; return 0; }
status cuDeviceGet(CUdevice *device, int number) { *device = number; return 0; }
status cuDeviceGetCount(int *count) { *count = 1; return 0; }
status cuCtxGetDevice(CUdevice *device) { *device = 0; return 0; }
status cuCtxGetCurrent(CUcontext *context) { *context = something; return 0; }
status cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { *context = something; return 0; }
status cuModuleLoadData(CUmodule *module, const void *image) { *module = something; return 0; }
status cuModuleGetFunction(CUfunction *kernel, CUmodule module, const char *name) { *kernel = something; return 0; }

status cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction kernel)
{
    switch ((int)attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = 32; break;
    default: *value = 0;
    }
    return 0;
}

status cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
    switch ((int)attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = 49152; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 232448; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: *value = 65536; break;
    default: *value = 1;
    }
    return 0;
}
