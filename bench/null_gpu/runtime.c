/* What CUDA's runtime and cuBLAS answer where a zero is not enough; see __main__.py. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "driver_types.h"

typedef cudaError_t status;

static int capturing;
static void *fresh(void) { return calloc(1, 64); }
static int nothing(void) { return 0; }

status cudaGetDeviceCount(int *count) { *count = 1; return 0; }
status cudaGetDevice(int *device) { *device = 0; return 0; }
status cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
status cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
status cudaDeviceCanAccessPeer(int *can, int one, int other) { *can = 0; return 0; }
status cudaMemGetInfo(size_t *free, size_t *total) { *free = 78UL << 30; *total = 80UL << 30; return 0; }
char *cudaGetErrorString(status error) { return "an error of the null GPU"; }
char *cudaGetErrorName(status error) { return "null GPU"; }

status cudaGetDeviceProperties(struct cudaDeviceProp *is, int device)
{
    memset(is, 0, sizeof *is);
    strcpy(is->name, "null GPU, as an H100");
    is->major = 9;
    is->multiProcessorCount = 132;
    is->warpSize = 32;
    is->totalGlobalMem = 80UL << 30;
    is->l2CacheSize = 50 << 20;
    is->totalConstMem = 65536;
    is->sharedMemPerBlock = 49152;
    is->sharedMemPerBlockOptin = 232448;
    is->sharedMemPerMultiprocessor = 233472;
    is->regsPerBlock = is->regsPerMultiprocessor = 65536;
    is->maxBlocksPerMultiProcessor = 32;
    is->maxThreadsPerMultiProcessor = 2048;
    is->maxThreadsPerBlock = is->maxThreadsDim[0] = is->maxThreadsDim[1] = 1024;
    is->maxThreadsDim[2] = 64;
    is->maxGridSize[0] = 2147483647;
    is->maxGridSize[1] = is->maxGridSize[2] = 65535;
    return 0;
}

status cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    struct cudaDeviceProp is;
    cudaGetDeviceProperties(&is, device);
    switch ((int)attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = is.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = is.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = is.multiProcessorCount; break;
    case cudaDevAttrWarpSize: *value = is.warpSize; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = is.maxThreadsPerBlock; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = is.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = is.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = is.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = is.sharedMemPerMultiprocessor; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = is.regsPerBlock; break;
    default: *value = 1;
    }
    return 0;
}

status cudaMalloc(void **at, size_t bytes)
{
    *at = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return *at == MAP_FAILED ? cudaErrorMemoryAllocation : 0;
}
status cudaMallocAsync(void **at, size_t bytes, void *stream) { return cudaMalloc(at, bytes); }
status cudaHostAlloc(void **at, size_t bytes, unsigned flags) { *at = calloc(1, bytes); return 0; }
status cudaMemcpy(void *to, const void *from, size_t bytes, int kind) { memcpy(to, from, bytes); return 0; }
status cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream)
{
    memcpy(to, from, bytes);
    return 0;
}
status cudaMemset(void *at, int byte, size_t bytes) { memset(at, byte, bytes); return 0; }
status cudaMemsetAsync(void *at, int byte, size_t bytes, void *stream) { memset(at, byte, bytes); return 0; }
status cudaPointerGetAttributes(struct cudaPointerAttributes *is, const void *at)
{
    memset(is, 0, sizeof *is);
    is->type = cudaMemoryTypeUnregistered;
    is->devicePointer = is->hostPointer = (void *)at;
    return 0;
}

status cudaStreamCreate(void **stream) { *stream = fresh(); return 0; }
status cudaStreamCreateWithFlags(void **stream, unsigned flags) { *stream = fresh(); return 0; }
status cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) { *stream = fresh(); return 0; }
status cudaStreamGetPriority(void *stream, int *priority) { *priority = 0; return 0; }
status cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return 0; }
status cudaEventCreate(void **event) { *event = fresh(); return 0; }
status cudaEventCreateWithFlags(void **event, unsigned flags) { *event = fresh(); return 0; }
status cudaEventElapsedTime(float *milliseconds, void *start, void *end) { *milliseconds = 1; return 0; }

status cudaStreamBeginCapture(void *stream, int mode) { capturing = 1; return 0; }
status cudaStreamEndCapture(void *stream, void **graph) { capturing = 0; *graph = fresh(); return 0; }
status cudaStreamIsCapturing(void *stream, int *is) { *is = capturing; return 0; }
status cudaStreamGetCaptureInfo(
    void *stream, int *is, unsigned long long *id, void **graph, void ***nodes, void **edges, size_t *count)
{
    *is = capturing;
    if (id) *id = capturing;
    if (graph) *graph = fresh();
    if (nodes) *nodes = 0;
    if (edges) *edges = 0;
    if (count) *count = 0;
    return 0;
}
status cudaGraphInstantiateWithFlags(void **instance, void *graph, unsigned long long flags)
{
    *instance = fresh();
    return 0;
}
status cudaGraphGetNodes(void *graph, void *nodes, size_t *count) { *count = 1; return 0; }
status cudaUserObjectCreate(void **object) { *object = fresh(); return 0; }

status cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *blocks, const void *kernel, int threads, size_t shared, unsigned flags)
{
    *blocks = 8;
    return 0;
}
status cudaFuncGetAttributes(struct cudaFuncAttributes *is, const void *kernel)
{
    memset(is, 0, sizeof *is);
    is->maxThreadsPerBlock = 1024;
    return 0;
}
status cudaGetDriverEntryPointByVersion(
    const char *name, void **function, unsigned version, unsigned long long flags, int *result)
{
    *function = nothing;
    if (result) *result = 0;
    return 0;
}

status cudaStreamSynchronize(void *stream) { return capturing ? cudaErrorStreamCaptureUnsupported : 0; }

status cublasCreate_v2(void **handle) { *handle = fresh(); return 0; }
status cublasLtCreate(void **handle) { *handle = fresh(); return 0; }
status cublasLtMatmulAlgoGetHeuristic(
    void *handle, void *how, void *a, void *b, void *c, void *d, void *preference, int asked, void *found, int *count)
{
    *count = 1;
    return 0;
}
long cublasLtGetVersion(void) { return 130000; }

/* c10::cuda::hasPrimaryContext, which would ask the driver. */
int _ZN3c104cuda17hasPrimaryContextEa(signed char device) { return 1; }
