/* lanes.h: vectors of 256 bits, as the search for nearest points, features and registration use them: GCC's, and where it makes
 * something slow of them the machine's own instructions. */
#ifndef LIB_LANES_H
#define LIB_LANES_H

#include <stdint.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

typedef double v4 __attribute__((vector_size(32), aligned(8)));
typedef int64_t l4 __attribute__((vector_size(32), aligned(8)));
typedef float v8 __attribute__((vector_size(32), aligned(4)));
typedef int32_t i8 __attribute__((vector_size(32), aligned(4)));

/* mask ? a : b, lane by lane */
static inline i8 choose(i8 mask, i8 a, i8 b)
{
#ifdef __AVX2__
    return (i8)_mm256_blendv_epi8((__m256i)b, (__m256i)a, (__m256i)mask);
#else
    return (a & mask) | (b & ~mask);
#endif
}

static inline v8 select8(i8 mask, v8 a, v8 b)
{
    return (v8)choose(mask, (i8)a, (i8)b);
}

/* A bit for each lane of a comparison that holds. */
static inline uint32_t lanes(i8 mask)
{
#ifdef __AVX__
    return (uint32_t)_mm256_movemask_ps((__m256)mask);
#else
    uint32_t m = 0;
    for (int k = 0; k < 8; k++)
        m |= (uint32_t)(mask[k] < 0) << k;
    return m;
#endif
}

/* b where one is no number. */
static inline v8 greater(v8 a, v8 b)
{
#ifdef __AVX__
    return (v8)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return select8(a > b, a, b);
#endif
}

static inline v8 lesser(v8 a, v8 b)
{
#ifdef __AVX__
    return (v8)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return select8(a < b, a, b);
#endif
}

#endif
