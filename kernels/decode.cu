// decode.cu: one decoding step of a whole transformer as one persistent kernel.  See decode.h for the layouts.
//
// A step reads every weight once; nothing else is large.  So the kernel is a stream of weights with the arithmetic
// hung onto it: on each multiprocessor one producer thread copies its share of all layers' weights, in order, into a
// ring in shared memory (cp.async.bulk), and never waits for anything but a free slot.  Eight warps consume the slots
// (mma.m16n8k16: 16 weight rows by up to 8 tokens, so that 8 tokens cost what one does) and stop at the grid-wide
// barriers between the stages, while the ring fills with what comes after the barrier.
//
//   embed | [ qkv, rope | attention | o, residual, norm | gate-up, SwiGLU | down, residual, norm ] x layers | head
//
// Arithmetic of one token never depends on how many others are in the step: each warp sums its own columns of a row in
// a fixed order, the eight sums are added in the order of the warps, attention is cut into parts by position, and
// what blocks add up together is added in a fixed order by whoever comes last.
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

// Bytes of a slot, and how many slots' worth is fetched into the second-level cache ahead of the ring.
#ifndef SLOT
#define SLOT 16384
#endif
#ifndef L2_AHEAD
#define L2_AHEAD 0
#endif

namespace {

enum { WARPS = 8, CONSUMERS = WARPS * 32, THREADS = CONSUMERS + 32, MAX_SLOTS = 26, PITCH = 20, GROUP_WARPS = 4, P_PITCH = DK_PART * 2 + 64 };

// ---- the machine's instructions ----
#ifndef EMULATE
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define HOPPER 1
#endif

__device__ __forceinline__ uint32_t shared_at(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

#ifdef HOPPER
__device__ __forceinline__ void mbar_init(uint64_t *b, uint32_t n)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_at(b)), "r"(n) : "memory");
}

__device__ __forceinline__ void mbar_arrive(uint64_t *b)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_at(b)) : "memory");
}

__device__ __forceinline__ void mbar_wait(uint64_t *b, uint32_t parity)
{
    asm volatile("{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%0], %1, 0x989680;\n@p bra done;\nbra again;\ndone:\n}"
                 ::"r"(shared_at(b)), "r"(parity) : "memory");
}

// Copies n bytes and counts as the one arrival of b.
__device__ __forceinline__ void bulk_load(void *to, const void *from, uint32_t n, uint64_t *b)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_at(b)), "r"(n) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(shared_at(to)), "l"(from), "r"(n), "r"(shared_at(b)) : "memory");
}
#endif

__device__ __forceinline__ void consumer_sync() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

__device__ __forceinline__ void group_sync(int group) { asm volatile("bar.sync %0, 128;" ::"r"(2 + group) : "memory"); }

__device__ __forceinline__ void prefetch_l2(const void *p, uint32_t n)
{
#ifdef HOPPER
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(n) : "memory");
#endif
}

__device__ __forceinline__ void add_release(uint32_t *p)
{
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(p) : "memory");
}

__device__ __forceinline__ uint32_t load_acquire(const uint32_t *p)
{
    uint32_t v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
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
    uint32_t r;
    asm("{\n.reg .b32 z;\nmov.b32 z, 0x80008000;\nfma.rn.bf16x2 %0, %1, %2, z;\n}" : "=r"(r) : "r"(x), "r"(0x7b807b80));
    return r;
}
__device__ __forceinline__ uint32_t permute(uint32_t x, uint32_t y, uint32_t s) { return __byte_perm(x, y, s); }
__device__ __forceinline__ void relax() {}
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

// Four e4m3 values to two pairs of bfloat16.
__device__ __forceinline__ void widen(uint32_t v, uint32_t &a, uint32_t &b)
{
    uint32_t x = permute(v, 0, 0x1404), y = permute(v, 0, 0x3424); // bytes 0 and 1, 2 and 3, each above a zero
    a = unbias((x & 0x80008000u) | ((x & 0x7f007f00u) >> 4));
    b = unbias((y & 0x80008000u) | ((y & 0x7f007f00u) >> 4));
}

// ---- the step ----

struct unit_range {
    int lo, hi;
};

__device__ __forceinline__ unit_range share(int units, int block, int blocks)
{
    return {(int)((int64_t)units * block / blocks), (int)((int64_t)units * (block + 1) / blocks)};
}

__device__ __forceinline__ int slice_start(const dk_model &m, int s)
{
    return (m.kf / DK_CHUNK) * s / m.slices;
}

// Down's units are (slice, row group), slice by slice; blocks get equal numbers of chunks, to within a unit.
__device__ __forceinline__ int down_lower(const dk_model &m, int block, int blocks)
{
    int64_t at = (int64_t)(m.kf / DK_CHUNK) * m.rg_d * block / blocks;
    for (int s = 0; s < m.slices; s++) {
        int a = slice_start(m, s), n = slice_start(m, s + 1) - a;
        int64_t in = at - (int64_t)a * m.rg_d;
        if (in < (int64_t)n * m.rg_d)
            return s * m.rg_d + (int)((in + n - 1) / n);
    }
    return m.slices * m.rg_d;
}

struct ring {
    unsigned char *slot;
    uint64_t *full, *empty;
    int n, at;
    uint32_t phase;
    __device__ __forceinline__ void next()
    {
        if (++at == n) {
            at = 0;
            phase ^= 1;
        }
    }
};

// All of this block's weights, in pieces of a slot at most, in the order in which the stages want them.
struct stream {
    const dk_model &m;
    const unsigned char *layer_at, *at;
    int layer, stage, u, hi, left, chunk_bytes; // stage: 0 to 3, or 4 for the head

