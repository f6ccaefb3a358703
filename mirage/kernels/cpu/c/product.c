/* The matrix product; its inner step is unrolled for each number of rows and vectors. */

#include "product.h"

static inline __attribute__((always_inline)) void step(const long tall, const long wide, Scalars a, Vectors b,
                                                       Vectors to, long depth, Init start, long last) {
    floats total[TALL][WIDE];
    for (long i = 0; i < tall; i++)
        for (long j = 0; j < wide; j++) {
            if (start.bias) total[i][j] = load(start.bias + j * LANES, LANES);
            else total[i][j] = (floats){0};
        }
    for (long block = 0; block < depth; block += LANES, a.at += a.block) {
        const float *at = a.at;
        for (long k = block; k < min(block + LANES, depth); k++, at += a.item, b.at += b.row) {
            floats right[WIDE];
            for (long j = 0; j < wide; j++) right[j] = load(b.at + j * b.block, LANES);
            for (long i = 0; i < tall; i++)
                for (long j = 0; j < wide; j++) total[i][j] += at[i * a.row] * right[j];
        }
    }
    for (long i = 0; i < tall; i++)
        for (long j = 0; j < wide; j++) {
            float *at = to.at + i * to.row + j * to.block;
            long count = j + 1 == wide ? last : LANES;
            store(at, start.add ? load(at, count) + total[i][j] : total[i][j], count);
        }
}

static inline __attribute__((always_inline)) void strip(const long wide, long height, Scalars a, Vectors b,
                                                        Vectors to, long depth, Init start, long last) {
    long i = 0;
    for (; i + TALL <= height; i += TALL, a.at += TALL * a.row, to.at += TALL * to.row)
        step(TALL, wide, a, b, to, depth, start, last);
    for (; i + 2 <= height; i += 2, a.at += 2 * a.row, to.at += 2 * to.row)
        step(2, wide, a, b, to, depth, start, last);
    for (; i < height; i++, a.at += a.row, to.at += to.row) step(1, wide, a, b, to, depth, start, last);
}

void mirage_product(long height, long depth, long columns, Scalars a, Vectors b, Vectors to, Init start) {
    while (columns > 0) {
        long vectors = min((columns + LANES - 1) / LANES, WIDE);
        long last = min(columns - (vectors - 1) * LANES, LANES);
        if (vectors == 1) strip(1, height, a, b, to, depth, start, last);
        else if (vectors == 2) strip(2, height, a, b, to, depth, start, last);
#if WIDE > 2
        else strip(3, height, a, b, to, depth, start, last);
#endif
        b.at += vectors * b.block;
        to.at += vectors * to.block;
        start.bias += start.bias ? vectors * LANES : 0;
        columns -= vectors * LANES;
    }
}

long mirage_lanes(void) { return LANES; }
