/* Vectors of floats as wide as a register, with the vector extension of GCC and Clang: any processor, no intrinsics.
   Vectors wider than registers would be correct and several times slower. */

#pragma once
#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int ints __attribute__((vector_size(4 * LANES)));

static inline long min(long a, long b) { return a < b ? a : b; }

/* Half a vector is a separate case: 8 and 24 channels are common, and a copy of known size is one instruction. */
static inline floats load(const float *from, long count) {
    floats x = {0};
    if (count >= LANES) memcpy(&x, from, sizeof x);
    else if (count == LANES / 2) memcpy(&x, from, sizeof x / 2);
    else memcpy(&x, from, sizeof(float) * count);
    return x;
}

static inline void store(float *to, floats x, long count) {
    if (count >= LANES) memcpy(to, &x, sizeof x);
    else if (count == LANES / 2) memcpy(to, &x, sizeof x / 2);
    else memcpy(to, &x, sizeof(float) * count);
}

static inline floats all(float value) { return value - (floats){0}; }

static inline floats choose(ints mask, floats yes, floats no) {
    return (floats)(((ints)yes & mask) | ((ints)no & ~mask));
}

/* Return x with zeros after its first `count` elements. */
static inline floats first(long count, floats x) {
    ints lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return choose(lane < (int)min(count, LANES), x, (floats){0});
}

static inline float sum(floats x) {
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
}

/* Return exp(-y) for y >= 0 within two units in the last place; y above 86 counts as 86. */
static inline floats exp_minus(floats y) {
    const floats shifter = all(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number */
    y = choose(y > 86.0f, all(86.0f), y);
    floats whole = (y * -1.44269504f + shifter) - shifter;
    floats r = -y - whole * 0.693145752f - whole * 1.42860677e-6f;
    floats p = all(1.38888889e-3f);
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    ints power = (__builtin_convertvector(whole, ints) + 127) << 23;
    return p * (floats)power;
}

/* Return GELU, and its derivative in `slope`. The normal tail is Abramowitz and Stegun 7.1.26, within 1.5e-7. */
static inline floats gelu(floats x, floats *slope) {
    floats size = choose(x < 0.0f, -x, x);
    floats density = exp_minus(0.5f * size * size);
    floats t = 1.0f / (1.0f + 0.3275911f * 0.707106781f * size);
    floats p = all(0.5f * 1.061405429f);
    p = p * t - 0.5f * 1.453152027f;
    p = p * t + 0.5f * 1.421413741f;
    p = p * t - 0.5f * 0.284496736f;
    p = p * t + 0.5f * 0.254829592f;
    floats tail = p * t * density;
    floats below = choose(x < 0.0f, tail, 1.0f - tail);
    *slope = below + x * density * 0.398942280f;
    return x * below;
}

static inline floats sigmoid(floats x) {
    floats small = exp_minus(choose(x < 0.0f, -x, x)), part = 1.0f / (1.0f + small);
    return choose(x < 0.0f, small * part, part);
}
