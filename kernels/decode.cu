// decode.cu: one decoding step of a whole transformer as a chain of small kernels in a graph.  See decode.h for the data.
//
//   embed | [ qkv, rope | attention | (its sums) | out, residual, norm | gate-up, SwiGLU | down, residual, norm ] x layers | head
//
// A step reads every weight once; nothing else is large.  So every kernel begins to read its weights (cp.async, each lane for
// itself, into its own places of a ring in shared memory) while the kernel before it still works (programmatic dependent launch),
// and waits for it only then.  For that, blocks of two kernels have to fit into a multiprocessor side by side, but not two of one
// kernel, or one multiprocessor would do the work of two: the row products take more than half of the shared memory, and the residual
// ones begin beside them, where one fits.  (Of 32 tokens the registers are full, and nothing begins early.)
//
// Products are mma.m16n8k16: 16 rows of weights by up to 8 tokens, so that 8 tokens cost what one does.
//
// Arithmetic of one token never depends on how many others are in the step: a row's columns are cut into slices in the same way
// for all, each is summed by one warp in order, and the slices' sums are added in their order; attention is cut into parts by
// position, whose sums are added in their order.
//
// RMSNorm: the stage before writes h = x * w, rounded to bfloat16, and sums of squares; 1 / rms is one number a token,
// so the product's result is multiplied with it.
#ifdef EMULATE
#include "kernels/emulate.h"
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#pragma nv_diag_suppress 177 // before 9.0 there is nothing but empty kernels
#define SHARED_MEMORY(p) extern __shared__ __align__(128) unsigned char p[]
#endif
#include "kernels/decode.h"

#include <stdint.h>
#include <stdlib.h>

