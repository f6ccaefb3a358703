/* The middle of the feed-forward network, forward and backward, in one pass over its map.

   GELU, depthwise 3x3, GELU of the gate, product: 16 channels of the gate and their 16 of the values at a time, so
   that three rows of everything between stay in the first-level cache. Channels last, fp32, written over the input.
   The caller owns all memory. Vectors are GCC's and Clang's extension: any processor, no intrinsics. */

#include <string.h>

#define LANES 16
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int ints __attribute__((vector_size(4 * LANES)));

static inline floats load(const float *from, long count) {
    floats x = {0};
    if (count == LANES) memcpy(&x, from, sizeof x);
    else memcpy(&x, from, sizeof(float) * count);
    return x;
}

static inline void store(float *to, floats x, long count) {
    if (count == LANES) memcpy(to, &x, sizeof x);
    else memcpy(to, &x, sizeof(float) * count);
}

static inline floats all(float value) { return value - (floats){0}; }

static inline floats choose(ints mask, floats yes, floats no) {
    return (floats)(((ints)yes & mask) | ((ints)no & ~mask));
}

/* exp(-y) for y >= 0, to two units in the last place; below 1e-37 it stays there. */
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

/* GELU and its derivative. The normal tail is Abramowitz and Stegun 7.1.26, within 1.5e-7. */
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

static inline floats window(const floats *above, const floats *here, const floats *below, const floats *taps) {
    return above[0] * taps[0] + above[1] * taps[1] + above[2] * taps[2]
         + here[0] * taps[3] + here[1] * taps[4] + here[2] * taps[5]
         + below[0] * taps[6] + below[1] * taps[7] + below[2] * taps[8];
}

static void read_taps(floats *to, const float *taps, long first, long count) {
    memset(to, 0, 9 * sizeof(floats));
    for (long c = 0; c < count; c++)
        for (int k = 0; k < 9; k++) to[k][c] = taps[9 * (first + c) + k];
}

/* One row of GELU (and slopes) into a ring; columns -1 and width stay zero. */
static void enter(floats *active, floats *slopes, const float *row, long width, long stride, long count) {
    floats unused;
    for (long x = 0; x < width; x++)
        active[x + 1] = gelu(load(row + x * stride, count), slopes ? slopes + x + 1 : &unused);
}

/* Floats of scratch memory that either function needs. */
long mirage_scratch(long width) { return 18 * (width + 2) * LANES; }

/* hidden (h, w, 2n), taps (2n, 9): the product replaces channels 0 to n - 1. Channels first to last of n are done. */
void mirage_gated_forward(float *hidden, const float *taps, float *scratch, long height, long width, long n,
                          long first, long last) {
    long span = width + 2, stride = 2 * n;
    floats *gate = (floats *)scratch, *values = gate + 3 * span;
    for (long c = first; c < last; c += LANES) {
        long count = last - c < LANES ? last - c : LANES;
        floats gate_taps[9], value_taps[9], unused;
        read_taps(gate_taps, taps, c, count);
        read_taps(value_taps, taps, n + c, count);
        memset(scratch, 0, 6 * span * sizeof(floats));
        enter(gate, 0, hidden + c, width, stride, count);
        enter(values, 0, hidden + n + c, width, stride, count);
        for (long y = 0; y < height; y++) {
            long a = (y + 2) % 3 * span, b = y % 3 * span, d = (y + 1) % 3 * span;
            if (y + 1 < height) {
                const float *next = hidden + (y + 1) * width * stride + c;
                enter(gate + d, 0, next, width, stride, count);
                enter(values + d, 0, next + n, width, stride, count);
            } else {
                memset(gate + d, 0, span * sizeof(floats));
                memset(values + d, 0, span * sizeof(floats));
            }
            for (long x = 0; x < width; x++) {
                floats opened = gelu(window(gate + a + x, gate + b + x, gate + d + x, gate_taps), &unused);
                floats v = window(values + a + x, values + b + x, values + d + x, value_taps);
                store(hidden + (y * width + x) * stride + c, opened * v, count);
            }
        }
    }
}

