/* Windows over rings of rows. A row of a plane has zero pixels at either end, as many as a window reaches beyond it. */

#pragma once
#include "product.h"

/* A map of which the last 2 reach + 1 rows are kept: row y lies in slot y % (2 reach + 1), plane after plane. */
typedef struct {
    float *at;
    long count, width, reach, span; /* planes; pixels of a row, without and with the zeros around it */
} Ring;

static inline Ring ring(float **scratch, long count, long width, long reach) {
    Ring made = {*scratch, count, width, reach, width + 2 * reach};
    long size = (2 * reach + 1) * count * made.span * LANES;
    memset(*scratch, 0, sizeof(float) * size);
    *scratch += size;
    return made;
}

static inline floats *row_of(Ring r, long y, long plane) {
    long size = 2 * r.reach + 1;
    return (floats *)(r.at + ((y + 2 * size) % size * r.count + plane) * r.span * LANES);
}

static inline void clear(Ring r, long y) { memset(row_of(r, y, 0), 0, sizeof(floats) * r.count * r.span); }

/* Row y as what a product writes, and as what it reads. */
static inline Vectors into(Ring r, long y, long plane) {
    return planes((float *)(row_of(r, y, plane) + r.reach), r.span);
}

/* 3x3 windows, whose taps stay in registers. */
static inline floats window(const floats *above, const floats *here, const floats *below, const floats *taps) {
    return above[0] * taps[0] + above[1] * taps[1] + above[2] * taps[2]
         + here[0] * taps[3] + here[1] * taps[4] + here[2] * taps[5]
         + below[0] * taps[6] + below[1] * taps[7] + below[2] * taps[8];
}

/* Taps are (planes, 9, LANES). */
static inline void read_taps(floats *to, const float *taps, long plane) {
    memcpy(to, taps + plane * 9 * LANES, 9 * sizeof(floats));
}

static inline void read_flipped(floats *to, const float *taps, long plane) {
    for (int k = 0; k < 9; k++) to[k] = load(taps + (plane * 9 + 8 - k) * LANES, LANES);
}

/* What row y of `grad` adds to the gradient of the taps of one plane of `map`. */
static inline void add_taps(float *sums, Ring grad, Ring map, long y, long plane) {
    const floats *above = row_of(map, y - 1, plane), *here = row_of(map, y, plane), *below = row_of(map, y + 1, plane);
    const floats *from = row_of(grad, y, plane) + 1;
    floats total[9], before[9];
    memset(total, 0, sizeof total);
    for (long x = 0; x < map.width; x++) {
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

/* Larger windows. Taps are (planes, size * size, LANES); `back` takes them in reverse, as the gradient of the map does. */
#define AT_ONCE 8
static inline __attribute__((always_inline)) void some_windows(Ring map, long y, long plane, const floats *taps,
                                                              floats *to, long x, const long count) {
    floats total[AT_ONCE] = {{0}};
    for (long dy = -map.reach; dy <= map.reach; dy++) {
        const floats *row = row_of(map, y + dy, plane) + x;
        for (long dx = 0; dx <= 2 * map.reach; dx++, taps++)
            for (long i = 0; i < count; i++) total[i] += row[i + dx] * *taps;
    }
    for (long i = 0; i < count; i++) to[x + i] = total[i];
}

static inline void large_windows(Ring map, long y, long plane, const floats *taps, floats *to) {
    long x = 0;
    for (; x + AT_ONCE <= map.width; x += AT_ONCE) some_windows(map, y, plane, taps, to, x, AT_ONCE);
    for (; x < map.width; x++) some_windows(map, y, plane, taps, to, x, 1);
}

/* What row y of `grad` adds to the gradient of the taps of one plane of `map`. */
#define LARGEST 7
static inline void add_large_taps(float *sums, Ring grad, Ring map, long y, long plane) {
    long size = 2 * map.reach + 1;
    const floats *from = row_of(grad, y, plane) + grad.reach;
    float *to = sums + plane * size * size * LANES;
    for (long dy = -map.reach; dy <= map.reach; dy++) {
        const floats *row = row_of(map, y + dy, plane);
        floats total[LARGEST] = {{0}};
        for (long x = 0; x < map.width; x++)
            for (long k = 0; k < LARGEST; k++) total[k] += from[x] * row[x + k];
        for (long k = 0; k < LARGEST; k++, to += LANES) store(to, load(to, LANES) + total[k], LANES);
    }
}