namespace {

// ---- the machine's instructions ----
#ifndef EMULATE
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define HOPPER 1
#endif

__device__ __forceinline__ void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// 16 bytes to shared memory, the first n of them (16 or 0) from `from`, the others zeros.
__device__ __forceinline__ void copy16(void *to, const void *from, int n)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from), "r"(n)
                 : "memory");
}
__device__ __forceinline__ void copies_close() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All but the last N closed groups have arrived.
template <int N> __device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// The next kernel may begin; the kernel before has ended and what it wrote is there.
__device__ __forceinline__ void let_next_begin()
{
#ifdef HOPPER
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_last()
{
#ifdef HOPPER
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ uint64_t nanoseconds()
{
    uint64_t t;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
    return t;
}

__device__ __forceinline__ uint32_t pack2(float lo, float hi)
{
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

// x * 2^120, exact: what is left of e4m3's bits moved into bfloat16's places
__device__ __forceinline__ uint32_t unbias(uint32_t x)
{
    uint32_t r = 0;
#ifdef HOPPER
    asm("{\n.reg .b32 z;\nmov.b32 z, 0x80008000;\nfma.rn.bf16x2 %0, %1, %2, z;\n}" : "=r"(r) : "r"(x), "r"(0x7b807b80));
#endif
    return r;
}
#else
#define HOPPER 1
#endif

__device__ __forceinline__ float bf16_to_float(uint16_t v)
{
    return __uint_as_float((uint32_t)v << 16);
}

__device__ __forceinline__ uint16_t to_bf16(float v)
{
    return (uint16_t)pack2(v, 0);
}

// Four e4m3 values to two pairs of bfloat16: bytes 1 and 3, bytes 0 and 2.
__device__ __forceinline__ void widen(uint32_t v, uint32_t &a, uint32_t &b)
{
    a = unbias((v & 0x80008000u) | ((v >> 4) & 0x07f007f0u));
    b = unbias(((v << 8) & 0x80008000u) | ((v << 4) & 0x07f007f0u));
}

// ---- products ----

enum { ROW_SLICES = 8, SQUARES = 8, ROW_THREADS = ROW_SLICES * 32, SUM_SLICES = 32, SUM_WARPS = 16, RED_PITCH = 20, ATTEND_THREADS = 128, SUM_UP_THREADS = 128 };

struct product {
    const void *w[3];        // matrices, or the e4m3 copy
    const float *scale;
    const void *x;
    const void *add[3];      // qkv: biases, or NULL; out and down: the next norm's weights
    const float *extra;      // qkv and gate-up: an adapter's part, [16 tiles][NC], or NULL
    int k, pitch, tiles, layer, mark; // pitch: numbers from a row to the next
    int parts;               // out: attention's parts are added up here
};

// What the columns and rows of a product mean is known when it is compiled: K is an enum dk_kind.
__host__ __device__ __forceinline__ int chunks_of(const product &p, bool fp8) { return fp8 ? (p.k + 63) / 64 : (p.k + 31) / 32; }

// Rows g and g + 8 of a tile: where they begin; NULL where there is none.
template <int K> __host__ __device__ __forceinline__ void tile_rows(const dk_model &m, const void *const (&w)[3], int pitch, int tile, int g,
                                                                   const uint16_t *&a, const uint16_t *&b)
{
    const uint16_t *from = (const uint16_t *)w[0], *second = from;
    int ra, rb, n;
    if (K == DK_GATE_UP) {
        second = (const uint16_t *)w[1];
        ra = rb = tile * 8 + g;
        n = m.ff;
    } else if (K == DK_QKV) {
        int per = m.hd / 16, head = tile / per, kv = head - m.heads, in = tile % per;
        if (kv >= m.kv_heads)
            from = (const uint16_t *)w[2];
        else if (kv >= 0)
            from = (const uint16_t *)w[1];
        second = from;
        int first = (kv < 0 ? head : kv < m.kv_heads ? kv : kv - m.kv_heads) * m.head_dim;
        bool turned = kv < m.kv_heads;
        int i = turned ? in * 8 + g : in * 16 + g, j = turned ? i + m.head_dim / 2 : i + 8;
        ra = first + i;
        rb = first + j;
        a = i < (turned ? m.head_dim / 2 : m.head_dim) ? from + (int64_t)ra * pitch : nullptr;
        b = j < m.head_dim && (!turned || i < m.head_dim / 2) ? from + (int64_t)rb * pitch : nullptr;
        return;
    } else {
        ra = tile * 16 + g;
        rb = ra + 8;
        n = K == DK_HEAD ? m.rows : m.d;
    }
    a = ra < n ? from + (int64_t)ra * pitch : nullptr;
    b = rb < n ? second + (int64_t)rb * pitch : nullptr;
}

// The weights that a warp wants, chunk by chunk (16 rows by 32 columns, or by 64 of e4m3: 1 KB), slices of tiles gridDim.x
// apart.  Each lane copies what it will use itself: 16 bytes of row g and of row g + 8, g = lane / 4; the two lie 512 bytes apart.
template <int K, bool FP8, int SLICES, int WARPS, int GROUPS = 1> struct feed {
    const dk_model &m;
    const product &p;
    int chunks, tile, slice, at, to, lane;
    const unsigned char *a, *b;
    int na, nb;

    __device__ __forceinline__ feed(const dk_model &m_, const product &p_)
        : m(m_), p(p_), chunks(chunks_of(p_, FP8)), tile((int)(blockIdx.x + threadIdx.x / (WARPS * 32) * gridDim.x)), slice(warp_of()), at(0), to(0),
          lane((int)threadIdx.x & 31), a(nullptr), b(nullptr), na(0), nb(0)
    {
        begin();
    }
    __device__ __forceinline__ static int warp_of() { return (int)(threadIdx.x >> 5) % WARPS; } // of its group
    __device__ __forceinline__ void begin()
    {
        while (tile < p.tiles) {
            at = chunks * slice / SLICES;
            to = chunks * (slice + 1) / SLICES;
            if (at < to)
                break;
            if (SLICES == WARPS) // nor has it any in another tile
                tile = p.tiles;
            else
                advance();
        }
        if (tile >= p.tiles)
            return;
        if (FP8) {
            a = (const unsigned char *)p.w[0] + ((int64_t)tile * chunks + at) * 1024 + lane * 16;
            b = a + 512;
        } else {
            const uint16_t *ra, *rb;
            tile_rows<K>(m, p.w, p.pitch, tile, lane >> 2, ra, rb);
            na = ra ? 16 : 0;
            nb = rb ? 16 : 0;
            int skip = at * 32 + (lane & 3) * 8;
            a = (const unsigned char *)((ra ? ra : (const uint16_t *)p.w[0]) + skip);
            b = (const unsigned char *)((rb ? rb : (const uint16_t *)p.w[0]) + skip);
        }
    }
    __device__ __forceinline__ void advance()
    {
        if ((slice += WARPS) >= SLICES) {
            slice = warp_of();
            tile += GROUPS * (int)gridDim.x;
        }
    }
    __device__ __forceinline__ bool more() const { return tile < p.tiles; }
    __device__ __forceinline__ void copy(unsigned char *slot) const
    {
        int n = FP8 || at * 32 + (lane & 3) * 8 < p.k ? 16 : 0;
        copy16(slot + lane * 16, a, FP8 ? n : n & na);
        copy16(slot + lane * 16 + 512, b, FP8 ? n : n & nb);
    }
    __device__ __forceinline__ void next()
    {
        a += FP8 ? 1024 : 64;
        b += FP8 ? 1024 : 64;
        if (++at == to) {
            advance();
            begin();
        }
    }
};

// acc += a chunk of weights by the same columns of up to NC vectors: x(j, t), of its j-th 32 columns, for tokens 8 t to 8 t + 7.
template <int NT, bool FP8, class X> __device__ __forceinline__ void multiply(float (&acc)[NT][4], const unsigned char *slot, X x)
{
    uint4 a = ((const uint4 *)slot)[threadIdx.x & 31], b = ((const uint4 *)(slot + 512))[threadIdx.x & 31];
    if (FP8) {
        uint32_t wa[8], wb[8];
        widen(a.x, wa[0], wa[1]);
        widen(a.y, wa[2], wa[3]);
        widen(a.z, wa[4], wa[5]);
        widen(a.w, wa[6], wa[7]);
        widen(b.x, wb[0], wb[1]);
        widen(b.y, wb[2], wb[3]);
        widen(b.z, wb[4], wb[5]);
        widen(b.w, wb[6], wb[7]);
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int t = 0; t < NT; t++) {
                uint4 v = x(j, t);
                mma(acc[t], wa[4 * j], wb[4 * j], wa[4 * j + 1], wb[4 * j + 1], v.x, v.y);
                mma(acc[t], wa[4 * j + 2], wb[4 * j + 2], wa[4 * j + 3], wb[4 * j + 3], v.z, v.w);
            }
    } else {
#pragma unroll
        for (int t = 0; t < NT; t++) {
            uint4 v = x(0, t);
            mma(acc[t], a.x, b.x, a.y, b.y, v.x, v.y);
            mma(acc[t], a.z, b.z, a.w, b.w, v.z, v.w);
        }
    }
}

// This lane's part of 32 columns of tokens 8 t on, of [32 columns][NC][32] in shared memory.
template <int NC> __device__ __forceinline__ uint4 vector_part(const void *chunk, int t)
{
    int lane = threadIdx.x & 31;
    if (NC == 1)
        return lane < 4 ? ((const uint4 *)chunk)[lane] : make_uint4(0, 0, 0, 0);
    return ((const uint4 *)chunk)[t * 32 + lane];
}

// A slice's sums to red [column][pitch]: rows 0 to 15.
template <int NC, int NT> __device__ __forceinline__ void put_sums(float *red, int pitch, const float (&acc)[NT][4])
{
    int lane = threadIdx.x & 31, g = lane >> 2, c = lane & 3;
    if (NC == 1) {
        if (c == 0) {
            red[g] = acc[0][0];
            red[g + 8] = acc[0][2];
        }
    } else {
#pragma unroll
        for (int t = 0; t < NT; t++) {
            float *o = red + (t * 8 + 2 * c) * pitch + g;
            o[0] = acc[t][0];
            o[pitch] = acc[t][1];
            o[8] = acc[t][2];
            o[pitch + 8] = acc[t][3];
        }
    }
}

template <int NC> __device__ __forceinline__ void put(void *to, int k, int col, float v)
{
    ((uint16_t *)to)[((k >> 5) * NC + col) * 32 + (k & 31)] = to_bf16(v);
}

__device__ __forceinline__ void mark([[maybe_unused]] const dk_work &w, [[maybe_unused]] int kernel, [[maybe_unused]] int what)
{
#ifndef EMULATE
    if (w.trace && threadIdx.x == 0) {
        unsigned long long t = nanoseconds(), *at = (unsigned long long *)w.trace + (int64_t)kernel * DK_MARKS + 2 * what;
        atomicMin(at, t);
        atomicMax(at + 1, t);
    }
#endif
}

// Threads of whole warps, eight a column, for what is done with sums of rows.
template <int NC> __device__ __forceinline__ bool mine(int tid, int &row, int &col)
{
    row = tid & 7;
    col = tid >> 3;
    return tid < (NC < 4 ? 32 : NC * 8);
}

__device__ __forceinline__ int padded(int n) { return (n + 63) / 64 * 64; }

// The residual stream's rows of a tile: keeps x, writes the next product's h and the sum of squares.  For whole warps.
template <int NC> __device__ __forceinline__ void finish_rows(const dk_model &m, const dk_work &w, int tile, int row, int col, bool here, float a,
                                                              float b, float norm_a, float norm_b)
{
    int i = tile * 16 + row, kd = padded(m.d);
    if (here) {
        w.x[(int64_t)col * kd + i] = a;
        w.x[(int64_t)col * kd + i + 8] = b;
        put<NC>(w.h, i, col, a * norm_a);
        put<NC>(w.h, i + 8, col, b * norm_b);
    }
    float s = a * a + b * b;
#pragma unroll
    for (int o = 4; o; o >>= 1)
        s += __shfl_xor_sync(~0u, s, o);
    if (here && row == 0)
        w.sumsq[tile * NC + col] = s;
}

__device__ __forceinline__ float weight_of(const void *norm, int i, int n) { return i < n ? bf16_to_float(((const uint16_t *)norm)[i]) : 0; }

// A block a tile of 16 rows.
template <int NC> __global__ void __launch_bounds__(256) embed_kernel(const __grid_constant__ dk_model m, const __grid_constant__ dk_work w, const void *norm)
{
    let_next_begin();
    int row, col, tile = blockIdx.x, i;
    mark(w, 0, 0);
    if (mine<NC>((int)threadIdx.x, row, col)) {
        bool here = col < w.step->cols;
        float a = 0, b = 0;
        i = tile * 16 + row;
        if (here) {
            const uint16_t *e = (const uint16_t *)m.embed + (int64_t)w.step->token[col] * m.d;
            a = i < m.d ? bf16_to_float(e[i]) : 0;
            b = i + 8 < m.d ? bf16_to_float(e[i + 8]) : 0;
        }
        finish_rows<NC>(m, w, tile, row, col, here, a, b, weight_of(norm, i, m.d), weight_of(norm, i + 8, m.d));
    }
    mark(w, 0, 2);
}

// Groups of eight warps in a block, each at a tile of its own: 8-bit weights of one column are as much work as they are traffic.
template <int NC, bool FP8, int K> __host__ __device__ constexpr int groups_of() { return NC == 1 && FP8 ? 2 : 1; }

// Chunks that a warp has under way, and whether a warp of the row products keeps its columns of x in registers, by NC.
template <int NC, bool FP8> struct depth {
    static constexpr int rows = NC == 1 ? 14 : NC <= 16 ? 12 : 20, out = NC == 1 ? 5 : NC == 8 && !FP8 ? 3 : 2, down = NC == 32 && !FP8 ? 3 : out;
    static constexpr bool in_registers = NC >= 8;
};
// 32 columns each that a warp can keep in registers: of models up to 2,048 wide, and of wider ones, which take the registers that the next
// kernel would begin with; of 32 tokens they do not fit at all.
enum { HELD = 8, HELD_WIDE = 12 };
template <int NC> __host__ __device__ constexpr int most_held() { return NC <= 16 ? HELD_WIDE : HELD; }

template <int NC, bool FP8> __host__ __device__ constexpr int sum_slot() { return 1024 + (FP8 ? 2 : 1) * (NC < 8 ? 64 : NC * 64); }

// Whole rows, a slice a warp: q, k and v; gate and up; the head.  A block takes its share of the tiles one after the other.
template <int NC, bool FP8, int K, int HELD, int G> __global__ void __maxnreg__(G == 2 ? 72 : NC == 16 && K == DK_GATE_UP && HELD == 8 ? 128 : 255) rows_kernel(const __grid_constant__ dk_model m, const __grid_constant__ dk_work w,
                                                                                              const __grid_constant__ product p)
{
#ifdef HOPPER
    enum { NT = NC < 8 ? 1 : NC / 8, D = depth<NC, FP8>::rows / G, J = FP8 ? 2 : 1, RED = ROW_SLICES * NC * RED_PITCH };
    constexpr bool held = depth<NC, FP8>::in_registers;
    SHARED_MEMORY(smem);
    mark(w, p.mark, 0);
    float *squares = (float *)(smem + G * ROW_SLICES * D * 1024) + 2 * G * RED; // [SQUARES][NC]
    unsigned char *xs = (unsigned char *)(squares + SQUARES * NC);
    int all = threadIdx.x, group = all / ROW_THREADS, tid = all % ROW_THREADS, warp = tid >> 5, lane = tid & 31, chunks = chunks_of(p, FP8);
    int first = chunks * warp / ROW_SLICES, per = chunks * (warp + 1) / ROW_SLICES - first;
    float *red = (float *)(smem + G * ROW_SLICES * D * 1024) + 2 * group * RED;
    unsigned char *ring = smem + (group * ROW_SLICES + warp) * D * 1024;
    feed<K, FP8, ROW_SLICES, ROW_SLICES, G> f(m, p);
    int in = 0, out = 0;
    auto fetch = [&] {
        if (f.more()) {
            f.copy(ring + in * 1024);
            f.next();
        }
        copies_close();
        in = in + 1 == D ? 0 : in + 1;
    };
    for (int i = 0; i < D; i++)
        fetch();
    let_next_begin();
    const dk_step &step = *w.step;
    const bool alone = NC == 32; // no block has begun beside the kernel before: what that wrote is asked for first
    if (alone) {
        wait_for_last();
        mark(w, p.mark, 1);
    }
    uint4 xr[held ? HELD : 1][NT];
    const uint4 *x = (const uint4 *)p.x;
    auto hold_x = [&] {
#pragma unroll
        for (int i = 0; i < (held ? HELD : 1); i++)
#pragma unroll
            for (int t = 0; t < NT; t++)
                xr[i][t] = i < per * J ? __ldcg(x + ((first * J + i) * NT + t) * 32 + lane) : make_uint4(0, 0, 0, 0);
    };
    if (alone && held)
        hold_x();
    int cols = step.cols, keep = step.keep_logits;
    int row, col;
    bool some = mine<NC>(tid, row, col), here = some && col < cols;
    // q, k, v: where the column's keys and values go
    int pos = 0;
    uint16_t *page = nullptr;
    if (K == DK_QKV && here) {
        pos = step.pos[col];
        page = (uint16_t *)m.pool + (int64_t)step.pages[step.seq_of[col] * step.max_pages + pos / DK_PAGE] * m.page_elems + p.layer * m.layer_elems;
    }
    // what a tile's sums will meet, asked for long before they are made
    float2 add = make_float2(0, 0), cs = make_float2(1, 0), by = make_float2(1, 1);
    uint16_t *to = nullptr;
    auto ask = [&](int u) {
        if (!here || u >= p.tiles)
            return;
        if (FP8)
            by = make_float2(p.scale[u * 16 + row], p.scale[u * 16 + row + 8]);
        if (K == DK_QKV) {
            int per_head = m.hd / 16, head = u / per_head, kv = head - m.heads;
            bool turned = kv < m.kv_heads;
            int i = u % per_head * (turned ? 8 : 16) + row;
            if (p.add[0]) {
                const uint16_t *a, *b;
                tile_rows<DK_QKV>(m, p.add, 1, u, row, a, b);
                add = make_float2(a ? bf16_to_float(*a) : 0, b ? bf16_to_float(*b) : 0);
            }
            cs = turned ? ((const float2 *)m.rope)[(int64_t)pos * (m.hd / 2) + i] : make_float2(1, 0);
            if (kv < 0)
                to = (uint16_t *)w.q + ((int64_t)col * m.heads + head) * m.hd + i;
            else
                to = turned ? page + (int64_t)kv * (2 * DK_PAGE * m.hd) + pos % DK_PAGE * m.hd + i
                            : page + (int64_t)(kv - m.kv_heads) * (2 * DK_PAGE * m.hd) + DK_PAGE * m.hd + pos % DK_PAGE + i * DK_PAGE;
        }
    };
    float2 more = make_float2(0, 0);
    auto ask_more = [&](int u) {
        if (K != DK_HEAD && p.extra && here && u < p.tiles)
            more = make_float2(__ldcg(p.extra + (int64_t)(u * 16 + row) * NC + col), __ldcg(p.extra + (int64_t)(u * 16 + row + 8) * NC + col));
    };
    ask((int)(blockIdx.x + group * gridDim.x));
    if (!alone) {
        wait_for_last();
        mark(w, p.mark, 1);
    }
    ask_more((int)(blockIdx.x + group * gridDim.x));
    // the vectors, and what each column's 1 / rms is made of, all asked for at once
    float square = 0;
    if (all < SQUARES * NC && all % NC < cols) {
        int parts = (m.d + 15) / 16;
#pragma unroll 16
        for (int i = all / NC; i < parts; i += SQUARES)
            square += __ldcg(w.sumsq + i * NC + all % NC);
    }
    if (held) {
        if (!alone)
            hold_x();
    } else {
        uint4 *to = (uint4 *)xs;
        int each = cols * 4, n = chunks * J * each;
        if (cols == NC)
#pragma unroll 8
            for (int i = all; i < n; i += G * ROW_THREADS)
                to[i] = __ldcg(x + i);
        else
#pragma unroll 4
            for (int i = all; i < n; i += G * ROW_THREADS) {
                int at = i / each * (NC * 4) + i % each;
                to[at] = __ldcg(x + at);
            }
    }
    if (all < SQUARES * NC)
        squares[all] = square;
    __syncthreads();
    float rstd = 0;
    if (here) {
#pragma unroll
        for (int i = 0; i < SQUARES; i++)
            rstd += squares[i * NC + col];
        rstd = rsqrtf(rstd / (float)m.d + m.eps);
    }

    float best = -INFINITY;
    int id = 0x7fffffff;
    // A tile in every gridDim.x is a block's: 430 tokens/s at batch 1 on an H200, where tiles that went to who asked first had 414 and
    // neighbouring ones 422.
    bool second = false;
    for (int base = blockIdx.x; base < p.tiles; base += G * gridDim.x, second = !second, red = second ? red + RED : red - RED) {
        int u = base + group * (int)gridDim.x;
        bool real = G == 1 || u < p.tiles; // the last tile may be one group's alone
        float acc[NT][4];
#pragma unroll
        for (int t = 0; t < NT; t++)
            acc[t][0] = acc[t][1] = acc[t][2] = acc[t][3] = 0;
        auto chunk = [&](auto &&vector) {
            copies_wait<D - 1>();
            multiply<NT, FP8>(acc, ring + out * 1024, vector);
            out = out + 1 == D ? 0 : out + 1;
            fetch();
        };
        if (!real) {
        } else if (held) {
#pragma unroll
            for (int i = 0; i < (held ? HELD / J : 1); i++)
                if (i < per)
                    chunk([&](int j, int t) { return xr[i * J + j][t]; });
        } else {
            for (int i = 0; i < per; i++)
                chunk([&](int j, int t) { return vector_part<NC>(xs + ((first + i) * J + j) * (NC * 64), t); });
        }
        put_sums<NC>(red + warp * NC * RED_PITCH, RED_PITCH, acc);
        __syncthreads(); // one a tile: red is two, and who writes the first again has met those who have read it
        if (!here || !real)
            continue;
        float a = 0, b = 0;
#pragma unroll
        for (int s = 0; s < ROW_SLICES; s++) {
            a += red[(s * NC + col) * RED_PITCH + row];
            b += red[(s * NC + col) * RED_PITCH + row + 8];
        }
        a *= FP8 ? rstd * by.x : rstd;
        b *= FP8 ? rstd * by.y : rstd;
        if (K != DK_HEAD) {
            a = fmaf(rstd, more.x, a);
            b = fmaf(rstd, more.y, b);
        }
        if (K == DK_QKV) {
            a += add.x;
            b += add.y;
            to[0] = to_bf16(a * cs.x - b * cs.y);
            to[u / (m.hd / 16) < m.heads + m.kv_heads ? m.hd / 2 : 8 * DK_PAGE] = to_bf16(b * cs.x + a * cs.y);
        } else if (K == DK_GATE_UP) {
            put<NC>(w.act, u * 8 + row, col, a / (1 + __expf(-a)) * b);
        } else {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int i = u * 16 + row + 8 * e;
                float y = e ? b : a;
                if (keep)
                    w.logits[(int64_t)col * (p.tiles * 16) + i] = y;
                if (i < m.vocab && (y > best || (y == best && i < id))) {
                    best = y;
                    id = i;
                }
            }
        }
        ask(u + G * (int)gridDim.x);
        ask_more(u + G * (int)gridDim.x);
    }
    if (K == DK_HEAD && some) {
#pragma unroll
        for (int o = 4; o; o >>= 1) {
            float y = __shfl_xor_sync(~0u, best, o);
            int i = __shfl_xor_sync(~0u, id, o);
            if (y > best || (y == best && i < id)) {
                best = y;
                id = i;
            }
        }
        if (here && row == 0)
            *(float2 *)(w.best + ((int64_t)(blockIdx.x * G + group) * NC + col) * 2) = make_float2(best, __uint_as_float((uint32_t)id));
    }
    mark(w, p.mark, 2);
#endif
}

// ---- attention ----

// Of a column's head, a warp's lane HD / 32 dimensions: the parts' sums, each brought to the largest maximum, in their order.  A
// part that a column sees nothing of changes nothing.  ASKED parts are asked for at once, the first of them with the maxima.
template <int HD, int ASKED> __device__ __forceinline__ void add_parts(const float2 *ml, const float *v, int parts, float (&o)[HD / 32])
{
    enum { N = HD / 32, ROUND = 32 / ASKED * ASKED };
    int lane = threadIdx.x & 31;
    float2 y[ASKED][N / 2];
    v += lane * N;
    auto ask = [&](int first) {
#pragma unroll
        for (int s = 0; s < ASKED; s++)
#pragma unroll
            for (int i = 0; i < N / 2; i++)
                y[s][i] = first + s < parts ? __ldcg((const float2 *)(v + (int64_t)(first + s) * HD) + i) : make_float2(0, 0);
    };
    float2 n = lane < parts ? __ldcg(ml + lane) : make_float2(-INFINITY, 0);
    ask(0);
    float top = n.x, sum = 0;
    for (int s = lane + 32; s < parts; s += 32)
        top = fmaxf(top, __ldcg(ml + s).x);
#pragma unroll
    for (int i = 16; i; i >>= 1)
        top = fmaxf(top, __shfl_xor_sync(~0u, top, i));
#pragma unroll
    for (int i = 0; i < N; i++)
        o[i] = 0;
    for (int first = 0; first < parts; first += ROUND) {
        if (first)
            n = first + lane < parts ? __ldcg(ml + first + lane) : make_float2(-INFINITY, 0);
        float mine = exp2f(n.x - top);
        for (int b = 0; b < ROUND && first + b < parts; b += ASKED) {
            if (first + b)
                ask(first + b);
#pragma unroll
            for (int s = 0; s < ASKED; s++) {
                float f = __shfl_sync(~0u, mine, b + s);
                sum = fmaf(f, __shfl_sync(~0u, n.y, b + s), sum);
#pragma unroll
                for (int i = 0; i < N / 2; i++) {
                    o[2 * i] = fmaf(f, y[s][i].x, o[2 * i]);
                    o[2 * i + 1] = fmaf(f, y[s][i].y, o[2 * i + 1]);
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < N; i++)
        o[i] /= sum;
}

// The sum of a column's head to where the product of attention's result reads it.  For whole warps.
template <int NC, int HD> __device__ __forceinline__ void sum_up(const dk_model &m, const dk_work &w, int col, int head, int max_parts, int parts)
{
    float o[HD / 32];
    int64_t at = ((int64_t)col * m.heads + head) * max_parts;
    add_parts<HD, 8>((const float2 *)w.ml + at, w.part + at * HD, parts, o);
#pragma unroll
    for (int i = 0; i < HD / 32; i++) {
        int dim = (int)(threadIdx.x & 31) * (HD / 32) + i;
        if (dim < m.head_dim)
            put<NC>(w.ao, head * m.head_dim + dim, col, o[i]);
    }
}

template <int HD, int ASKED> __device__ __forceinline__ void sum_here(const dk_model &m, const dk_work &w, uint16_t *x, int head, int max_parts, int parts)
{
    float o[HD / 32];
    add_parts<HD, ASKED>((const float2 *)w.ml + (int64_t)head * max_parts, w.part + (int64_t)head * max_parts * HD, parts, o);
#pragma unroll
    for (int i = 0; i < HD / 32; i++) {
        int dim = (int)(threadIdx.x & 31) * (HD / 32) + i;
        if (dim < m.head_dim)
            x[head * m.head_dim + dim] = to_bf16(o[i]);
    }
}

// Division by what is known when the kernels are started: n * (2^24 / d + 1) >> 24 is exact for n < 2^24 / d.
struct dividers {
    uint32_t group, kv_heads;
};
dividers dividers_of(const dk_model &m) { return {(1u << 24) / (uint32_t)(m.heads / m.kv_heads) + 1, (1u << 24) / (uint32_t)m.kv_heads + 1}; }
__device__ __forceinline__ int divide(int n, uint32_t by) { return (int)((uint64_t)(uint32_t)n * by >> 24); }

// Attention's units: (sequence, part of its keys, kv head, and which 16 of its rows, or all).  Query rows are a column and a head
// each: row r is column col + r / group, head kv * group + r % group, of the group of heads that share the kv head.
struct attention_unit {
    const dk_model *m;
    const dk_work *w;
    dk_seq q;
    dividers by;
    int kv, part, group, first, rows, n, old, max_parts, g, c;
    const uint16_t *kp, *vp;

    // For whole warps: a lane looks at a sequence, of at most 32.
    __device__ __forceinline__ attention_unit(const dk_model &m_, const dk_work &w_, const dk_step &step, int u, int layer, const dividers &by_)
        : m(&m_), w(&w_), by(by_), max_parts(step.max_pages * DK_PARTS), g((threadIdx.x & 31) >> 2), c(threadIdx.x & 3)
    {
        int lane = threadIdx.x & 31;
        const dk_seq mine = step.seq[lane];
        int seq = __popc(__ballot_sync(~0u, lane < step.seqs && mine.unit <= u)) - 1;
        q.col = __shfl_sync(~0u, mine.col, seq);
        q.n = __shfl_sync(~0u, mine.n, seq);
        q.pos = __shfl_sync(~0u, mine.pos, seq);
        q.parts = __shfl_sync(~0u, mine.parts, seq);
        q.split = __shfl_sync(~0u, mine.split, seq);
        int in = u - __shfl_sync(~0u, mine.unit, seq), piece = 0;
        if (q.split != 1) { // the rows of a part one after the other: they read the same keys
            piece = in % q.split;
            in /= q.split;
        }
        part = divide(in, by.kv_heads);
        kv = in - part * m->kv_heads;
        group = m->heads / m->kv_heads;
        first = piece * 16;                        // rows from first to rows - 1
        rows = q.n * group;
        rows = q.split == 1 || rows < first + 16 ? rows : first + 16;
        n = q.pos + q.n - part * DK_PART;          // keys there are,
        n = n < DK_PART ? n : DK_PART;
        old = q.pos - part * DK_PART;              // and how many were there before this step
        const uint16_t *page = (const uint16_t *)m->pool + layer * m->layer_elems + (int64_t)kv * (2 * DK_PAGE * m->hd) +
                               (int64_t)step.pages[seq * step.max_pages + part / DK_PARTS] * m->page_elems;
        kp = page + part % DK_PARTS * DK_PART * m->hd;
        vp = page + DK_PAGE * m->hd + part % DK_PARTS * DK_PART;
    }
    __device__ __forceinline__ int64_t of(int row) const // its column and head
    {
        int col = divide(row, by.group);
        return (int64_t)(q.col + col) * m->heads + kv * group + row - col * group;
    }
    __device__ __forceinline__ const uint16_t *query(int row) const
    {
        return (const uint16_t *)w->q + of(row) * m->hd;
    }
    __device__ __forceinline__ int64_t place(int row) const
    {
        return of(row) * max_parts + part;
    }
    // The part's keys that a row may see: up to its own position.
    __device__ __forceinline__ int sees(int row) const { return old + divide(row, by.group); }

    // A lane's scores of 32 keys from `first` on, two of each of four tiles; tile t's column i is key i / 2 * 8 + 2 t + i % 2, so
    // that a lane's eight keys are neighbours, as the values' product wants them.
    template <int HD, class Q, class KEYS> __device__ __forceinline__ void scores(float (&s)[4][4], int first, int row, const Q &query, const KEYS &keys) const
    {
#pragma unroll
        for (int t = 0; t < 4; t++)
            s[t][0] = s[t][1] = s[t][2] = s[t][3] = 0;
#pragma unroll
        for (int j = 0; j < HD / 32; j++)
#pragma unroll
            for (int t = 0; t < 4; t++) {
                uint4 k = keys(t, j);
                mma(s[t], query[0][j].x, query[1][j].x, query[0][j].y, query[1][j].y, k.x, k.y);
                mma(s[t], query[0][j].z, query[1][j].z, query[0][j].w, query[1][j].w, k.z, k.w);
            }
        float factor = m->qk_scale * 1.4426950408889634f;
        int a = sees(row), b = sees(row + 8);
#pragma unroll
        for (int t = 0; t < 4; t++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int key = first + c * 8 + 2 * t + e;
                s[t][e] = key <= a ? s[t][e] * factor : -INFINITY;
                s[t][e + 2] = key <= b ? s[t][e + 2] * factor : -INFINITY;
            }
    }
    __device__ __forceinline__ static int key_of(int t, int g) { return (g >> 1) * 8 + 2 * t + (g & 1); }
};

// Over the four lanes of a row.
__device__ __forceinline__ float quad_max(float v)
{
    v = fmaxf(v, __shfl_xor_sync(~0u, v, 1));
    return fmaxf(v, __shfl_xor_sync(~0u, v, 2));
}
__device__ __forceinline__ float quad_sum(float v)
{
    v += __shfl_xor_sync(~0u, v, 1);
    return v + __shfl_xor_sync(~0u, v, 2);
}

__device__ __forceinline__ void largest(const float (&s)[4][4], float &a, float &b)
{
#pragma unroll
    for (int t = 0; t < 4; t++) {
        a = fmaxf(a, fmaxf(s[t][0], s[t][1]));
        b = fmaxf(b, fmaxf(s[t][2], s[t][3]));
    }
}

// Powers of two above the maxima (of rows that see nothing: zeros), as bfloat16, and their sums over a lane's eight keys.
__device__ __forceinline__ void powers(const float (&s)[4][4], float za, float zb, uint4 &pa, uint4 &pb, float &la, float &lb)
{
    uint32_t a[4], b[4];
    la = lb = 0;
#pragma unroll
    for (int t = 0; t < 4; t++) {
        float e0 = exp2f(s[t][0] - za), e1 = exp2f(s[t][1] - za), e2 = exp2f(s[t][2] - zb), e3 = exp2f(s[t][3] - zb);
        la += e0 + e1;
        lb += e2 + e3;
        a[t] = pack2(e0, e1);
        b[t] = pack2(e2, e3);
    }
    pa = make_uint4(a[0], a[1], a[2], a[3]);
    pb = make_uint4(b[0], b[1], b[2], b[3]);
}

enum { P_PITCH = DK_PART * 2 + 64 };
template <int HD> __host__ __device__ constexpr int attend_smem() { return 2 * DK_PART * HD * 2 + 2 * 4 * 16 * 4 + 16 * P_PITCH; }

// A block a unit, for few rows: its four warps take 32 keys each, then a quarter of the dimensions each.  A lane copies the keys and
// values that it wants itself, those that were there before while the kernel before still works, and the next unit's as soon as it
// has done with the places.
template <int HD> __global__ void __launch_bounds__(ATTEND_THREADS, 3) attend_kernel(const __grid_constant__ dk_model m, const __grid_constant__ dk_work w, int layer,
                                                                                     int kernel, const __grid_constant__ dividers by)
{
#ifdef HOPPER
    enum { ND = HD / 32, NB = DK_PART / 32, WARPS = 4 };
    SHARED_MEMORY(smem);
    float *wmax = (float *)(smem + 2 * DK_PART * HD * 2), *wsum = wmax + WARPS * 16;
    unsigned char *p = (unsigned char *)(wsum + WARPS * 16);
    uint4 *mine = (uint4 *)smem + threadIdx.x; // keys, then values, ATTEND_THREADS apart
    const dk_step &step = *w.step;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    int warp = threadIdx.x >> 5, units = step.units;
    mark(w, kernel, 0);
    let_next_begin();
    enum { OLD = 1, NEW = 2 };
    auto copy_keys = [&](const attention_unit &u, int what) {
#pragma unroll
        for (int t = 0; t < 4; t++) {
            int key = warp * 32 + u.key_of(t, u.g);
            if (what & (key < u.old ? OLD : NEW))
#pragma unroll
                for (int j = 0; j < HD / 32; j++)
                    copy16(mine + (t * (HD / 32) + j) * ATTEND_THREADS, key < u.n ? u.kp + key * HD + j * 32 + u.c * 8 : u.kp, key < u.n ? 16 : 0);
        }
    };
    auto copy_values = [&](const attention_unit &u, int what) {
#pragma unroll
        for (int j = 0; j < NB; j++) {
            int key = j * 32 + u.c * 8;
            if (what & (key + 8 <= u.old ? OLD : NEW))
#pragma unroll
                for (int t = 0; t < ND; t++)
                    copy16(mine + (4 * (HD / 32) + t * NB + j) * ATTEND_THREADS, key < u.n ? u.vp + ((warp * ND + t) * 8 + u.g) * DK_PAGE + key : u.vp,
                           key < u.n ? 16 : 0);
        }
    };
    int no = blockIdx.x;
    if (no >= units)
        return;
    attention_unit u(m, w, step, no, layer, by);
    copy_keys(u, OLD);
    copy_values(u, OLD);
    wait_for_last();
    mark(w, kernel, 1);
    copy_keys(u, NEW);
    copies_close();
    copy_values(u, NEW);
    copies_close();
    for (; no < units; no += gridDim.x) {
        int g = u.g, c = u.c;
        const bool more = no + (int)gridDim.x < units;
        attention_unit next = u;
        if (more)
            next = attention_unit(m, w, step, no + (int)gridDim.x, layer, by);
        for (int base = u.first; base < u.rows; base += 16) {
            int ra = base + g, rb = ra + 8;
            bool done = base + 16 >= u.rows && more; // with these keys and values
            uint4 q[2][HD / 32];
#pragma unroll
            for (int j = 0; j < HD / 32; j++) {
                q[0][j] = ra < u.rows ? __ldcg((const uint4 *)(u.query(ra) + j * 32 + c * 8)) : zero;
                q[1][j] = rb < u.rows ? __ldcg((const uint4 *)(u.query(rb) + j * 32 + c * 8)) : zero;
            }
            float s[4][4], ma = -INFINITY, mb = -INFINITY, la, lb;
            copies_wait<1>();
            u.scores<HD>(s, warp * 32, ra, q, [&](int t, int j) { return mine[(t * (HD / 32) + j) * ATTEND_THREADS]; });
            if (done)
                copy_keys(next, OLD | NEW);
            copies_close();
            largest(s, ma, mb);
            ma = quad_max(ma);
            mb = quad_max(mb);
            if (c == 0) {
                wmax[warp * 16 + g] = ma;
                wmax[warp * 16 + g + 8] = mb;
            }
            __syncthreads();
#pragma unroll
            for (int k = 0; k < WARPS; k++) {
                ma = fmaxf(ma, wmax[k * 16 + g]);
                mb = fmaxf(mb, wmax[k * 16 + g + 8]);
            }
            uint4 pa, pb;
            powers(s, ma == -INFINITY ? 0 : ma, mb == -INFINITY ? 0 : mb, pa, pb, la, lb);
            *(uint4 *)(p + g * P_PITCH + (warp * 32 + c * 8) * 2) = pa;
            *(uint4 *)(p + (g + 8) * P_PITCH + (warp * 32 + c * 8) * 2) = pb;
            la = quad_sum(la);
            lb = quad_sum(lb);
            if (c == 0) {
                wsum[warp * 16 + g] = la;
                wsum[warp * 16 + g + 8] = lb;
            }
            __syncthreads();
            float o[ND][4];
#pragma unroll
            for (int t = 0; t < ND; t++)
                o[t][0] = o[t][1] = o[t][2] = o[t][3] = 0;
            copies_wait<1>();
#pragma unroll
            for (int j = 0; j < NB; j++) {
                uint4 a = *(const uint4 *)(p + g * P_PITCH + (j * 32 + c * 8) * 2);
                uint4 b = *(const uint4 *)(p + (g + 8) * P_PITCH + (j * 32 + c * 8) * 2);
#pragma unroll
                for (int t = 0; t < ND; t++) {
                    uint4 v = mine[(4 * (HD / 32) + t * NB + j) * ATTEND_THREADS];
                    mma(o[t], a.x, b.x, a.y, b.y, v.x, v.y);
                    mma(o[t], a.z, b.z, a.w, b.w, v.z, v.w);
                }
            }
            if (done)
                copy_values(next, OLD | NEW);
            copies_close();
#pragma unroll
            for (int t = 0; t < ND; t++) {
                int dim = (warp * ND + t) * 8 + 2 * c;
                if (ra < u.rows)
                    *(float2 *)(w.part + u.place(ra) * HD + dim) = make_float2(o[t][0], o[t][1]);
                if (rb < u.rows)
                    *(float2 *)(w.part + u.place(rb) * HD + dim) = make_float2(o[t][2], o[t][3]);
            }
            if (warp == 0 && c == 0) {
                la = lb = 0;
#pragma unroll
                for (int k = 0; k < WARPS; k++) {
                    la += wsum[k * 16 + g];
                    lb += wsum[k * 16 + g + 8];
                }
                if (ra < u.rows)
                    *(float2 *)(w.ml + u.place(ra) * 2) = make_float2(ma, la);
                if (rb < u.rows)
                    *(float2 *)(w.ml + u.place(rb) * 2) = make_float2(mb, lb);
            }
            __syncthreads(); // wmax and wsum have been read
        }
        u = next;
    }
    copies_wait<0>();
    mark(w, kernel, 2);
#endif
}

template <int HD> __host__ __device__ constexpr int wide_pitch() { return HD * 2 + 64; }
template <int HD> __host__ __device__ constexpr int wide_smem() { return DK_PART * wide_pitch<HD>() + HD * P_PITCH; }

// A block a unit, for many rows: keys and values in shared memory, a warp takes 16 rows at a time.  What it computes is what
// attend_kernel() computes, in the same order.
template <int HD> __global__ void __launch_bounds__(ATTEND_THREADS) attend_wide_kernel(const __grid_constant__ dk_model m, const __grid_constant__ dk_work w, int layer,
                                                                                       int kernel, const __grid_constant__ dividers by)
{
#ifdef HOPPER
    enum { NB = DK_PART / 32, K_PITCH = wide_pitch<HD>() };
    SHARED_MEMORY(smem);
    unsigned char *ks = smem, *vs = smem + DK_PART * K_PITCH;
    const dk_step &step = *w.step;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    int warp = threadIdx.x >> 5;
    mark(w, kernel, 0);
    let_next_begin();
    bool waited = false; // by none that has nothing to do: the next kernel waits for those that have
    for (int no = blockIdx.x; no < step.units; no += gridDim.x) {
        attention_unit u(m, w, step, no, layer, by);
        int g = u.g, c = u.c;
        for (int pass = 0; pass < 2; pass++) { // what was there before, then the new
            for (int i = threadIdx.x; i < DK_PART * (HD / 8); i += ATTEND_THREADS) {
                int key = i / (HD / 8), at = i % (HD / 8) * 8;
                if ((key < u.old) != pass)
                    copy16(ks + key * K_PITCH + at * 2, u.kp + key * HD + at, key < u.n ? 16 : 0);
            }
            for (int i = threadIdx.x; i < HD * (DK_PART / 8); i += ATTEND_THREADS) {
                int dim = i / (DK_PART / 8), key = i % (DK_PART / 8) * 8;
                if ((key + 8 <= u.old) != pass)
                    copy16(vs + dim * P_PITCH + key * 2, u.vp + dim * DK_PAGE + key, key < u.n ? 16 : 0);
            }
            if (!waited) {
                wait_for_last();
                mark(w, kernel, 1);
                waited = true;
            }
        }
        copies_close();
        copies_wait<0>();
        __syncthreads();
        for (int base = u.first + warp * 16; base < u.rows; base += ATTEND_THREADS / 2) {
            int ra = base + g, rb = ra + 8;
            uint4 q[2][HD / 32], pa[NB], pb[NB];
#pragma unroll
            for (int j = 0; j < HD / 32; j++) {
                q[0][j] = ra < u.rows ? __ldcg((const uint4 *)(u.query(ra) + j * 32 + c * 8)) : zero;
                q[1][j] = rb < u.rows ? __ldcg((const uint4 *)(u.query(rb) + j * 32 + c * 8)) : zero;
            }
            float s[NB][4][4], ma = -INFINITY, mb = -INFINITY, la = 0, lb = 0;
#pragma unroll
            for (int b = 0; b < NB; b++) {
                u.scores<HD>(s[b], b * 32, ra, q,
                             [&](int t, int j) { return *(const uint4 *)(ks + (b * 32 + u.key_of(t, g)) * K_PITCH + (j * 32 + c * 8) * 2); });
                largest(s[b], ma, mb);
            }
            ma = quad_max(ma);
            mb = quad_max(mb);
            float za = ma == -INFINITY ? 0 : ma, zb = mb == -INFINITY ? 0 : mb;
#pragma unroll
            for (int b = 0; b < NB; b++) {
                float a, d;
                powers(s[b], za, zb, pa[b], pb[b], a, d);
                la += quad_sum(a);
                lb += quad_sum(d);
            }
#pragma unroll
            for (int t = 0; t < HD / 8; t++) {
                float o[4] = {0, 0, 0, 0};
#pragma unroll
                for (int j = 0; j < NB; j++) {
                    uint4 v = *(const uint4 *)(vs + (t * 8 + g) * P_PITCH + (j * 32 + c * 8) * 2);
                    mma(o, pa[j].x, pb[j].x, pa[j].y, pb[j].y, v.x, v.y);
                    mma(o, pa[j].z, pb[j].z, pa[j].w, pb[j].w, v.z, v.w);
                }
                int dim = t * 8 + 2 * c;
                if (ra < u.rows)
                    *(float2 *)(w.part + u.place(ra) * HD + dim) = make_float2(o[0], o[1]);
                if (rb < u.rows)
                    *(float2 *)(w.part + u.place(rb) * HD + dim) = make_float2(o[2], o[3]);
            }
            if (c == 0) {
                if (ra < u.rows)
                    *(float2 *)(w.ml + u.place(ra) * 2) = make_float2(ma, la);
                if (rb < u.rows)
                    *(float2 *)(w.ml + u.place(rb) * 2) = make_float2(mb, lb);
            }
        }
        __syncthreads(); // keys and values have been read
    }
    mark(w, kernel, 2);
#endif
}

// A warp a (column, head).
template <int NC, int HD> __global__ void __launch_bounds__(SUM_UP_THREADS) sum_up_kernel(const __grid_constant__ dk_model m, const __grid_constant__ dk_work w, int kernel)
{
    mark(w, kernel, 0);
    let_next_begin();
    const dk_step &step = *w.step;
    int at = (int)(blockIdx.x * SUM_UP_THREADS + threadIdx.x) >> 5, col = at / m.heads, parts = col < step.cols ? step.seq[step.seq_of[col]].parts : 0;
    wait_for_last();
    mark(w, kernel, 1);
    if (parts)
        sum_up<NC, HD>(m, w, col, at % m.heads, step.max_pages * DK_PARTS, parts);
    mark(w, kernel, 2);
}

// ---- out and down ----

// The residual stream's products: out and down.  A block takes a tile, its warps the slices; x comes with the weights.
template <int NC, bool FP8, int K> __global__ void __maxnreg__(NC == 1 && FP8 ? K == DK_OUT ? 64 : 56 : 96)
    sums_kernel(const __grid_constant__ dk_model m, const __grid_constant__ dk_work w, const __grid_constant__ product p)
{
#ifdef HOPPER
    enum { NT = NC < 8 ? 1 : NC / 8, D = K == DK_OUT ? depth<NC, FP8>::out : depth<NC, FP8>::down, W = SUM_WARPS, J = FP8 ? 2 : 1, SLOT = sum_slot<NC, FP8>(), PITCH = 16 };
    SHARED_MEMORY(smem);
    mark(w, p.mark, 0);
    int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, chunks = chunks_of(p, FP8), tile = blockIdx.x;
    float *red = (float *)smem; // [slices][NC][16]
    unsigned char *ring = smem + SUM_SLICES * NC * PITCH * 4 + warp * D * SLOT;
    feed<K, FP8, SUM_SLICES, W> f(m, p);
    for (int i = 0; i < D && f.more(); i++) {
        f.copy(ring + i * SLOT);
        f.next();
    }
    let_next_begin();
    int cols = w.step->cols;
    const bool add = K == DK_OUT && NC == 1 && p.parts;
    uint16_t *xs = (uint16_t *)(smem + SUM_SLICES * NC * PITCH * 4 + W * D * SLOT); // [k]
    int parts = add ? w.step->seq[0].parts : 0, max_parts = add ? w.step->max_pages * DK_PARTS : 0;
    // what the sums will meet
    int row, col, kd = padded(m.d);
    bool some = mine<NC>(tid, row, col), here = some && col < cols;
    float2 norm = make_float2(0, 0), old = norm, by = make_float2(1, 1);
    int mine_at = tile * 16 + row;
    if (here) {
        norm = make_float2(weight_of(p.add[0], mine_at, m.d), weight_of(p.add[0], mine_at + 8, m.d));
        if (FP8)
            by = make_float2(p.scale[mine_at], p.scale[mine_at + 8]);
    }
    wait_for_last();
    mark(w, p.mark, 1);
    if (here)
        old = make_float2(__ldcg(w.x + (int64_t)col * kd + mine_at), __ldcg(w.x + (int64_t)col * kd + mine_at + 8));
    if (add) {
        for (int head = warp; head < m.heads; head += W) {
            if (m.hd == 128)
                sum_here<128, FP8 ? 4 : 8>(m, w, xs, head, max_parts, parts);
            else
                sum_here<64, FP8 ? 4 : 8>(m, w, xs, head, max_parts, parts);
        }
        for (int i = p.k + tid; i < chunks * J * 32; i += W * 32)
            xs[i] = 0;
        copies_close();
        copies_wait<0>();
        __syncthreads();
    }
    // chunk c of the vectors to a slot
    auto vectors = [&](unsigned char *slot, int c) {
        const unsigned char *x = (const unsigned char *)p.x + (int64_t)c * (J * NC * 64);
#pragma unroll
        for (int i = 0; i < (J * NC * 4 + 31) / 32; i++)
            if (J * NC * 4 >= 32 || lane < J * NC * 4)
                copy16(slot + 1024 + (i * 32 + lane) * 16, x + (i * 32 + lane) * 16, 16);
    };
    // what its slices' chunks are, once more, for the vectors and for the sums
    feed<K, FP8, SUM_SLICES, W> v(m, p);
    for (int i = 0; i < D && v.more() && !add; i++) {
        vectors(ring + i * SLOT, v.at);
        v.next();
    }
    copies_close();
    copies_wait<0>();
    int at = 0;
#pragma unroll
    for (int s = 0; s < (int)SUM_SLICES / (int)W; s++) {
        int slice = warp + s * W, n = chunks * (slice + 1) / SUM_SLICES - chunks * slice / SUM_SLICES;
        float acc[NT][4];
#pragma unroll
        for (int t = 0; t < NT; t++)
            acc[t][0] = acc[t][1] = acc[t][2] = acc[t][3] = 0;
        for (int i = 0; i < n; i++) {
            unsigned char *slot = ring + at * SLOT;
            copies_wait<D - 1>();
            if (NC == 1)
                __syncwarp(); // other lanes' part of the vectors
            const unsigned char *x = add ? (const unsigned char *)(xs + (chunks * slice / SUM_SLICES + i) * J * 32) : slot + 1024;
            multiply<NT, FP8>(acc, slot, [&](int j, int t) { return vector_part<NC>(x + j * NC * 64, t); });
            if (NC == 1)
                __syncwarp();
            if (f.more()) {
                f.copy(slot);
                if (!add)
                    vectors(slot, f.at);
                f.next();
            }
            copies_close();
            at = at + 1 == D ? 0 : at + 1;
        }
        put_sums<NC>(red + slice * NC * PITCH, PITCH, acc);
    }
    __syncthreads();
    if (some) {
        float a = 0, b = 0;
        if (here)
#pragma unroll 8
            for (int s = 0; s < SUM_SLICES; s++) {
                a += red[(s * NC + col) * PITCH + row];
                b += red[(s * NC + col) * PITCH + row + 8];
            }
        finish_rows<NC>(m, w, tile, row, col, here, a * by.x + old.x, b * by.y + old.y, norm.x, norm.y);
    }
    mark(w, p.mark, 2);
#endif
}

// ---- adapters ----

// An adapter's part of a product, scale * B (A x), is made by two small kernels before it: A x, in parts by columns of A, and B times their sum,
// which goes to the residual stream or, where the product's result does not go there, beside it.
enum { ADAPT_THREADS = 256, ADAPT_WARPS = ADAPT_THREADS / 32, ADAPT_PARTS = DK_ADAPT_PARTS };

struct adapter {
    const void *a[3], *b[3]; // of each of the product's matrices: [rank][k], [rows][rank]; NULL where there is none
    const void *x;
    int k, tiles;
};

__host__ __device__ __forceinline__ int padded_rank(const dk_model &m) { return (m.rank + 15) / 16 * 16; }

// A block 16 rows of one A and a part of its columns.
template <int NC> __global__ void __launch_bounds__(ADAPT_THREADS) adapter_down_kernel(const __grid_constant__ dk_model m, const __grid_constant__ dk_work w,
                                                                                       const __grid_constant__ adapter p)
{
#ifdef HOPPER
    enum { NT = NC < 8 ? 1 : NC / 8, SLICES = ADAPT_WARPS * ADAPT_PARTS };
    SHARED_MEMORY(smem);
    float *red = (float *)smem; // [warp][NC][pitch]
    int tiles = padded_rank(m) / 16, which = blockIdx.x / tiles, tile = blockIdx.x % tiles, part = blockIdx.y;
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, c = lane & 3, chunks = (p.k + 31) / 32, slice = part * ADAPT_WARPS + warp;
    const uint16_t *from = (const uint16_t *)p.a[which];
    let_next_begin();
    if (!from) // there is another
        return;
    const uint16_t *ra = tile * 16 + g < m.rank ? from + (int64_t)(tile * 16 + g) * p.k : nullptr;
    const uint16_t *rb = tile * 16 + g + 8 < m.rank ? from + (int64_t)(tile * 16 + g + 8) * p.k : nullptr;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    float acc[NT][4];
#pragma unroll
    for (int t = 0; t < NT; t++)
        acc[t][0] = acc[t][1] = acc[t][2] = acc[t][3] = 0;
    wait_for_last();
#pragma unroll 4
    for (int i = chunks * slice / SLICES; i < chunks * (slice + 1) / SLICES; i++) {
        int at = i * 32 + c * 8;
        uint4 a = ra && at < p.k ? *(const uint4 *)(ra + at) : zero, b = rb && at < p.k ? *(const uint4 *)(rb + at) : zero;
        const uint4 *x = (const uint4 *)p.x + i * NC * 4;
#pragma unroll
        for (int t = 0; t < NT; t++) {
            uint4 v = NC >= 8 || lane < 4 ? __ldcg(x + t * 32 + lane) : zero;
            mma(acc[t], a.x, b.x, a.y, b.y, v.x, v.y);
            mma(acc[t], a.z, b.z, a.w, b.w, v.z, v.w);
        }
    }
    put_sums<NC>(red + warp * NC * RED_PITCH, RED_PITCH, acc);
    __syncthreads();
    for (int i = threadIdx.x; i < 16 * NC; i += ADAPT_THREADS) {
        int row = i & 15, col = i >> 4;
        float sum = 0;
#pragma unroll
        for (int s = 0; s < ADAPT_WARPS; s++)
            sum += red[(s * NC + col) * RED_PITCH + row];
        w.u[((int64_t)(part * 3 + which) * padded_rank(m) + tile * 16 + row) * NC + col] = sum;
    }
#endif
}

// A thread a row of the product's tiles.
template <int NC, int K> __global__ void __launch_bounds__(ADAPT_THREADS) adapter_up_kernel(const __grid_constant__ dk_model m, const __grid_constant__ dk_work w,
                                                                                            const __grid_constant__ adapter p)
{
#ifdef HOPPER
    SHARED_MEMORY(smem);
    float *us = (float *)smem; // [which][rank][NC]
    int row = (int)(blockIdx.x * ADAPT_THREADS + threadIdx.x), tile = row / 16, in = row % 16, each = padded_rank(m) * NC, which = 0;
    if (K == DK_GATE_UP) {
        which = in >> 3;
    } else if (K == DK_QKV) {
        int head = tile / (m.hd / 16);
        which = head < m.heads ? 0 : head < m.heads + m.kv_heads ? 1 : 2;
    }
    const uint16_t *a = nullptr, *b = nullptr;
    if (tile < p.tiles && p.b[which])
        tile_rows<K>(m, p.b, m.rank, tile, in & 7, a, b);
    const uint16_t *from = in < 8 ? a : b;
    let_next_begin();
    wait_for_last();
    for (int i = threadIdx.x; i < 3 * each; i += ADAPT_THREADS) {
        float sum = 0;
        if (p.a[i / each])
#pragma unroll
            for (int s = 0; s < ADAPT_PARTS; s++)
                sum += __ldcg(w.u + (int64_t)s * 3 * each + i);
        us[i] = sum;
    }
    __syncthreads();
    if (tile >= p.tiles)
        return;
    float acc[NC];
#pragma unroll
    for (int i = 0; i < NC; i++)
        acc[i] = 0;
    for (int j = 0; from && j < m.rank; j++) {
        float v = bf16_to_float(from[j]);
#pragma unroll
        for (int i = 0; i < NC; i++)
            acc[i] = fmaf(v, us[(which * padded_rank(m) + j) * NC + i], acc[i]);
    }
    int cols = w.step->cols, kd = padded(m.d);
#pragma unroll
    for (int i = 0; i < NC; i++) {
        if (K == DK_QKV || K == DK_GATE_UP)
            w.extra[(int64_t)row * NC + i] = acc[i] * m.adapter_scale;
        else if (from && i < cols)
            w.x[(int64_t)i * kd + row] += acc[i] * m.adapter_scale;
    }
#endif
}

// ---- packing, filling ----

// The nearest e4m3 (ties to even), saturating; v / scale is within 448.
__device__ __forceinline__ uint8_t to_e4m3(float v)
{
    uint32_t bits = __float_as_uint(v), sign = bits >> 24 & 0x80;
    float a = fabsf(v);
    if (!(a < 464))
        return (uint8_t)(sign | 0x7e);
    if (a < 0.015625f) // below 2^-6: steps of 2^-9
        return (uint8_t)(sign | (uint32_t)rintf(a * 512));
    bits &= 0x7fffffffu;
    bits += 0x7ffffu + (bits >> 20 & 1);      // round to 3 bits
    uint32_t e = (bits >> 23) - 120, q = e << 3 | (bits >> 20 & 7);
    return (uint8_t)(sign | (q > 0x7e ? 0x7e : q));
}

// The power of two at or above v: with such scales, what e4m3 stores is exact in bfloat16, too.
__device__ __forceinline__ float power_above(float v)
{
    uint32_t u = __float_as_uint(v);
    u = u & 0x7fffffu ? (u & 0x7f800000u) + 0x800000u : u;
    return u < 0x08000000u ? __uint_as_float(0x08000000u) : __uint_as_float(u); // zeros, and what is next to nothing
}

__device__ __forceinline__ float from_e4m3(uint8_t q)
{
    int e = q >> 3 & 15, f = q & 7;
    float v = e ? __uint_as_float((uint32_t)(e + 120) << 23 | (uint32_t)f << 20) : (float)f * 0.001953125f;
    return q & 0x80 ? -v : v;
}

// A block a row of a matrix [rows][cols]: what packing to e4m3 and back makes of it.
__global__ void round_kernel(uint16_t *w, int64_t cols)
{
    SHARED_MEMORY(smem);
    float *top = (float *)smem, v = 0;
    w += (int64_t)blockIdx.x * cols;
    for (int64_t i = threadIdx.x; i < cols; i += blockDim.x)
        v = fmaxf(v, fabsf(bf16_to_float(w[i])));
    top[threadIdx.x] = v;
    __syncthreads();
    for (unsigned i = 0; i < blockDim.x; i++)
        v = fmaxf(v, top[i]);
    float s = power_above(v / 448);
    for (int64_t i = threadIdx.x; i < cols; i += blockDim.x)
        w[i] = to_bf16(from_e4m3(to_e4m3(bf16_to_float(w[i]) / s)) * s);
}

// A block a tile: the 64 columns that a row of a chunk has lie so that a lane's 16 bytes are eight columns of the first 32 and the
// same eight of the others, each four of them in the order in which widen() takes them.
template <int K> __global__ void pack_kernel(const __grid_constant__ dk_model m, const __grid_constant__ product p, uint8_t *dst, float *scale)
{
    SHARED_MEMORY(smem);
    float *top = (float *)smem; // [16][16], then [16] of 1 / scale
    int tile = blockIdx.x, row = threadIdx.x & 15, at = threadIdx.x >> 4, chunks = chunks_of(p, true);
    const uint16_t *a, *b, *from;
    tile_rows<K>(m, p.w, p.pitch, tile, row & 7, a, b);
    from = row < 8 ? a : b;
    float v = 0;
    for (int i = at; from && i < p.k; i += 16)
        v = fmaxf(v, fabsf(bf16_to_float(from[i])));
    top[row * 16 + at] = v;
    __syncthreads();
    if (at == 0) {
        for (int i = 1; i < 16; i++)
            v = fmaxf(v, top[row * 16 + i]);
        scale[tile * 16 + row] = power_above(v / 448);
        top[256 + row] = 1 / power_above(v / 448);
    }
    __syncthreads();
    static const uint8_t order[4] = {2, 0, 3, 1}; // the value that a byte of four holds
    for (int i = at; i < chunks * 64; i += 16) {
        int in = i & 15, col = i / 64 * 64 + (i & 63) / 16 * 8 + (in >> 3) * 32 + (in & 4) + order[in & 3];
        float y = from && col < p.k ? bf16_to_float(from[col]) : 0;
        dst[((int64_t)tile * chunks + i / 64) * 1024 + row * 64 + (i & 63)] = to_e4m3(y * top[256 + row]);
    }
}

// A block a (token of 64, kv head): keys row by row, values transposed.
__global__ void fill_kernel(dk_model m, int layer, const uint16_t *k, const uint16_t *v, int64_t stride, int n, const int32_t *pages)
{
    int head_dim = m.head_dim, kv = blockIdx.y, pos = blockIdx.x * 64 + (threadIdx.x & 63);
    if (pos >= n)
        return;
    uint16_t *kp = (uint16_t *)m.pool + (int64_t)pages[pos / DK_PAGE] * m.page_elems + layer * m.layer_elems +
                   (int64_t)kv * (2 * DK_PAGE * m.hd), *vp = kp + DK_PAGE * m.hd;
    const uint16_t *ks = k + pos * stride + kv * head_dim, *vs = v + pos * stride + kv * head_dim;
    int half = head_dim / 2;
    for (int i = threadIdx.x >> 6; i < head_dim; i += 4) {
        int place = i < half ? i : m.hd / 2 + i - half; // the halves of a padded head
        kp[pos % DK_PAGE * m.hd + place] = ks[i];
        vp[i * DK_PAGE + pos % DK_PAGE] = vs[i];
    }
}

// ---- choosing tokens ----

__device__ __forceinline__ int padded16(int n) { return (n + 15) / 16 * 16; }

enum { SAMPLE_THREADS = 1024, BINS = 2048 };

__device__ __forceinline__ uint32_t hash(uint64_t seed, uint32_t place, uint32_t id)
{
    uint64_t z = seed + 0x9e3779b97f4a7c15ull * (((uint64_t)place << 32 | id) + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (uint32_t)((z ^ (z >> 31)) >> 32);
}

__device__ __forceinline__ bool better(float y, int i, float best, int id)
{
    return y > best || (y == best && i < id);
}

// The best (value, id) of all threads, in thread 0 and then in everybody.
__device__ __forceinline__ void block_best(float &best, int &id, float *val, int *idx)
{
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int o = 16; o; o >>= 1) {
        float y = __shfl_xor_sync(~0u, best, o);
        int i = __shfl_xor_sync(~0u, id, o);
        if (better(y, i, best, id)) {
            best = y;
            id = i;
        }
    }
    if (lane == 0) {
        val[warp] = best;
        idx[warp] = id;
    }
    __syncthreads();
    for (int k = 0; k < SAMPLE_THREADS / 32; k++)
        if (better(val[k], idx[k], best, id)) {
            best = val[k];
            id = idx[k];
        }
    __syncthreads();
}

// A block a column.  Sampling: the tokens above a threshold (top-k, top-p), found by two rounds of histograms of
// (max - logit) / temperature in units of 2^-6 and 2^-17, whole numbers only so that the order of adding does not matter;
// among them the Gumbel-max choice: argmax(logit / t - log(-log(u))), u from (seed, place, id).
__global__ void __launch_bounds__(SAMPLE_THREADS) sample_kernel(dk_model m, dk_work w, int nc, int grid, const dk_sampling *all,
                                                                const uint32_t *mask, int mask_words, int32_t *out)
{
    SHARED_MEMORY(smem);
    float *val = (float *)smem;
    int *idx = (int *)(smem + 128);
    uint64_t *mass = (uint64_t *)(smem + 256);
    uint32_t *count = (uint32_t *)(mass + BINS);
    int *cut = (int *)(count + BINS);
    int col = blockIdx.x, tid = threadIdx.x;
    const dk_sampling s = all[col];
    const float *logits = w.logits + (int64_t)col * padded16(m.rows);
    const uint32_t *bits = s.masked ? mask + (int64_t)col * mask_words : nullptr;
    float best = -INFINITY;
    int id = 0x7fffffff;
    if (!bits && s.temperature <= 0) {
        for (int i = tid; i < grid; i += SAMPLE_THREADS) {
            float2 v = *(const float2 *)(w.best + ((int64_t)i * nc + col) * 2);
            int k = (int)__float_as_uint(v.y);
            if (better(v.x, k, best, id)) {
                best = v.x;
                id = k;
            }
        }
    } else {
#pragma unroll 8
        for (int i = tid; i < m.vocab; i += SAMPLE_THREADS) {
            float v = logits[i];
            if ((!bits || bits[i >> 5] >> (i & 31) & 1) && better(v, i, best, id)) {
                best = v;
                id = i;
            }
        }
    }
    block_best(best, id, val, idx);
    bool none = id == 0x7fffffff || !(best < INFINITY); // nothing but NaN, or an overflow
    if (none || s.temperature <= 0) {
        if (tid == 0)
            out[col] = none ? -1 : id;
        return;
    }
    float top = best, f = 1 / s.temperature;
    bool filter = s.top_k > 0 || (s.top_p > 0 && s.top_p < 1);
    uint32_t low = 0, limit = 0xffffffffu; // places below the limit are in, in units of 2^-17
    uint64_t mass_above = 0, want_mass = ~0ull;
    uint32_t count_above = 0;
    for (int round = 0; filter && round < 2; round++) {
        for (int i = tid; i < BINS; i += SAMPLE_THREADS) {
            mass[i] = 0;
            count[i] = 0;
        }
        __syncthreads();
        for (int i = tid; i < m.vocab; i += SAMPLE_THREADS) {
            float z = (top - logits[i]) * f;
            if ((bits && !(bits[i >> 5] >> (i & 31) & 1)) || !(z < 32)) // what is e^-32 below the best is never chosen
                continue;
            uint32_t place = (uint32_t)(z * 131072), bin = round ? place - low : place >> 11;
            if (bin >= BINS)
                continue;
            atomicAdd((unsigned long long *)&mass[bin], (unsigned long long)(exp2f(-1.44269504f * z) * 1099511627776.0f));
            atomicAdd(&count[bin], 1u);
        }
        __syncthreads();
        if (tid == 0) {
            uint64_t total = 0;
            if (!round) {
                for (int i = 0; i < BINS; i++)
                    total += mass[i];
                if (s.top_p > 0 && s.top_p < 1)
                    want_mass = (uint64_t)((double)total * s.top_p);
            }
            int i = 0;
            for (; i < BINS - 1; i++) { // the bin in which the last token that is in lies
                if (mass_above + mass[i] >= want_mass || (s.top_k > 0 && count_above + count[i] >= (uint32_t)s.top_k))
                    break;
                mass_above += mass[i];
                count_above += count[i];
            }
            *cut = i;
        }
        __syncthreads();
        if (!round)
            low = (uint32_t)*cut << 11;
        else
            limit = low + (uint32_t)*cut + 1;
        __syncthreads();
    }
    best = -INFINITY;
    id = 0x7fffffff;
    for (int i = tid; i < m.vocab; i += SAMPLE_THREADS) {
        float z = (top - logits[i]) * f;
        if ((bits && !(bits[i >> 5] >> (i & 31) & 1)) || !(z < 32) || (uint32_t)(z * 131072) >= limit)
            continue;
        float u = ((float)(hash(s.seed, (uint32_t)s.place, (uint32_t)i) >> 8) + 0.5f) * 5.9604644775390625e-8f;
        float y = -z - logf(-logf(u));
        if (better(y, i, best, id)) {
            best = y;
            id = i;
        }
    }
    block_best(best, id, val, idx);
    if (tid == 0)
        out[col] = id == 0x7fffffff ? 0 : id;
}

enum { SAMPLE_SMEM = 256 + BINS * 12 + 16 };

// ---- the chain of kernels ----

#ifdef EMULATE
struct recorder {
    int launches;
};
#else
struct recorder {
    cudaStream_t stream;
    int launches;
};
#endif

// One kernel after the other; all but the first may begin before the one before has ended.
template <class... P, class... A> int launch(recorder &r, void (*f)(P...), int gx, int gy, int threads, int smem, A... a)
{
#ifdef EMULATE
    r.launches++;
    return emulate((unsigned)gx, (unsigned)gy, (unsigned)threads, (size_t)smem, [=] { f(a...); });
#else
    cudaLaunchConfig_t c = {};
    cudaLaunchAttribute early;
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    c.gridDim = dim3(gx, gy);
    c.blockDim = dim3(threads);
    c.dynamicSmemBytes = smem;
    c.stream = r.stream;
    c.attrs = &early;
    c.numAttrs = r.launches++ ? 1 : 0;
    cudaError_t rc = smem > 48 << 10 ? cudaFuncSetAttribute((const void *)f, cudaFuncAttributeMaxDynamicSharedMemorySize, smem) : cudaSuccess;
    if (rc == cudaSuccess) // else a multiprocessor splits its memory as the kernel that it runs wants it, and none begins beside it
        rc = cudaFuncSetAttribute((const void *)f, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
    return rc == cudaSuccess ? cudaLaunchKernelEx(&c, f, (P)a...) : rc;
#endif
}

// More than half of a multiprocessor's 227 KB, so that no two of a kernel's blocks share one.
enum { MOST = 116 << 10 };

template <int NC, bool FP8> constexpr int rows_smem_least() { return ROW_SLICES * depth<NC, FP8>::rows * 1024 + 2 * (NC <= 8 ? 2 : 1) * ROW_SLICES * NC * RED_PITCH * 4 + SQUARES * NC * 4; }

template <int NC, bool FP8> int rows_smem(int k)
{
    int n = rows_smem_least<NC, FP8>() + (depth<NC, FP8>::in_registers ? 0 : (k + 63) / 64 * 64 * NC * 2);
    return n > MOST ? n : MOST;
}

template <int NC, bool FP8, int K> constexpr int sums_smem()
{
    return SUM_WARPS * (K == DK_OUT ? depth<NC, FP8>::out : depth<NC, FP8>::down) * sum_slot<NC, FP8>() + SUM_SLICES * NC * 16 * 4 + (NC == 1 ? 2 * DK_NEXT_NUMBERS : 0);
}

template <int NC, bool FP8, int K> int launch_rows(recorder &r, const dk_model &m, const dk_work &w, int sms, const product &p)
{
    constexpr int groups = groups_of<NC, FP8, K>();
    void (*f)(dk_model, dk_work, product) = rows_kernel<NC, FP8, K, HELD, groups>;
    if constexpr (depth<NC, FP8>::in_registers && most_held<NC>() > HELD)
        if (p.k > ROW_SLICES * HELD * 32)
            f = rows_kernel<NC, FP8, K, most_held<NC>(), groups>;
    return launch(r, f, p.tiles < sms ? p.tiles : sms, 1, groups * ROW_THREADS, rows_smem<NC, FP8>(p.k), m, w, p);
}

template <int NC, bool FP8, int K> int launch_sums(recorder &r, const dk_model &m, const dk_work &w, const product &p)
{
    return launch(r, sums_kernel<NC, FP8, K>, p.tiles, 1, SUM_WARPS * 32, sums_smem<NC, FP8, K>(), m, w, p);
}

int tiles_of(const dk_model &m, int kind)
{
    int rows = kind == DK_QKV ? (m.heads + 2 * m.kv_heads) * m.hd : kind == DK_GATE_UP ? (m.ff + 7) / 8 * 16 : kind == DK_HEAD ? m.rows : m.d;
    return (rows + 15) / 16;
}

int columns_of(const dk_model &m, int kind)
{
    return kind == DK_OUT ? m.heads * m.head_dim : kind == DK_DOWN ? m.ff : m.d;
}

product product_of(const dk_model &m, const dk_work &w, int kind, int layer, int kernel)
{
    product p = {};
    const dk_layer *l = kind == DK_HEAD ? nullptr : &m.layer[layer];
    p.k = columns_of(m, kind);
    p.pitch = l ? l->pitch[kind] : p.k;
    p.tiles = tiles_of(m, kind);
    p.layer = layer;
    p.mark = kernel;
    p.scale = !m.fp8 ? nullptr : l ? l->scale[kind] : m.head_scale;
    p.x = kind == DK_OUT ? w.ao : kind == DK_DOWN ? w.act : w.h;
    switch (kind) {
    case DK_QKV:
        for (int i = 0; i < 3; i++) {
            p.w[i] = l->qkv[i];
            p.add[i] = l->bias[i];
        }
        break;
    case DK_OUT:
        p.w[0] = l->out;
        p.add[0] = l->norm2;
        break;
    case DK_GATE_UP:
        p.w[0] = l->gate_up[0];
        p.w[1] = l->gate_up[1];
        break;
    case DK_DOWN:
        p.w[0] = l->down;
        p.add[0] = layer + 1 < m.layers ? m.layer[layer + 1].norm1 : m.norm;
        break;
    default:
        p.w[0] = m.head;
    }
    return p;
}

// Before product p.
template <int NC, int K> int launch_adapter(recorder &r, const dk_model &m, const dk_work &w, product &p)
{
    const dk_layer &l = m.layer[p.layer];
    adapter a = {};
    bool some = false;
    for (int i = 0; i < 3 && m.rank; i++) {
        a.a[i] = l.a[K][i];
        a.b[i] = l.b[K][i];
        some |= a.a[i] != nullptr;
    }
    if (!some)
        return 0;
    a.x = p.x;
    a.k = p.k;
    a.tiles = p.tiles;
    p.extra = K == DK_QKV || K == DK_GATE_UP ? w.extra : nullptr;
    int most = K == DK_QKV ? 3 : K == DK_GATE_UP ? 2 : 1;
    int rc = launch(r, adapter_down_kernel<NC>, most * padded_rank(m) / 16, ADAPT_PARTS, ADAPT_THREADS, ADAPT_WARPS * NC * RED_PITCH * 4, m, w, a);
    return rc ? rc : launch(r, adapter_up_kernel<NC, K>, (p.tiles * 16 + ADAPT_THREADS - 1) / ADAPT_THREADS, 1, ADAPT_THREADS, 3 * padded_rank(m) * NC * 4, m, w, a);
}

template <int NC, bool FP8, int HD> int run_chain(recorder &r, const dk_model &m, const dk_work &w, int way, int sms)
{
    const dividers by = dividers_of(m);
    int n = 0, rc = launch(r, embed_kernel<NC>, tiles_of(m, DK_OUT), 1, 256, 0, m, w, m.layer[0].norm1);
    for (int l = 0; l < m.layers && !rc; l++) {
        product p = product_of(m, w, DK_QKV, l, ++n);
        rc = launch_adapter<NC, DK_QKV>(r, m, w, p);
        if (!rc)
            rc = launch_rows<NC, FP8, DK_QKV>(r, m, w, sms, p);
        n++;
        if (!rc && way == DK_WAY_WIDE)
            rc = launch(r, attend_wide_kernel<HD>, 2 * sms, 1, ATTEND_THREADS, wide_smem<HD>(), m, w, l, n, by);
        else if (!rc)
            rc = launch(r, attend_kernel<HD>, (way == DK_WAY_NEXT ? 1 : 3) * sms, 1, ATTEND_THREADS, attend_smem<HD>(), m, w, l, n, by);
        if (!rc && way != DK_WAY_NEXT)
            rc = launch(r, sum_up_kernel<NC, HD>, (m.heads * NC * 32 + SUM_UP_THREADS - 1) / SUM_UP_THREADS, 1, SUM_UP_THREADS, 0, m, w, ++n);
        p = product_of(m, w, DK_OUT, l, ++n);
        p.parts = way == DK_WAY_NEXT;
        if (!rc)
            rc = launch_adapter<NC, DK_OUT>(r, m, w, p);
        if (!rc)
            rc = launch_sums<NC, FP8, DK_OUT>(r, m, w, p);
        p = product_of(m, w, DK_GATE_UP, l, ++n);
        if (!rc)
            rc = launch_adapter<NC, DK_GATE_UP>(r, m, w, p);
        if (!rc)
            rc = launch_rows<NC, FP8, DK_GATE_UP>(r, m, w, sms, p);
        p = product_of(m, w, DK_DOWN, l, ++n);
        if (!rc)
            rc = launch_adapter<NC, DK_DOWN>(r, m, w, p);
        if (!rc)
            rc = launch_sums<NC, FP8, DK_DOWN>(r, m, w, p);
    }
    return rc ? rc : launch_rows<NC, FP8, DK_HEAD>(r, m, w, sms, product_of(m, w, DK_HEAD, 0, ++n));
}

template <int NC> int run_chain(recorder &r, const dk_model &m, const dk_work &w, int way, int sms)
{
    if (m.hd == 128)
        return m.fp8 ? run_chain<NC, true, 128>(r, m, w, way, sms) : run_chain<NC, false, 128>(r, m, w, way, sms);
    return m.fp8 ? run_chain<NC, true, 64>(r, m, w, way, sms) : run_chain<NC, false, 64>(r, m, w, way, sms);
}

int run_chain(recorder &r, const dk_model &m, const dk_work &w, int nc, int way, int sms)
{
    switch (nc) {
    case 1: return run_chain<1>(r, m, w, way, sms);
    case 8: return run_chain<8>(r, m, w, way, sms);
    case 16: return run_chain<16>(r, m, w, way, sms);
    default: return run_chain<32>(r, m, w, way, sms);
    }
}

template <int NC> bool fits(const dk_model &m, int smem)
{
    int rows = m.fp8 ? rows_smem<NC, true>(m.d) : rows_smem<NC, false>(m.d), sums = m.fp8 ? sums_smem<NC, true, DK_DOWN>() : sums_smem<NC, false, DK_DOWN>();
    return rows <= smem && sums <= smem && (!depth<NC, false>::in_registers || m.d <= ROW_SLICES * most_held<NC>() * 32);
}

struct plan {
    dk_model m;
    dk_work w;
    int nc, way, sms;
#ifndef EMULATE
    cudaGraph_t graph;
    cudaGraphExec_t exec;
#endif
};

} // namespace

#ifdef EMULATE
#define LAUNCH(f, gx, gy, threads, smem, stream, ...) return (void)(stream), emulate(gx, gy, threads, smem, [=] { f(__VA_ARGS__); })
#else
#define LAUNCH(f, gx, gy, threads, smem, stream, ...) \
    do { \
        f<<<dim3(gx, gy), threads, smem, (cudaStream_t)(stream)>>>(__VA_ARGS__); \
        return cudaGetLastError(); \
    } while (0)
#endif

extern "C" {

int k_decode_max_cols(const struct dk_model *m, int smem)
{
    return !fits<1>(*m, smem) || !fits<8>(*m, smem) ? 0 : !fits<16>(*m, smem) ? 8 : !fits<32>(*m, smem) ? 16 : 32;
}

int64_t k_decode_rows(const struct dk_model *m, enum dk_kind kind) { return (int64_t)tiles_of(*m, kind) * 16; }

int64_t k_decode_bytes(const struct dk_model *m, enum dk_kind kind)
{
    return (int64_t)tiles_of(*m, kind) * ((columns_of(*m, kind) + 63) / 64) * 1024;
}

int k_decode_kernels(const struct dk_model *m, enum dk_way way, int *kinds)
{
    int n = 0;
    kinds[n++] = -1;
    for (int l = 0; l < m->layers; l++) {
        kinds[n++] = DK_QKV;
        kinds[n++] = -2;
        if (way != DK_WAY_NEXT)
            kinds[n++] = -3;
        kinds[n++] = DK_OUT;
        kinds[n++] = DK_GATE_UP;
        kinds[n++] = DK_DOWN;
    }
    kinds[n++] = DK_HEAD;
    return n;
}

int k_decode_plan(const struct dk_model *m, const struct dk_work *w, int nc, enum dk_way way, int sms, int smem, void **out)
{
    struct plan *p = (struct plan *)calloc(1, sizeof *p);
    (void)smem;
    if (!p)
        return 2;
    *p = {*m, *w, nc, way, sms};
    *out = p;
#ifdef EMULATE
    return 0;
#else
    recorder r = {};
    cudaError_t rc = cudaStreamCreateWithFlags(&r.stream, cudaStreamNonBlocking), end;
    if (rc == cudaSuccess && (rc = cudaStreamBeginCapture(r.stream, cudaStreamCaptureModeThreadLocal)) == cudaSuccess) {
        rc = (cudaError_t)run_chain(r, *m, *w, nc, way, sms);
        end = cudaStreamEndCapture(r.stream, &p->graph);
        rc = rc == cudaSuccess ? end : rc;
    }
    if (rc == cudaSuccess)
        rc = cudaGraphInstantiate(&p->exec, p->graph, 0);
    if (r.stream)
        cudaStreamDestroy(r.stream);
    return rc;
#endif
}

int k_decode_step(void *stream, void *plan)
{
    struct plan *p = (struct plan *)plan;
#ifdef EMULATE
    recorder r = {};
    (void)stream;
    return run_chain(r, p->m, p->w, p->nc, p->way, p->sms);
#else
    return cudaGraphLaunch(p->exec, (cudaStream_t)stream);
#endif
}

int k_decode_plan_free(void *plan)
{
    int rc = 0;
#ifndef EMULATE
    struct plan *p = (struct plan *)plan;
    if (p && p->exec)
        rc = cudaGraphExecDestroy(p->exec);
    if (p && p->graph)
        rc = cudaGraphDestroy(p->graph);
#endif
    free(plan);
    return rc;
}

int k_decode_pack(void *stream, const struct dk_model *m, enum dk_kind kind, const void *const *w, int64_t pitch, void *dst, float *scale)
{
    product p = {};
    p.k = columns_of(*m, kind);
    p.pitch = (int)pitch;
    p.tiles = tiles_of(*m, kind);
    for (int i = 0; i < (kind == DK_QKV ? 3 : kind == DK_GATE_UP ? 2 : 1); i++)
        p.w[i] = w[i];
    dk_model c = *m;
    uint8_t *to = (uint8_t *)dst;
    switch (kind) {
    case DK_QKV: LAUNCH(pack_kernel<DK_QKV>, p.tiles, 1, 256, 272 * 4, stream, c, p, to, scale);
    case DK_GATE_UP: LAUNCH(pack_kernel<DK_GATE_UP>, p.tiles, 1, 256, 272 * 4, stream, c, p, to, scale);
    case DK_HEAD: LAUNCH(pack_kernel<DK_HEAD>, p.tiles, 1, 256, 272 * 4, stream, c, p, to, scale);
    default: LAUNCH(pack_kernel<DK_OUT>, p.tiles, 1, 256, 272 * 4, stream, c, p, to, scale); // out and down: rows of d
    }
}

int k_decode_round(void *stream, void *w, int64_t rows, int64_t cols)
{
    LAUNCH(round_kernel, (unsigned)rows, 1, 256, 1024, stream, (uint16_t *)w, cols);
}

int k_decode_fill(void *stream, const struct dk_model *m, int layer, const void *k, const void *v, int64_t stride, int n, const int32_t *pages)
{
    if (n < 1)
        return 0;
    LAUNCH(fill_kernel, (n + 63) / 64, m->kv_heads, 256, 0, stream, *m, layer, (const uint16_t *)k, (const uint16_t *)v, stride, n, pages);
}

int k_decode_sample(void *stream, const struct dk_model *m, const struct dk_work *w, int nc, int sms, int cols, const struct dk_sampling *s,
                    const uint32_t *mask, int mask_words, int32_t *out)
{
    int tiles = tiles_of(*m, DK_HEAD), grid = (tiles < sms ? tiles : sms) * (nc == 1 && m->fp8 ? groups_of<1, true, DK_HEAD>() : 1);
    LAUNCH(sample_kernel, cols, 1, SAMPLE_THREADS, SAMPLE_SMEM, stream, *m, *w, nc, grid, s, mask, mask_words, out);
}

#ifndef EMULATE
int k_decode_device(int *sms, int *smem, int *capability)
{
    int device, major, minor;
    cudaError_t rc = cudaGetDevice(&device);
    if (rc == cudaSuccess)
        rc = cudaDeviceGetAttribute(sms, cudaDevAttrMultiProcessorCount, device);
    if (rc == cudaSuccess)
        rc = cudaDeviceGetAttribute(smem, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (rc == cudaSuccess)
        rc = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (rc == cudaSuccess)
        rc = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    *capability = rc == cudaSuccess ? major * 10 + minor : 0;
    return rc;
}

int k_host_alloc(size_t n, void **out) { return cudaHostAlloc(out, n, cudaHostAllocDefault); }
int k_host_free(void *p) { return cudaFreeHost(p); }
int k_copy(void *stream, void *dst, const void *src, size_t n) { return cudaMemcpyAsync(dst, src, n, cudaMemcpyDefault, (cudaStream_t)stream); }
int k_wait(void *stream) { return cudaStreamSynchronize((cudaStream_t)stream); }
#else
int k_decode_device(int *sms, int *smem, int *capability)
{
    *sms = 2;
    *smem = 232448;
    *capability = 90;
    return 0;
}
int k_host_alloc(size_t n, void **out) { return (*out = calloc(1, n)) ? 0 : 2; }
int k_host_free(void *p) { free(p); return 0; }
int k_copy(void *, void *dst, const void *src, size_t n) { memcpy(dst, src, n); return 0; }
int k_wait(void *) { return 0; }
#endif

} // extern "C"