static void add_taps(floats *sums, const floats *grad, const floats *above, const floats *here,
                     const floats *below, long width) {
    floats row[9];
    memset(row, 0, sizeof row);
    for (long x = 0; x < width; x++) {
        floats g = grad[x + 1];
        for (int k = 0; k < 3; k++) {
            row[k] += g * above[x + k];
            row[3 + k] += g * here[x + k];
            row[6 + k] += g * below[x + k];
        }
    }
    for (int k = 0; k < 9; k++) sums[k] += row[k];
}

static void leave(float *row, const floats *above, const floats *here, const floats *below,
                  const floats *slopes, const floats *flipped, long width, long stride, long count) {
    for (long x = 0; x < width; x++)
        store(row + x * stride, window(above + x, here + x, below + x, flipped) * slopes[x + 1], count);
}

/* hidden (h, w, 2n) becomes its gradient; grad (h, w, n), of the product, becomes the product; the gradient of taps is
   added to grad_taps (2n, 9). */
void mirage_gated_backward(float *hidden, float *grad, const float *taps, float *grad_taps, float *scratch,
                           long height, long width, long n, long first, long last) {
    long span = width + 2, stride = 2 * n;
    floats *gate = (floats *)scratch, *values = gate + 3 * span;
    floats *gate_slopes = values + 3 * span, *value_slopes = gate_slopes + 3 * span;
    floats *to_gate = value_slopes + 3 * span, *to_values = to_gate + 3 * span;
    for (long c = first; c < last; c += LANES) {
        long count = last - c < LANES ? last - c : LANES;
        floats gate_taps[9], value_taps[9], gate_flipped[9], value_flipped[9], gate_sums[9], value_sums[9];
        read_taps(gate_taps, taps, c, count);
        read_taps(value_taps, taps, n + c, count);
        for (int k = 0; k < 9; k++) {
            gate_flipped[k] = gate_taps[8 - k];
            value_flipped[k] = value_taps[8 - k];
        }
        memset(gate_sums, 0, sizeof gate_sums);
        memset(value_sums, 0, sizeof value_sums);
        memset(scratch, 0, 18 * span * sizeof(floats));
        enter(gate, gate_slopes, hidden + c, width, stride, count);
        enter(values, value_slopes, hidden + n + c, width, stride, count);
        for (long y = 0; y <= height; y++) {
            long a = (y + 2) % 3 * span, b = y % 3 * span, d = (y + 1) % 3 * span;
            if (y < height) {
                if (y + 1 < height) {
                    const float *next = hidden + (y + 1) * width * stride + c;
                    enter(gate + d, gate_slopes + d, next, width, stride, count);
                    enter(values + d, value_slopes + d, next + n, width, stride, count);
                } else {
                    memset(gate + d, 0, span * sizeof(floats));
                    memset(values + d, 0, span * sizeof(floats));
                }
                for (long x = 0; x < width; x++) {
                    floats slope;
                    floats opened = gelu(window(gate + a + x, gate + b + x, gate + d + x, gate_taps), &slope);
                    floats v = window(values + a + x, values + b + x, values + d + x, value_taps);
                    float *at = grad + (y * width + x) * n + c;
                    floats g = load(at, count);
                    to_gate[b + x + 1] = g * v * slope;
                    to_values[b + x + 1] = g * opened;
                    store(at, opened * v, count);
                }
                add_taps(gate_sums, to_gate + b, gate + a, gate + b, gate + d, width);
                add_taps(value_sums, to_values + b, values + a, values + b, values + d, width);
            } else {
                memset(to_gate + b, 0, span * sizeof(floats));
                memset(to_values + b, 0, span * sizeof(floats));
            }
            if (y > 0) { /* row y - 1 now has its gradient's three rows: y - 2 in slot d, y - 1 in a, y in b */
                float *row = hidden + (y - 1) * width * stride + c;
                leave(row, to_gate + d, to_gate + a, to_gate + b, gate_slopes + a, gate_flipped, width, stride, count);
                leave(row + n, to_values + d, to_values + a, to_values + b, value_slopes + a, value_flipped, width,
                      stride, count);
            }
        }
        for (long i = 0; i < count; i++)
            for (int k = 0; k < 9; k++) {
                grad_taps[9 * (c + i) + k] += gate_sums[k][i];
                grad_taps[9 * (n + c + i) + k] += value_sums[k][i];
            }
    }
}
