// optim.cu: AdamW over all parameters in one launch, with float32 or blockwise 8-bit state.  See optim.h.
#include "kernels/optim.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace {

constexpr int WARPS = 8, EACH = OPTIM_BLOCK / 32; // a warp a block of 256: 8 elements a lane

// Every product and sum is rounded by itself, as the twin's are: no fused multiply-add.
__device__ float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ float add(float a, float b) { return __fadd_rn(a, b); }

__device__ float warp_max(float x)
{
    for (int i = 16; i; i >>= 1)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
    return x;
}

// The code nearest to x; between two, the even one.  (Binary search: code[pivot] ends beside x.)
__device__ int nearest(const float *code, float x, float lowest)
{
    int pivot = 127, above = 255, below = 0;
    float upper = 1, lower = lowest, val = code[127];
#pragma unroll
    for (int i = 64; i; i >>= 1) {
        if (x > val) {
            below = pivot;
            lower = val;
            pivot += i;
        } else {
            above = pivot;
            upper = val;
            pivot -= i;
        }
        val = code[pivot];
    }
    if (x > val)
        return x > mul(add(upper, val), 0.5f) ? above : pivot;
    return x < mul(add(lower, val), 0.5f) ? below : pivot;
}

template <bool EIGHT> __global__ void __launch_bounds__(WARPS * 32) adamw(const adamw_args a)
{
    __shared__ float map1[256], map2[256];
    if (EIGHT) {
        map1[threadIdx.x] = a.map1[threadIdx.x];
        map2[threadIdx.x] = a.map2[threadIdx.x];
        __syncthreads();
    }
    const float factor = a.clip[1];
    if (!isfinite(a.clip[0]))
        return;
    const int lane = threadIdx.x % 32;
    for (int64_t b = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32; b < a.blocks; b += (int64_t)gridDim.x * WARPS) {
        const int64_t at = (int64_t)a.where[b] * OPTIM_BLOCK + lane * EACH, s = b * OPTIM_BLOCK + lane * EACH;
        __align__(16) float g[EACH], w[EACH], m[EACH], v[EACH];
        *(float4 *)g = *(const float4 *)(a.g + at), *(float4 *)(g + 4) = *(const float4 *)(a.g + at + 4);
        *(float4 *)w = *(const float4 *)(a.w + at), *(float4 *)(w + 4) = *(const float4 *)(a.w + at + 4);
        if (EIGHT) {
            __align__(8) uint8_t c1[EACH], c2[EACH];
            *(uint2 *)c1 = *(const uint2 *)((const uint8_t *)a.m + s);
            *(uint2 *)c2 = *(const uint2 *)((const uint8_t *)a.v + s);
            const float max1 = a.absmax1[b], max2 = a.absmax2[b];
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                m[i] = mul(map1[c1[i]], max1);
                v[i] = mul(map2[c2[i]], max2);
            }
        } else {
            const float *pm = (const float *)a.m + s, *pv = (const float *)a.v + s;
            *(float4 *)m = *(const float4 *)pm, *(float4 *)(m + 4) = *(const float4 *)(pm + 4);
            *(float4 *)v = *(const float4 *)pv, *(float4 *)(v + 4) = *(const float4 *)(pv + 4);
        }
        const bool decays = a.decays[b];
        float max1 = 0, max2 = 0;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const float x = mul(g[i], factor);
            m[i] = add(mul(m[i], a.beta1), mul(a.rest1, x));
            v[i] = add(mul(v[i], a.beta2), mul(mul(a.rest2, x), x));
            if (decays)
                w[i] = mul(w[i], a.keep);
            w[i] = add(w[i], mul(a.rate, __fdiv_rn(m[i], add(__fsqrt_rn(v[i]), a.eps))));
            max1 = fmaxf(max1, fabsf(m[i]));
            max2 = fmaxf(max2, v[i]);
        }
        *(float4 *)(a.w + at) = *(float4 *)w, *(float4 *)(a.w + at + 4) = *(float4 *)(w + 4);
        if (a.half) {
            __align__(16) __nv_bfloat16 h[EACH];
#pragma unroll
            for (int i = 0; i < EACH; i++)
                h[i] = __float2bfloat16_rn(w[i]);
            *(uint4 *)((__nv_bfloat16 *)a.half + at) = *(uint4 *)h;
        }
        if (!EIGHT) {
            float *pm = (float *)a.m + s, *pv = (float *)a.v + s;
            *(float4 *)pm = *(float4 *)m, *(float4 *)(pm + 4) = *(float4 *)(m + 4);
            *(float4 *)pv = *(float4 *)v, *(float4 *)(pv + 4) = *(float4 *)(v + 4);
            continue;
        }
        max1 = warp_max(max1);
        max2 = warp_max(max2);
        __align__(8) uint8_t c1[EACH], c2[EACH];
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int k = max1 > 0 ? nearest(map1, __fdiv_rn(m[i], max1), -1) : 0;
            if (max1 > 0 && signbit(map1[k]) != signbit(m[i])) // the first moment keeps its sign
                k += m[i] > 0 ? 1 : -1;
            c1[i] = (uint8_t)k;
            c2[i] = (uint8_t)(max2 > 0 ? nearest(map2, __fdiv_rn(v[i], max2), 0) : 0);
        }
        *(uint2 *)((uint8_t *)a.m + s) = *(uint2 *)c1;
        *(uint2 *)((uint8_t *)a.v + s) = *(uint2 *)c2;
        if (!lane) {
            a.absmax1[b] = max1;
            a.absmax2[b] = max2;
        }
    }
}

