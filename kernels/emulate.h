// emulate.h: runs CUDA kernels on the CPU, to test them where there is no GPU: every thread is a fiber, warps meet in
// shuffles and matrix instructions, blocks in barriers, and blocks run side by side, so that grid-wide barriers work.
// What it cannot show: races that need a weak memory order, and time.
//
// Included in place of CUDA's headers under -DEMULATE by kernels that keep to what is here.  x86-64 only.
#ifndef KERNELS_EMULATE_H
#define KERNELS_EMULATE_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __maxnreg__(n)
#define SHARED_MEMORY(p) unsigned char *p = emu_now->block->smem

struct dim3_ {
    unsigned x, y, z;
};
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct uint2 { uint32_t x, y; };
struct uint4 { uint32_t x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

// Where threads of a group meet: the last to come lets the others go on.
struct emu_meet {
    unsigned arrived, generation;
};
struct emu_warp {
    emu_meet meet;
    uint32_t in[2][32][8];
};
struct emu_block {
    unsigned char *smem;
    emu_meet all;
    std::vector<emu_warp> warps;
};
struct emu_fiber {
    void *sp, *stack;
    bool done;
    emu_block *block;
    emu_warp *warp;
    const emu_meet *at;      // waits for this to move on from `generation`
    unsigned generation;
    dim3_ thread, of_block;
};

static emu_fiber *emu_now;
static void *emu_scheduler;
static std::function<void()> emu_kernel;
static dim3_ threadIdx, blockIdx, blockDim, gridDim;

extern "C" void emu_switch(void **save, void *to);
asm(".text\n.globl emu_switch\n.hidden emu_switch\nemu_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

static void emu_yield() { emu_switch(&emu_now->sp, emu_scheduler); }

static void emu_enter()
{
    emu_kernel();
    emu_now->done = true;
    for (;;)
        emu_yield();
}

static void emu_join(emu_meet &m, unsigned n)
{
    if (++m.arrived == n) {
        m.arrived = 0;
        m.generation++;
        return;
    }
    emu_now->at = &m;
    emu_now->generation = m.generation;
    emu_yield();
}

// Runs the kernel's blocks to their ends.  Order: round and round, from a place that changes, as far as threads can go.
static int emulate(unsigned gx, unsigned gy, unsigned threads, size_t smem, std::function<void()> kernel)
{
    enum { STACK = 128 << 10 };
    size_t n = (size_t)gx * gy * threads, bytes = n * STACK, left = n;
    static char *stacks; // kept for the next
    static size_t kept;
    if (kept < bytes) {
        if (kept)
            munmap(stacks, kept);
        stacks = (char *)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        kept = stacks == MAP_FAILED ? 0 : bytes;
        if (!kept)
            return 2;
    }
    std::vector<emu_block> blocks(gx * gy);
    std::vector<emu_fiber> fibers(n);
    emu_kernel = kernel;
    gridDim = {gx, gy, 1};
    blockDim = {threads, 1, 1};
    for (size_t b = 0; b < blocks.size(); b++) {
        blocks[b].smem = (unsigned char *)aligned_alloc(128, (smem + 255) / 128 * 128);
        memset(blocks[b].smem, 0xff, smem); // NaN for whoever reads too early
        blocks[b].all = {0, 0};
        blocks[b].warps.assign((threads + 31) / 32, emu_warp());
        for (unsigned t = 0; t < threads; t++) {
            emu_fiber &f = fibers[b * threads + t];
            f.block = &blocks[b];
            f.warp = &blocks[b].warps[t / 32];
            f.thread = {t, 0, 0};
            f.of_block = {(unsigned)(b % gx), (unsigned)(b / gx), 0};
            f.done = false;
            f.at = nullptr;
            void **top = (void **)(stacks + (b * threads + t + 1) * STACK - 72);
            top[0] = nullptr; // where emu_enter would return to: as a call leaves the stack, 8 past a multiple of 16
            *--top = (void *)emu_enter;
            top -= 6;
            memset(top, 0, 6 * sizeof *top);
            f.sp = top;
        }
    }
    uint32_t random = 1;
    while (left) {
        random = random * 1664525u + 1013904223u;
        size_t from = random % n;
        for (size_t i = 0; i < n; i++) {
            emu_fiber &f = fibers[from + i < n ? from + i : from + i - n];
            if (f.done || (f.at && f.at->generation == f.generation))
                continue;
            f.at = nullptr;
            emu_now = &f;
            threadIdx = f.thread;
            blockIdx = f.of_block;
            emu_switch(&emu_scheduler, f.sp);
            left -= f.done;
        }
    }
    for (auto &b : blocks)
        free(b.smem);
    return 0;
}

// Everybody's words; valid until the warp meets again.
static uint32_t (*emu_exchange(const uint32_t *v, int n))[8]
{
    emu_warp &w = *emu_now->warp;
    unsigned g = w.meet.generation & 1;
    memcpy(w.in[g][threadIdx.x & 31], v, (size_t)n * 4);
    emu_join(w.meet, 32);
    return w.in[g];
}

static inline void __syncthreads() { emu_join(emu_now->block->all, blockDim.x); }
static inline void __syncwarp() { emu_join(emu_now->warp->meet, 32); }

template <typename T> static inline T __shfl_xor_sync(unsigned, T v, int o)
{
    uint32_t u;
    memcpy(&u, &v, 4);
    u = emu_exchange(&u, 1)[(threadIdx.x & 31) ^ (unsigned)o][0];
    memcpy(&v, &u, 4);
    return v;
}
template <typename T> static inline T __shfl_sync(unsigned, T v, int lane)
{
    uint32_t u;
    memcpy(&u, &v, 4);
    u = emu_exchange(&u, 1)[lane][0];
    memcpy(&v, &u, 4);
    return v;
}
static inline uint32_t __ballot_sync(unsigned, bool v)
{
    uint32_t u = v, all = 0, (*in)[8] = emu_exchange(&u, 1);
    for (int i = 0; i < 32; i++)
        all |= in[i][0] << i;
    return all;
}
static inline int __popc(uint32_t v) { return __builtin_popcount(v); }
static inline void __threadfence() {}
template <typename T> static inline T __ldcg(const T *p) { return *p; }
template <typename T, typename U> static inline T atomicAdd(T *p, U v)
{
    T old = *p;
    *p = (T)(old + v);
    return old;
}
static inline uint32_t __float_as_uint(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
static inline float __uint_as_float(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}
#define __expf expf
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }

static inline uint32_t emu_bf16(float f)
{
    uint32_t u = __float_as_uint(f);
    return f != f ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
static inline uint32_t pack2(float lo, float hi) { return emu_bf16(lo) | emu_bf16(hi) << 16; }
static inline float emu_part(uint32_t v, int i) { return __uint_as_float(i ? v & 0xffff0000u : v << 16); }

static inline uint32_t unbias(uint32_t v)
{
    return pack2(emu_part(v, 0) * 0x1p120f, emu_part(v, 1) * 0x1p120f);
}

// m16n8k16, bfloat16 to float32: each thread's fragments as the instruction has them.
static inline void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
    uint32_t v[6] = {a0, a1, a2, a3, b0, b1}, (*in)[8] = emu_exchange(v, 6);
    int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    for (int e = 0; e < 4; e++) {
        int row = g + (e >> 1) * 8, col = 2 * t + (e & 1);
        float s = c[e];
        for (int k = 0; k < 16; k++) {
            const uint32_t *a = in[(row & 7) * 4 + (k & 7) / 2], *b = in[col * 4 + (k & 7) / 2];
            s += emu_part(a[(row >> 3) + 2 * (k >> 3)], k & 1) * emu_part(b[4 + (k >> 3)], k & 1);
        }
        c[e] = s;
    }
}

// Copies are there at once, and kernels come one after the other.
static inline void copy16(void *to, const void *from, int n)
{
    memcpy(to, from, (size_t)n);
    memset((char *)to + n, 0, (size_t)(16 - n));
}
static inline void copies_close() {}
template <int N> static inline void copies_wait() {}
static inline void let_next_begin() {}
static inline void wait_for_last() {}

#endif