    __device__ stream(const dk_model &m_) : m(m_), layer_at((const unsigned char *)m_.w), at(nullptr), layer(0), stage(-1), u(0), hi(0),
                                            left(0), chunk_bytes(m_.fp8 ? 4096 : 8192)
    {
        next_stage();
    }
    __device__ bool next_stage()
    {
        if (stage == 4)
            return false;
        if (++stage == 4 && layer + 1 < m.layers) {
            stage = 0;
            layer++;
            layer_at += m.layer_bytes;
        } else if (stage == 4) {
            layer_at += m.layer_bytes;
        }
        unit_range s = share(stage == 0 ? m.rg_qkv : stage == 1 ? m.rg_d : stage == 2 ? m.rg_gu : m.rg_head, blockIdx.x, gridDim.x);
        u = stage == 3 ? down_lower(m, blockIdx.x, gridDim.x) : s.lo;
        hi = stage == 3 ? down_lower(m, blockIdx.x + 1, gridDim.x) : s.hi;
        return true;
    }
    __device__ bool next(const unsigned char *&from, int &bytes)
    {
        while (!left) {
            while (u == hi)
                if (!next_stage())
                    return false;
            if (stage == 3) {
                int s = u / m.rg_d, a = slice_start(m, s);
                at = layer_at + m.off_down + ((int64_t)(u % m.rg_d) * (m.kf / DK_CHUNK) + a) * chunk_bytes;
                left = (slice_start(m, s + 1) - a) * chunk_bytes;
            } else {
                left = (stage == 1 ? m.kq : m.kd) / DK_CHUNK * chunk_bytes;
                at = layer_at + (stage == 1 ? m.off_o : stage == 2 ? m.off_gu : 0) + (int64_t)u * left;
            }
            u++;
        }
        from = at;
        bytes = left < SLOT ? left : SLOT;
        at += bytes;
        left -= bytes;
        return true;
    }
};

__device__ __forceinline__ uint16_t *page_of(const dk_model &m, const dk_work &w, const dk_step &step, int seq, int page_no, int layer, int kv)
{
    return (uint16_t *)m.pool + (int64_t)w.step->pages[seq * step.max_pages + page_no] * m.page_elems + layer * m.layer_elems +
           (int64_t)kv * (2 * DK_PAGE * m.hd);
}

// Attention's units: (sequence, kv head, part of its keys).
struct attention_unit {
    int seq, kv, part;
    __device__ attention_unit(const dk_step &step, int u)
    {
        seq = 0;
        while (seq + 1 < step.seqs && step.seq[seq + 1].unit <= u)
            seq++;
        int in = u - step.seq[seq].unit, parts = step.seq[seq].parts;
        kv = in / parts;
        part = in % parts;
    }
};

// The producer thread.  Weights come into the second-level cache L2_AHEAD pieces before the ring has room for them, so that
// memory has work while the blocks wait for each other; and so do the keys and values of the next layer.
__device__ void produce(const dk_model &m, const dk_work &w, const dk_step &step, ring r)
{
#ifdef HOPPER
    stream now(m), ahead(m);
    const unsigned char *from, *later;
    int bytes, n, layer = -1, lead = 0;
    while (now.next(from, bytes)) {
        if (now.layer != layer) {
            layer = now.layer;
            for (int u = blockIdx.x * 2, k = 0; k < 4 && u < step.units; u += k & 1 ? 2 * gridDim.x - 1 : 1, k++) {
                attention_unit a(step, u);
                uint16_t *kp = page_of(m, w, step, a.seq, a.part / DK_PARTS, layer, a.kv);
                prefetch_l2(kp + a.part % DK_PARTS * DK_PART * m.hd, DK_PART * m.hd * 2);
                if (a.part % DK_PARTS == 0)
                    prefetch_l2(kp + DK_PAGE * m.hd, DK_PAGE * m.hd * 2);
            }
        }
        for (; lead < L2_AHEAD + 1 && ahead.next(later, n); lead++)
            if (L2_AHEAD > 0)
                prefetch_l2(later, (uint32_t)n);
        lead--;
        mbar_wait(&r.empty[r.at], r.phase ^ 1);
        bulk_load(r.slot + r.at * SLOT, from, (uint32_t)bytes, &r.full[r.at]);
        r.next();
    }
#endif
}

