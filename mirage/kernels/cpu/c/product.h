/* Matrix products of narrow maps, whose operands stay in the cache.

   A map inside of a region is a stack of planes of LANES channels: a plane holds its pixels' vectors one after the other.
   Channels that fill the last plane up are zero. Matrices are planes too: their rows' vectors one after the other. */

#pragma once
#include "vectors.h"

/* What is read number by number: number (i, k) of it is at[i * row + k % LANES * item + k / LANES * block]. */
typedef struct {
    const float *at;
    long row, item, block;
} Numbers;

/* What is read and written vector by vector: vector j of row i is at[i * row + j * plane]. */
typedef struct {
    float *at;
    long row, plane;
} Vectors;

/* Pixels (…, channels) with so many floats from one to the next. */
static inline Numbers pixels(const float *at, long step) { return (Numbers){at, step, 1, LANES}; }
static inline Vectors rows(float *at, long step) { return (Vectors){at, step, LANES}; }
static inline Numbers transposed(Numbers x) { return (Numbers){x.at, x.item, x.row, LANES * x.row}; }

/* Planes of so many pixels or rows each. */
static inline Vectors planes(const float *at, long length) {
    return (Vectors){(float *)at, LANES, LANES * length};
}
static inline Numbers in_planes(const float *at, long length) {
    return (Numbers){at, LANES, 1, LANES * length};
}

/* Accumulators of one step, which the processor's registers hold: TALL rows of WIDE vectors. */
#ifdef __AVX512F__
#define TALL 8
#define WIDE 3
#else
#define TALL 6
#define WIDE 2
#endif

/* What a product is added to: nothing, a vector for all rows, or what is there (at last, so that long sums stay exact). */
typedef struct {
    const float *bias;
    int add;
} Start;

/* a (height, depth) times b (depth, columns) into `to`; b's last vector is whole, that of `to` need not be. */
void mirage_product(long height, long depth, long columns, Numbers a, Vectors b, Vectors to, Start start);