__device__ double block_sum(double x)
{
    __shared__ double part[32];
    for (int i = 16; i; i >>= 1)
        x += __shfl_xor_sync(0xffffffffu, x, i);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0;
    if (threadIdx.x < 32)
        for (int i = 16; i; i >>= 1)
            x += __shfl_xor_sync(0xffffffffu, x, i);
    return x; // in the first warp
}

__global__ void squares(const float4 *g, int64_t n, double *parts)
{
    double sum = 0;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) {
        const float4 x = g[i];
        sum += (double)(x.x * x.x + x.y * x.y) + (double)(x.z * x.z + x.w * x.w);
    }
    sum = block_sum(sum);
    if (!threadIdx.x)
        parts[blockIdx.x] = sum;
}

// Always the same order: the norm has the same bits on every run.
__global__ void finish(const double *parts, float max_norm, float *clip)
{
    const double sum = block_sum(parts[threadIdx.x]);
    if (threadIdx.x)
        return;
    const float norm = (float)sqrt(sum);
    clip[0] = norm;
    clip[1] = max_norm > 0 && norm > max_norm ? __fdiv_rn(max_norm, add(norm, 1e-6f)) : 1.0f;
}

} // namespace

int k_adamw(void *stream, const adamw_args *a)
{
    if (!a->blocks)
        return 0;
    const int64_t want = (a->blocks + WARPS - 1) / WARPS;
    const int grid = (int)(want < 132 * 16 ? want : 132 * 16);
    if (a->absmax1)
        adamw<true><<<grid, WARPS * 32, 0, (cudaStream_t)stream>>>(*a);
    else
        adamw<false><<<grid, WARPS * 32, 0, (cudaStream_t)stream>>>(*a);
    return cudaGetLastError();
}

int k_clip(void *stream, const float *g, int64_t n, float max_norm, double *parts, float *clip)
{
    squares<<<OPTIM_PARTS, 256, 0, (cudaStream_t)stream>>>((const float4 *)g, n / 4, parts);
    finish<<<1, OPTIM_PARTS, 0, (cudaStream_t)stream>>>(parts, max_norm, clip);
    return cudaGetLastError();
}