// Columns are NT tiles of 8.
template <int NT, bool FP8, int HD> struct consumer {
    enum { NC = NT * 8, CHUNK_BYTES = FP8 ? 4096 : 8192, SLOT_CHUNKS = SLOT / CHUNK_BYTES };
    const dk_model &m;
    const dk_work &w;
    dk_step &step;       // a copy in shared memory, but for the pages
    ring r;
    unsigned char *xs;   // the columns' vectors in shared memory
    float *red;          // [WARPS][NC][PITCH]
    float *rstd;         // [NC]
    float *wmax, *wsum;  // [WARPS][16]
    unsigned char *p;    // [2 groups][16] rows of P_PITCH bytes (shares red's place)
    int *flag;
    uint32_t barriers;
    int tid, warp, lane, cols, marks;
    uint64_t starved;

    __device__ __forceinline__ consumer(const dk_model &m_, const dk_work &w_, dk_step &s) : m(m_), w(w_), step(s) {}

    __device__ __forceinline__ void mark()
    {
        if (w.trace && tid == 0 && marks < DK_MARKS) {
            uint64_t *t = w.trace + ((int64_t)blockIdx.x * DK_MARKS + marks++) * 2;
            t[0] = (uint64_t)clock64();
            t[1] = starved;
        }
    }

    __device__ void grid_sync()
    {
        barriers += gridDim.x;
        consumer_sync();
        if (tid == 0) { // what the others wrote before they met here is released and acquired with it
            add_release(&w.step->barrier);
            while (load_acquire(&w.step->barrier) < barriers)
                relax();
        }
        consumer_sync();
    }

    // [k32][NC][32] bfloat16 to shared memory; columns that are not there are left as they are.  With norm, also each
    // column's 1 / rms, from sums of squares that are asked for first, so that both come at once.
    __device__ void load_x(const void *from, int k32, bool norm)
    {
        enum { AHEAD = 8 };
        float v[AHEAD];
        if (norm && warp < cols)
#pragma unroll
            for (int i = 0; i < AHEAD; i++)
                v[i] = i * 32 + lane < m.rg_d ? __ldcg(w.sumsq + (i * 32 + lane) * NC + warp) : 0;
        const uint4 *src = (const uint4 *)from;
        uint4 *dst = (uint4 *)xs;
        int n = k32 * NC * 4, per = cols * 4;
        if (per == NC * 4) {
#pragma unroll 8
            for (int i = tid; i < n; i += CONSUMERS)
                dst[i] = __ldcg(src + i);
        } else {
            n = k32 * per;
#pragma unroll 4
            for (int i = tid; i < n; i += CONSUMERS) {
                int at = i / per * (NC * 4) + i % per;
                dst[at] = __ldcg(src + at);
            }
        }
        if (norm)
            for (int c = warp; c < cols; c += WARPS) {
                float s = 0;
#pragma unroll
                for (int i = 0; i < AHEAD; i++)
                    s += c == warp ? v[i] : i * 32 + lane < m.rg_d ? __ldcg(w.sumsq + (i * 32 + lane) * NC + c) : 0;
                for (int i = AHEAD * 32 + lane; i < m.rg_d; i += 32)
                    s += __ldcg(w.sumsq + i * NC + c);
#pragma unroll
                for (int o = 16; o; o >>= 1)
                    s += __shfl_xor_sync(~0u, s, o);
                if (lane == 0)
                    rstd[c] = rsqrtf(s / (float)m.d + m.eps);
            }
        consumer_sync();
    }

    // One unit: 16 rows by `chunks` chunks of x, whose first is `first`.  After it red holds the warps' sums.
    __device__ void unit(int chunks, int first)
    {
        float acc[NT][4];
#pragma unroll
        for (int t = 0; t < NT; t++)
            acc[t][0] = acc[t][1] = acc[t][2] = acc[t][3] = 0;
        for (int done = 0; done < chunks; done += SLOT_CHUNKS, r.next()) {
#ifdef HOPPER
            uint64_t t0 = w.trace ? (uint64_t)clock64() : 0;
            mbar_wait(&r.full[r.at], r.phase);
            if (w.trace)
                starved += (uint64_t)clock64() - t0;
#endif
            const unsigned char *s = r.slot + r.at * SLOT + warp * (CHUNK_BYTES / 8);
#pragma unroll
            for (int i = 0; i < SLOT_CHUNKS; i++) {
                if (done + i >= chunks)
                    break;
                uint4 a, b;
                if (FP8) {
                    uint2 u = ((const uint2 *)(s + i * CHUNK_BYTES))[lane], v = ((const uint2 *)(s + i * CHUNK_BYTES + 256))[lane];
                    widen(u.x, a.x, a.y);
                    widen(u.y, a.z, a.w);
                    widen(v.x, b.x, b.y);
                    widen(v.y, b.z, b.w);
                } else {
                    a = ((const uint4 *)(s + i * CHUNK_BYTES))[lane];
                    b = ((const uint4 *)(s + i * CHUNK_BYTES + 512))[lane];
                }
                const uint4 *x = (const uint4 *)(xs + ((first + done + i) * 8 + warp) * (NC * 64)) + lane;
#pragma unroll
                for (int t = 0; t < NT; t++) {
                    uint4 v = x[t * 32];
                    mma(acc[t], a.x, b.x, a.y, b.y, v.x, v.y);
                    mma(acc[t], a.z, b.z, a.w, b.w, v.z, v.w);
                }
            }
            __syncwarp();
#ifdef HOPPER
            if (lane == 0)
                mbar_arrive(&r.empty[r.at]);
#endif
        }
        consumer_sync(); // red has been read
        int g = lane >> 2, c = lane & 3;
#pragma unroll
        for (int t = 0; t < NT; t++) {
            float *o = red + (warp * NC + t * 8 + 2 * c) * PITCH + g;
            o[0] = acc[t][0];
            o[PITCH] = acc[t][1];
            o[8] = acc[t][2];
            o[PITCH + 8] = acc[t][3];
        }
        consumer_sync();
    }

    // This thread's row pair (row, row + 8) and column of a unit; false when it has none.
    __device__ __forceinline__ bool mine(int &row, int &col) const
    {
        row = tid & 7;
        col = tid >> 3;
        return col < NC; // whole warps, or none of a warp, so that shuffles work
    }

    __device__ __forceinline__ void sums(int row, int col, float &a, float &b) const
    {
        a = b = 0;
#pragma unroll
        for (int k = 0; k < WARPS; k++) {
            a += red[(k * NC + col) * PITCH + row];
            b += red[(k * NC + col) * PITCH + row + 8];
        }
    }

    __device__ __forceinline__ void put(void *to, int k, int col, float v) const
    {
        ((uint16_t *)to)[((k >> 5) * NC + col) * 32 + (k & 31)] = to_bf16(v);
    }

    // The residual stream's rows of a group: keeps x, writes the next product's h and the sum of squares.
    __device__ __forceinline__ void finish_rows(int rg, int row, int col, float a, float b, float norm_a, float norm_b)
    {
        int i = rg * 16 + row;
        bool here = col < cols;
        if (here) {
            w.x[(int64_t)col * m.kd + i] = a;
            w.x[(int64_t)col * m.kd + i + 8] = b;
            put(w.h, i, col, a * norm_a);
            put(w.h, i + 8, col, b * norm_b);
        }
        float s = a * a + b * b;
#pragma unroll
        for (int o = 4; o; o >>= 1)
            s += __shfl_xor_sync(~0u, s, o);
        if (here && row == 0)
            w.sumsq[rg * NC + col] = s;
    }

    __device__ void embed()
    {
        int row, col;
        if (mine(row, col))
            for (int rg = blockIdx.x; rg < m.rg_d; rg += gridDim.x) {
                int i = rg * 16 + row;
                float a = 0, b = 0;
                if (col < cols) {
                    const uint16_t *e = (const uint16_t *)m.embed + (int64_t)step.token[col] * m.d;
                    a = i < m.d ? bf16_to_float(e[i]) : 0;
                    b = i + 8 < m.d ? bf16_to_float(e[i + 8]) : 0;
                }
                finish_rows(rg, row, col, a, b, m.norm[i], m.norm[i + 8]);
            }
    }

    __device__ __forceinline__ uint16_t *page(int seq, int page_no, int layer, int kv) const
    {
        return page_of(m, w, step, seq, page_no, layer, kv);
    }

    __device__ void qkv(int layer)
    {
        unit_range s = share(m.rg_qkv, blockIdx.x, gridDim.x);
        const float *scale = FP8 ? m.scale + layer * m.layer_rows : nullptr;
        const float *bias = m.bias ? m.bias + (int64_t)layer * m.rg_qkv * 16 : nullptr;
        int per_head = HD / 16;
        if (s.lo < s.hi)
            load_x(w.h, m.kd / 32, true);
        int row, col;
        bool here = mine(row, col) && col < cols;
        int pos = here ? step.pos[col] : 0, seq = here ? step.seq_of[col] : 0;
        for (int u = s.lo; u < s.hi; u++) {
            // what the sums will meet is asked for before they are made
            int head = u / per_head, i = u % per_head * 8 + row;
            float2 add = make_float2(0, 0), cs = make_float2(1, 0), by = make_float2(1, 1);
            uint16_t *to = nullptr;
            bool turned = head < m.heads + m.kv_heads;
            if (here) {
                if (bias)
                    add = make_float2(bias[u * 16 + row], bias[u * 16 + row + 8]);
                if (FP8)
                    by = make_float2(scale[u * 16 + row], scale[u * 16 + row + 8]);
                if (turned)
                    cs = ((const float2 *)m.rope)[(int64_t)pos * (HD / 2) + i];
                if (head < m.heads)
                    to = (uint16_t *)w.q + ((int64_t)col * m.heads + head) * HD + i;
                else if (turned)
                    to = page(seq, pos / DK_PAGE, layer, head - m.heads) + pos % DK_PAGE * HD + i;
                else
                    to = page(seq, pos / DK_PAGE, layer, head - m.heads - m.kv_heads) + DK_PAGE * HD + pos % DK_PAGE +
                         (u % per_head * 16 + row) * DK_PAGE;
            }
            unit(m.kd / DK_CHUNK, 0);
            if (!here)
                continue;
            float a, b;
            sums(row, col, a, b);
            float f = rstd[col];
            a = a * (f * by.x) + add.x;
            b = b * (f * by.y) + add.y;
            to[0] = to_bf16(a * cs.x - b * cs.y);
            to[turned ? HD / 2 : 8 * DK_PAGE] = to_bf16(b * cs.x + a * cs.y);
        }
    }

    // One part of the keys for all query rows (a column and a head each) of a sequence that share a kv head.
    __device__ void attend_part(int seq, int kv, int part, int layer)
    {
        enum { ND = HD / 32, NB = DK_PART / 32 }; // tiles of 8 dimensions of the values that a warp sums; blocks of 32 keys
        int group_no = warp / GROUP_WARPS, wg = warp % GROUP_WARPS;
        float *wmax = this->wmax + group_no * GROUP_WARPS * 16, *wsum = this->wsum + group_no * GROUP_WARPS * 16;
        unsigned char *p = this->p + group_no * 16 * P_PITCH;
        const dk_seq &q = step.seq[seq];
        int group = m.heads / m.kv_heads, rows = q.n * group, g = lane >> 2, c = lane & 3;
        int n = q.pos + q.n - part * DK_PART;
        n = n < DK_PART ? n : DK_PART;
        const uint16_t *kp = page(seq, part / DK_PARTS, layer, kv), *vp = kp + DK_PAGE * HD + part % DK_PARTS * DK_PART;
        kp += part % DK_PARTS * DK_PART * HD;
        const uint4 zero = make_uint4(0, 0, 0, 0);
        uint4 kf[4][HD / 32], vf[ND][NB];
        // both at once, so that memory is waited for once
#pragma unroll
        for (int t = 0; t < 4; t++)
#pragma unroll
            for (int j = 0; j < HD / 32; j++) {
                int key = wg * 32 + t * 8 + g;
                kf[t][j] = key < n ? __ldcg((const uint4 *)(kp + key * HD + j * 32 + c * 8)) : zero;
            }
#pragma unroll
        for (int t = 0; t < ND; t++)
#pragma unroll
            for (int j = 0; j < NB; j++) {
                int key = j * 32 + c * 8, dim = (wg * ND + t) * 8 + g;
                vf[t][j] = key < n ? __ldcg((const uint4 *)(vp + dim * DK_PAGE + key)) : zero;
            }
        float factor = m.qk_scale * 1.4426950408889634f;
        for (int base = 0; base < rows; base += 16) {
            int ra = base + g, rb = ra + 8;
            const uint16_t *qp = (const uint16_t *)w.q;
            // row r: column q.col + r / group, head kv * group + r % group
            const uint16_t *qa = qp + ((int64_t)(q.col + ra / group) * m.heads + kv * group + ra % group) * HD;
            const uint16_t *qb = qp + ((int64_t)(q.col + rb / group) * m.heads + kv * group + rb % group) * HD;
            float s[4][4];
#pragma unroll
            for (int t = 0; t < 4; t++)
                s[t][0] = s[t][1] = s[t][2] = s[t][3] = 0;
#pragma unroll
            for (int j = 0; j < HD / 32; j++) {
                uint4 a = ra < rows ? __ldcg((const uint4 *)(qa + j * 32 + c * 8)) : zero;
                uint4 b = rb < rows ? __ldcg((const uint4 *)(qb + j * 32 + c * 8)) : zero;
#pragma unroll
                for (int t = 0; t < 4; t++) {
                    mma(s[t], a.x, b.x, a.y, b.y, kf[t][j].x, kf[t][j].y);
                    mma(s[t], a.z, b.z, a.w, b.w, kf[t][j].z, kf[t][j].w);
                }
            }
            // keys that a row may see: up to its own position
            int sees_a = q.pos + ra / group - part * DK_PART, sees_b = q.pos + rb / group - part * DK_PART;
            float ma = -INFINITY, mb = -INFINITY;
#pragma unroll
            for (int t = 0; t < 4; t++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    int key = wg * 32 + t * 8 + 2 * c + e;
                    s[t][e] = key <= sees_a ? s[t][e] * factor : -INFINITY;
                    s[t][e + 2] = key <= sees_b ? s[t][e + 2] * factor : -INFINITY;
                    ma = fmaxf(ma, s[t][e]);
                    mb = fmaxf(mb, s[t][e + 2]);
                }
#pragma unroll
            for (int o = 1; o < 4; o <<= 1) {
                ma = fmaxf(ma, __shfl_xor_sync(~0u, ma, o));
                mb = fmaxf(mb, __shfl_xor_sync(~0u, mb, o));
            }
            if (c == 0) {
                wmax[wg * 16 + g] = ma;
                wmax[wg * 16 + g + 8] = mb;
            }
            group_sync(group_no);
            ma = mb = -INFINITY;
#pragma unroll
            for (int k = 0; k < GROUP_WARPS; k++) {
                ma = fmaxf(ma, wmax[k * 16 + g]);
                mb = fmaxf(mb, wmax[k * 16 + g + 8]);
            }
            float za = ma == -INFINITY ? 0 : ma, zb = mb == -INFINITY ? 0 : mb, la = 0, lb = 0;
#pragma unroll
            for (int t = 0; t < 4; t++) {
                float e0 = exp2f(s[t][0] - za), e1 = exp2f(s[t][1] - za), e2 = exp2f(s[t][2] - zb), e3 = exp2f(s[t][3] - zb);
                la += e0 + e1;
                lb += e2 + e3;
                int at = (wg * 32 + t * 8 + 2 * c) * 2;
                *(uint32_t *)(p + g * P_PITCH + at) = pack2(e0, e1);
                *(uint32_t *)(p + (g + 8) * P_PITCH + at) = pack2(e2, e3);
            }
#pragma unroll
            for (int o = 1; o < 4; o <<= 1) {
                la += __shfl_xor_sync(~0u, la, o);
                lb += __shfl_xor_sync(~0u, lb, o);
            }
            if (c == 0) {
                wsum[wg * 16 + g] = la;
                wsum[wg * 16 + g + 8] = lb;
            }
            group_sync(group_no);
            float o[ND][4];
#pragma unroll
            for (int t = 0; t < ND; t++)
                o[t][0] = o[t][1] = o[t][2] = o[t][3] = 0;
#pragma unroll
            for (int j = 0; j < NB; j++) {
                uint4 a = *(const uint4 *)(p + g * P_PITCH + (j * 32 + c * 8) * 2);
                uint4 b = *(const uint4 *)(p + (g + 8) * P_PITCH + (j * 32 + c * 8) * 2);
#pragma unroll
                for (int t = 0; t < ND; t++) {
                    mma(o[t], a.x, b.x, a.y, b.y, vf[t][j].x, vf[t][j].y);
                    mma(o[t], a.z, b.z, a.w, b.w, vf[t][j].z, vf[t][j].w);
                }
            }
            int64_t pa = ((int64_t)(q.col + ra / group) * m.heads + kv * group + ra % group) * (step.max_pages * DK_PARTS) + part;
            int64_t pb = ((int64_t)(q.col + rb / group) * m.heads + kv * group + rb % group) * (step.max_pages * DK_PARTS) + part;
#pragma unroll
            for (int t = 0; t < ND; t++) {
                int dim = (wg * ND + t) * 8 + 2 * c;
                if (ra < rows)
                    *(float2 *)(w.part + pa * HD + dim) = make_float2(o[t][0], o[t][1]);
                if (rb < rows)
                    *(float2 *)(w.part + pb * HD + dim) = make_float2(o[t][2], o[t][3]);
            }
            int gt = tid % (GROUP_WARPS * 32);
            if (gt < 16 && base + gt < rows) {
                float l = 0, mm = -INFINITY;
                int rr = base + gt;
                for (int k = 0; k < GROUP_WARPS; k++) {
                    l += wsum[k * 16 + gt];
                    mm = fmaxf(mm, wmax[k * 16 + gt]);
                }
                int64_t at = ((int64_t)(q.col + rr / group) * m.heads + kv * group + rr % group) * (step.max_pages * DK_PARTS) + part;
                *(float2 *)(w.ml + at * 2) = make_float2(mm, l);
            }
            group_sync(group_no); // wmax and wsum have been read
        }
    }

    // Four dimensions of a column's head: its parts in their order, as bfloat16.
    __device__ __forceinline__ uint2 add_parts(int col, int head, int dim, int parts) const
    {
        int64_t at = ((int64_t)col * m.heads + head) * (step.max_pages * DK_PARTS);
        float top = -INFINITY, sum = 0, o[4] = {0, 0, 0, 0};
#pragma unroll 4
        for (int s = 0; s < parts; s++) { // by turns: the sum so far is brought down when the maximum rises
            float2 ml = __ldcg((const float2 *)w.ml + at + s);
            float4 v = __ldcg((const float4 *)(w.part + (at + s) * HD + dim));
            float t = fmaxf(top, ml.x), f = exp2f(ml.x - t), g = exp2f(top - t);
            top = t;
            sum = sum * g + f * ml.y;
            o[0] = o[0] * g + f * v.x;
            o[1] = o[1] * g + f * v.y;
            o[2] = o[2] * g + f * v.z;
            o[3] = o[3] * g + f * v.w;
        }
        float f = 1 / sum;
        return make_uint2(pack2(o[0] * f, o[1] * f), pack2(o[2] * f, o[3] * f));
    }

    // The last group to finish a part of (sequence, kv head) adds the parts up, in their order.
    __device__ void attend_combine(int seq, int kv)
    {
        const dk_seq &q = step.seq[seq];
        int group_no = warp / GROUP_WARPS, gt = tid % (GROUP_WARPS * 32);
        group_sync(group_no);
        if (gt == 0) {
            __threadfence(); // for the whole group, which has met
            uint32_t *count = &w.count_attn[seq * m.kv_heads + kv];
            flag[group_no] = atomicAdd(count, 1u) == (uint32_t)q.parts - 1;
            if (flag[group_no]) {
                *count = 0;
                __threadfence();
            }
        }
        group_sync(group_no);
        if (!flag[group_no])
            return;
        int group = m.heads / m.kv_heads, n = q.n * group * (HD / 4);
#pragma unroll 2
        for (int i = gt; i < n; i += GROUP_WARPS * 32) {
            int row = i / (HD / 4), dim = i % (HD / 4) * 4, col = q.col + row / group, head = kv * group + row % group;
            int k = head * HD + dim;
            *(uint2 *)((uint16_t *)w.ao + ((k >> 5) * NC + col) * 32 + (k & 31)) = add_parts(col, head, dim, q.parts);
        }
    }

    // Everybody adds them up for himself.
    __device__ void load_parts()
    {
        int each = m.heads * (HD / 4), n = cols * each;
#pragma unroll 2
        for (int i = tid; i < n; i += CONSUMERS) {
            int col = i / each, k = i % each * 4;
            *(uint2 *)(xs + (((k >> 5) * NC + col) * 32 + (k & 31)) * 2) = add_parts(col, k / HD, k % HD, step.seq[step.seq_of[col]].parts);
        }
        consumer_sync();
    }

    __device__ void attention(int layer)
    {
        for (int u = blockIdx.x * 2 + warp / GROUP_WARPS; u < step.units; u += 2 * gridDim.x) {
            attention_unit a(step, u);
            attend_part(a.seq, a.kv, a.part, layer);
            if (!step.few_parts)
                attend_combine(a.seq, a.kv);
        }
    }

    __device__ void out_proj(int layer)
    {
        unit_range s = share(m.rg_d, blockIdx.x, gridDim.x);
        const float *scale = FP8 ? m.scale + layer * m.layer_rows + m.row_o : nullptr;
        if (s.lo < s.hi && step.few_parts)
            load_parts();
        else if (s.lo < s.hi)
            load_x(w.ao, m.kq / 32, false);
        const float *norm = m.norm + (int64_t)(2 * layer + 1) * m.kd;
        int row, col;
        bool some = mine(row, col);
        for (int u = s.lo; u < s.hi; u++) {
            int i = u * 16 + row;
            float2 n = make_float2(0, 0), old = n, by = make_float2(1, 1);
            if (some && col < cols) {
                n = make_float2(norm[i], norm[i + 8]);
                old = make_float2(__ldcg(w.x + (int64_t)col * m.kd + i), __ldcg(w.x + (int64_t)col * m.kd + i + 8));
                if (FP8)
                    by = make_float2(scale[i], scale[i + 8]);
            }
            unit(m.kq / DK_CHUNK, 0);
            if (!some)
                continue;
            float a, b;
            sums(row, col, a, b);
            finish_rows(u, row, col, a * by.x + old.x, b * by.y + old.y, n.x, n.y);
        }
    }

    __device__ void gate_up(int layer)
    {
        unit_range s = share(m.rg_gu, blockIdx.x, gridDim.x);
        const float *scale = FP8 ? m.scale + layer * m.layer_rows + m.row_gu : nullptr;
        load_x(w.h, m.kd / 32, true);
        for (int u = s.lo; u < s.hi; u++) {
            unit(m.kd / DK_CHUNK, 0);
            int row, col;
            if (!mine(row, col) || col >= cols)
                continue;
            float a, b;
            sums(row, col, a, b);
            float f = rstd[col];
            a *= FP8 ? f * scale[u * 16 + row] : f;
            b *= FP8 ? f * scale[u * 16 + row + 8] : f;
            put(w.act, u * 8 + row, col, a / (1 + __expf(-a)) * b);
        }
    }

    __device__ void down(int layer)
    {
        int lo = down_lower(m, blockIdx.x, gridDim.x), hi = down_lower(m, blockIdx.x + 1, gridDim.x), have = -1, row, col;
        const float *scale = FP8 ? m.scale + layer * m.layer_rows + m.row_down : nullptr;
        for (int u = lo; u < hi; u++) {
            int s = u / m.rg_d, rg = u % m.rg_d, a0 = slice_start(m, s), n = slice_start(m, s + 1) - a0;
            if (s != have) {
                consumer_sync();
                load_x((const uint16_t *)w.act + (int64_t)a0 * DK_CHUNK * NC, n * (DK_CHUNK / 32), false);
                have = s;
            }
            unit(n, 0);
            if (!mine(row, col) || col >= cols)
                continue;
            float a, b;
            sums(row, col, a, b);
            float *to = w.down + (((int64_t)s * m.rg_d + rg) * NC + col) * 16 + row;
            to[0] = a;
            to[8] = b;
        }
        grid_sync();
        // each block adds up the slices of its own row groups
        const float *norm = m.norm + (int64_t)(2 * layer + 2) * m.kd;
        if (mine(row, col))
            for (int rg = blockIdx.x; rg < m.rg_d; rg += gridDim.x) {
                float a = 0, b = 0;
                float2 n = make_float2(0, 0);
                if (col < cols) {
                    int i = rg * 16 + row;
                    float2 old = make_float2(__ldcg(w.x + (int64_t)col * m.kd + i), __ldcg(w.x + (int64_t)col * m.kd + i + 8));
                    n = make_float2(norm[i], norm[i + 8]);
                    float2 by = FP8 ? make_float2(scale[i], scale[i + 8]) : make_float2(1, 1);
#pragma unroll 8
                    for (int s = 0; s < m.slices; s++) {
                        const float *from = w.down + (((int64_t)s * m.rg_d + rg) * NC + col) * 16 + row;
                        a += __ldcg(from);
                        b += __ldcg(from + 8);
                    }
                    a = a * by.x + old.x;
                    b = b * by.y + old.y;
                }
                finish_rows(rg, row, col, a, b, n.x, n.y);
            }
    }

    __device__ void head()
    {
        unit_range s = share(m.rg_head, blockIdx.x, gridDim.x);
        const float *scale = FP8 ? m.scale + m.layers * m.layer_rows : nullptr;
        float best = -INFINITY;
        int id = 0x7fffffff, row, col;
        bool here = mine(row, col);
        load_x(w.h, m.kd / 32, true);
        for (int u = s.lo; u < s.hi; u++) {
            unit(m.kd / DK_CHUNK, 0);
            if (!here || col >= cols)
                continue;
            float v[2];
            sums(row, col, v[0], v[1]);
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int i = u * 16 + row + 8 * e;
                float y = v[e] * rstd[col] * (FP8 ? scale[i] : 1);
                if (step.keep_logits)
                    w.logits[(int64_t)col * m.rg_head * 16 + i] = y;
                if (i < m.vocab && (y > best || (y == best && i < id))) {
                    best = y;
                    id = i;
                }
            }
        }
        if (!here)
            return;
#pragma unroll
        for (int o = 4; o; o >>= 1) {
            float y = __shfl_xor_sync(~0u, best, o);
            int i = __shfl_xor_sync(~0u, id, o);
            if (y > best || (y == best && i < id)) {
                best = y;
                id = i;
            }
        }
        if (row == 0)
            *(float2 *)(w.best + ((int64_t)blockIdx.x * NC + col) * 2) = make_float2(best, __uint_as_float((uint32_t)id));
    }

    __device__ void run()
    {
        mark();
        embed();
        grid_sync();
        mark();
        for (int l = 0; l < m.layers; l++) { // 10 marks a layer
            qkv(l);
            mark();
            grid_sync();
            mark();
            attention(l);
            mark();
            grid_sync();
            mark();
            out_proj(l);
            mark();
            grid_sync();
            mark();
            gate_up(l);
            mark();
            grid_sync();
            mark();
            down(l);
            mark();
            grid_sync();
            mark();
        }
        head();
        mark();
    }
};

