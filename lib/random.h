/* random.h: numbers that a seed fixes, the same on every machine.
 *
 *     uint64_t state = seed;
 *     double x = random_unit(&state);
 *
 * SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014): 64 bits of state, all of which may be
 * zero; any two seeds give sequences that have nothing to do with each other.  Outputs that were published (splits, the parts of
 * synth, fresh adapters, orders of training) hang on it bit by bit.
 */
#ifndef LIB_RANDOM_H
#define LIB_RANDOM_H

#include <stdint.h>

static inline uint64_t random_u64(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Uniform in [0, 1), a multiple of 2^-53. */
static inline double random_unit(uint64_t *state)
{
    return (double)(random_u64(state) >> 11) * 0x1p-53;
}

#endif
