/* Matrix products of narrow maps, whose operands stay in the cache.

   Inside an operator a map is stored in blocks of LANES channels (NCHWc): a block holds the vectors of its pixels one
   after the other. The padding channels of the last block are zero. Matrices are stored in blocks too, with the vectors
   of their rows one after the other. */

#pragma once
#include "vectors.h"

/* An operand that is read scalar by scalar: element (i, k) is at[i * row + k % LANES * item + k / LANES * block]. */
typedef struct {
    const float *at;
    long row, item, block;
} Scalars;

/* An operand that is read or written vector by vector: vector j of row i is at[i * row + j * block]. */
typedef struct {
    float *at;
    long row, block;
} Vectors;

/* Pixels (..., channels) at a distance of `step` floats. */
static inline Scalars pixels(const float *at, long step) { return (Scalars){at, step, 1, LANES}; }
static inline Vectors rows(float *at, long step) { return (Vectors){at, step, LANES}; }
static inline Scalars transposed(Scalars x) { return (Scalars){x.at, x.item, x.row, LANES * x.row}; }

/* Blocks of `length` pixels or rows each. */
static inline Vectors blocked(const float *at, long length) {
    return (Vectors){(float *)at, LANES, LANES * length};
}
static inline Scalars from_blocked(const float *at, long length) {
    return (Scalars){at, LANES, 1, LANES * length};
}

/* The accumulators of one step, which fit the registers: TALL rows of WIDE vectors. */
#ifdef __AVX512F__
#define TALL 8
#define WIDE 3
#else
#define TALL 6
#define WIDE 2
#endif

/* Initial value of a product: zero, a vector for all rows, or the old result (added last: long sums stay exact). */
typedef struct {
    const float *bias;
    int add;
} Init;

/* Compute to (height, columns) = a (height, depth) times b (depth, columns). The last vector of b is padded, that of
   `to` may be partial. */
void mirage_product(long height, long depth, long columns, Scalars a, Vectors b, Vectors to, Init start);