// What a block keeps in shared memory ahead of the vectors and the ring.
struct layout {
    int rstd, wmax, wsum, flag, step, red, xs, ring, slots, total;
};

__host__ __device__ __forceinline__ layout plan(int nc, int k, int smem)
{
    layout a;
    int red = WARPS * nc * PITCH * 4, p = 2 * 16 * P_PITCH;
    a.rstd = (2 * MAX_SLOTS * 8 + 127) / 128 * 128;
    a.wmax = a.rstd + DK_MAX_COLS * 4;
    a.wsum = a.wmax + WARPS * 16 * 4;
    a.flag = a.wsum + WARPS * 16 * 4;
    a.step = a.flag + 32 * 4;
    a.red = (a.step + (int)sizeof(dk_step) + 127) / 128 * 128;
    a.xs = a.red + ((red > p ? red : p) + 127) / 128 * 128;
    a.ring = a.xs + nc * k * 2;
    a.slots = (smem - a.ring) / SLOT;
    if (a.slots > MAX_SLOTS)
        a.slots = MAX_SLOTS;
    a.total = a.ring + (a.slots > 0 ? a.slots : 0) * SLOT;
    return a;
}

template <int NT, bool FP8, int HD>
__global__ void __launch_bounds__(THREADS, 1) step_kernel(const __grid_constant__ dk_model m, const __grid_constant__ dk_work w, int smem_bytes)
{
#ifdef HOPPER
    SHARED_MEMORY(smem);
    layout a = plan(NT * 8, m.kd > m.kq ? m.kd : m.kq, smem_bytes);
    ring r;
    r.full = (uint64_t *)smem;
    r.empty = r.full + MAX_SLOTS;
    r.slot = smem + a.ring;
    r.n = a.slots;
    r.at = 0;
    r.phase = 0;
    if (threadIdx.x == 0) {
        for (int i = 0; i < a.slots; i++) {
            mbar_init(&r.full[i], 1);
            mbar_init(&r.empty[i], WARPS);
        }
#ifndef EMULATE
        asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
#endif
    }
    for (int i = threadIdx.x; i < (int)(sizeof(dk_step) / 4); i += THREADS)
        ((uint32_t *)(smem + a.step))[i] = ((const uint32_t *)w.step)[i];
    __syncthreads();
    if (threadIdx.x >= CONSUMERS) {
        if (threadIdx.x == CONSUMERS)
            produce(m, w, *(dk_step *)(smem + a.step), r);
        return;
    }
    consumer<NT, FP8, HD> c(m, w, *(dk_step *)(smem + a.step));
    c.r = r;
    c.xs = smem + a.xs;
    c.red = (float *)(smem + a.red);
    c.p = smem + a.red;
    c.rstd = (float *)(smem + a.rstd);
    c.wmax = (float *)(smem + a.wmax);
    c.wsum = (float *)(smem + a.wsum);
    c.flag = (int *)(smem + a.flag);
    c.barriers = 0;
    c.marks = 0;
    c.starved = 0;
    c.tid = threadIdx.x;
    c.warp = threadIdx.x >> 5;
    c.lane = threadIdx.x & 31;
    c.cols = c.step.cols;
    c.run();
#endif
}

