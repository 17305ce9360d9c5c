// torch_kernels.cc: finds libkernels.so and ATen's stream.  See kernels.h.
#include "shim/kernels.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "lib/err.h"

namespace {

void *library()
{
    static void *lib;
    static bool tried;
    if (tried)
        return lib;
    tried = true;
    char path[4200], self[4096];
    if (const char *named = getenv("STEP_LLM_KERNELS")) {
        lib = dlopen(named, RTLD_NOW | RTLD_LOCAL);
        return lib;
    }
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0)
        return nullptr;
    self[n] = 0;
    char *slash = strrchr(self, '/');
    if (slash)
        *slash = 0;
    for (const char *rel : {"../lib", "lib"}) {
        snprintf(path, sizeof path, "%s/%s/libkernels.so", self, rel);
        if (access(path, R_OK) == 0 && (lib = dlopen(path, RTLD_NOW | RTLD_LOCAL)))
            break;
    }
    return lib;
}

} // namespace

extern "C" {

kernel_fn *kernel(const char *name)
{
    void *lib = library();
    if (!lib) {
        err_set(ERR_EXTERN, "the CUDA kernels (lib/libkernels.so) are not here: build them with make where nvcc is, or set STEP_LLM_KERNELS");
        return nullptr;
    }
    void *f = dlsym(lib, name);
    if (!f)
        err_set(ERR_EXTERN, "libkernels.so has no %s: it is of another version; run make again", name);
    return reinterpret_cast<kernel_fn *>(f);
}

bool kernels_here(void)
{
    return library() != nullptr;
}

void *kernel_stream(void)
{
    const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
    return guard.getStreamNativeHandle(guard.getStream(c10::Device(c10::DeviceType::CUDA, 0)));
}

const char *kernel_device_name(void)
{
    static char name[128];
    typedef int name_fn(char *, int, int);
    void *cuda = *name ? nullptr : dlopen("libcuda.so.1", RTLD_NOW);
    name_fn *f = cuda ? reinterpret_cast<name_fn *>(dlsym(cuda, "cuDeviceGetName")) : nullptr;
    if (f && f(name, sizeof name, 0))
        name[0] = 0;
    return name;
}

double kernel_device_peak(void)
{
    static const struct {
        const char *name;
        double tera;
    } known[] = {
        {"B200", 2250}, {"GH200", 989.4}, {"H200 NVL", 835.5}, {"H200", 989.4}, {"H100 PCIe", 756}, {"H100 NVL", 835.5}, {"H100", 989.4},
        {"A100", 312}, {"A30", 165}, {"A10", 125}, {"L40S", 362}, {"L40", 181}, {"L4", 121}, {"RTX 6000 Ada", 364}, {"RTX A6000", 155},
        {"RTX 5090", 209.5}, {"RTX 4090", 165.2}, {"RTX 3090", 71},
    };
    for (auto &k : known)
        if (strstr(kernel_device_name(), k.name))
            return k.tera * 1e12;
    return 0;
}

int kernel_check(const char *name, int cuda_error)
{
    if (!cuda_error)
        return ERR_OK;
    typedef const char *text_fn(int);
    text_fn *text = reinterpret_cast<text_fn *>(dlsym(RTLD_DEFAULT, "cudaGetErrorString"));
    return err_set(cuda_error == 2 ? ERR_NOMEM : ERR_EXTERN, "%s: CUDA error %d (%s)", name, cuda_error, text ? text(cuda_error) : "?");
}
}
