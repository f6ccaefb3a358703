/* 3x3 windows over rings of three rows. A row of a plane has a zero pixel at either end. */

#pragma once
#include "product.h"

/* A map of which the last three rows are kept: row y lies in slot y % 3, plane after plane. */
typedef struct {
    float *at;
    long count, span; /* planes; pixels of a row with the zeros around it */
} Ring;

static inline Ring ring(float **scratch, long count, long width) {
    Ring made = {*scratch, count, width + 2};
    *scratch += 3 * count * made.span * LANES;
    return made;
}

static inline floats *row_of(Ring r, long y, long plane) {
    return (floats *)(r.at + ((y + 3) % 3 * r.count + plane) * r.span * LANES);
}

static inline void clear(Ring r, long y) { memset(row_of(r, y, 0), 0, sizeof(floats) * r.count * r.span); }

/* Row y as what a product writes, and as what it reads. */
static inline Vectors into(Ring r, long y, long plane) {
    return planes((float *)(row_of(r, y, plane) + 1), r.span);
}

static inline floats window(const floats *above, const floats *here, const floats *below, const floats *taps) {
    return above[0] * taps[0] + above[1] * taps[1] + above[2] * taps[2]
         + here[0] * taps[3] + here[1] * taps[4] + here[2] * taps[5]
         + below[0] * taps[6] + below[1] * taps[7] + below[2] * taps[8];
}

/* Taps are (planes, 9, 16). */
static inline void read_taps(floats *to, const float *taps, long plane) {
    memcpy(to, taps + plane * 9 * LANES, 9 * sizeof(floats));
}

static inline void read_flipped(floats *to, const float *taps, long plane) {
    for (int k = 0; k < 9; k++) to[k] = load(taps + (plane * 9 + 8 - k) * LANES, LANES);
}

/* What row y of `grad` adds to the gradient of the taps of one plane of `map`. */
static void add_taps(float *sums, Ring grad, Ring map, long y, long plane) {
    const floats *above = row_of(map, y - 1, plane), *here = row_of(map, y, plane), *below = row_of(map, y + 1, plane);
    const floats *from = row_of(grad, y, plane) + 1;
    floats total[9], before[9];
    memset(total, 0, sizeof total);
    for (long x = 0; x < map.span - 2; x++) {
        floats g = from[x];
        for (int k = 0; k < 3; k++) {
            total[k] += g * above[x + k];
            total[3 + k] += g * here[x + k];
            total[6 + k] += g * below[x + k];
        }
    }
    read_taps(before, sums, plane);
    for (int k = 0; k < 9; k++) store(sums + (plane * 9 + k) * LANES, before[k] + total[k], LANES);
}