// ---- packing ----

__device__ __forceinline__ float element(const uint16_t *s0, const uint16_t *s1, int64_t ld, int row, const int32_t *cols, int k)
{
    int col = cols ? cols[k] : k < ld ? k : -1;
    return row < 0 || col < 0 ? 0 : bf16_to_float((row & 1 ? s1 : s0)[(int64_t)(row >> 1) * ld + col]);
}

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

// A block a row group.
__global__ void pack_kernel(void *dst, float *scale, int fp8, const uint16_t *s0, const uint16_t *s1, int64_t ld, const int32_t *rows,
                            const int32_t *cols, int k)
{
    SHARED_MEMORY(smem);
    float *top = (float *)smem; // [16][16], then [16] scales
    int rg = blockIdx.x, row = threadIdx.x & 15, at = threadIdx.x >> 4, from = rows[rg * 16 + row];
    if (fp8) {
        float v = 0;
        for (int i = at; i < k; i += 16)
            v = fmaxf(v, fabsf(element(s0, s1, ld, from, cols, i)));
        top[row * 16 + at] = v;
        __syncthreads();
        if (at == 0) {
            for (int i = 1; i < 16; i++)
                v = fmaxf(v, top[row * 16 + i]);
            scale[rg * 16 + row] = power_above(v / 448);
            top[256 + row] = 1 / power_above(v / 448);
        }
        __syncthreads();
    }
    int64_t base = (int64_t)rg * 16 * k;
    for (int i = threadIdx.x; i < 16 * k; i += blockDim.x) {
        int tile = i >> 9, r = i >> 5 & 15, c = tile * 32 + (i & 31);
        float v = element(s0, s1, ld, rows[rg * 16 + r], cols, c);
        if (fp8)
            ((uint8_t *)dst)[base + i] = to_e4m3(v * top[256 + r]);
        else
            ((uint16_t *)dst)[base + i] = to_bf16(v);
    }
}

// A block a (token of 64, kv head): keys row by row, values transposed.
__global__ void fill_kernel(dk_model m, int layer, const uint16_t *k, const uint16_t *v, int64_t stride, int head_dim, int n,
                            const int32_t *pages)
{
    int kv = blockIdx.y, pos = blockIdx.x * 64 + (threadIdx.x & 63);
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
    const float *logits = w.logits + (int64_t)col * m.rg_head * 16;
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
    if (s.temperature <= 0) {
        if (tid == 0)
            out[col] = id == 0x7fffffff ? 0 : id; // nothing but NaN
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

template <int NT, bool FP8, int HD> int launch_step(void *stream, const dk_model *m, const dk_work *w, int grid, int smem)
{
    layout a = plan(NT * 8, m->kd > m->kq ? m->kd : m->kq, smem);
#ifdef EMULATE
    (void)stream;
    return emulate(grid, 1, THREADS, a.total, [=] { step_kernel<NT, FP8, HD>(*m, *w, smem); });
#else
    auto *f = step_kernel<NT, FP8, HD>;
    static bool ready;
    cudaError_t rc;
    if (!ready && (rc = cudaFuncSetAttribute(f, cudaFuncAttributeMaxDynamicSharedMemorySize, smem)) != cudaSuccess)
        return rc;
    ready = true;
    void *args[] = {(void *)m, (void *)w, &smem};
    return cudaLaunchCooperativeKernel((void *)f, dim3(grid), dim3(THREADS), args, a.total, (cudaStream_t)stream);
#endif
}

template <int NT> int launch_nt(void *stream, const dk_model *m, const dk_work *w, int grid, int smem)
{
#ifdef TRIAL // only what is timed
    return launch_step<NT, false, 128>(stream, m, w, grid, smem);
#else
    if (m->hd == 128)
        return m->fp8 ? launch_step<NT, true, 128>(stream, m, w, grid, smem) : launch_step<NT, false, 128>(stream, m, w, grid, smem);
    return m->fp8 ? launch_step<NT, true, 64>(stream, m, w, grid, smem) : launch_step<NT, false, 64>(stream, m, w, grid, smem);
#endif
}

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

int k_decode_max_cols(int k, int smem)
{
    for (int nc = DK_MAX_COLS; nc >= 8; nc /= 2)
        if (plan(nc, k, smem).slots >= 4)
            return nc;
    return 0;
}

int k_decode_step(void *stream, const struct dk_model *m, const struct dk_work *w, int nc, int grid, int smem)
{
    switch (nc) {
    case 8: return launch_nt<1>(stream, m, w, grid, smem);
#ifdef TRIAL
    default: return 1;
#else
    case 16: return launch_nt<2>(stream, m, w, grid, smem);
    default: return launch_nt<4>(stream, m, w, grid, smem);
#endif
    }
}

int k_decode_pack(void *stream, void *dst, float *scale, int fp8, const void *src0, const void *src1, int64_t ld, const int32_t *rows,
                  const int32_t *cols, int n_rg, int k)
{
    if (n_rg < 1)
        return 0;
    LAUNCH(pack_kernel, n_rg, 1, 256, 272 * 4, stream, dst, scale, fp8, (const uint16_t *)src0, (const uint16_t *)src1, ld, rows, cols, k);
}

int k_decode_round(void *stream, void *w, int64_t rows, int64_t cols)
{
    LAUNCH(round_kernel, (unsigned)rows, 1, 256, 1024, stream, (uint16_t *)w, cols);
}

int k_decode_fill(void *stream, const struct dk_model *m, int layer, const void *k, const void *v, int64_t stride, int head_dim, int n,
                  const int32_t *pages)
{
    if (n < 1)
        return 0;
    LAUNCH(fill_kernel, (n + 63) / 64, m->kv_heads, 256, 0, stream, *m, layer, (const uint16_t *)k, (const uint16_t *)v, stride, head_dim,
           n, pages);
}

int k_decode_sample(void *stream, const struct dk_model *m, const struct dk_work *w, int nc, int grid, int cols, const struct dk_sampling *s,
                    const uint32_t *mask, int mask_words, int32_t *out)
{
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
int k_zero(void *stream, void *dst, size_t n) { return cudaMemsetAsync(dst, 0, n, (cudaStream_t)stream); }
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
int k_zero(void *, void *dst, size_t n) { memset(dst, 0, n); return 0; }
int k_wait(void *) { return 0; }
#endif

} // extern "C"
