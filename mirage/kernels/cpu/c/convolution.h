/* Depthwise convolutions over ring buffers of rows. A row has zero pixels at both ends, as many as a filter reaches
   beyond it. */

#pragma once
#include "product.h"

/* The last 2 reach + 1 rows of a map: row y is in slot y % (2 reach + 1), block after block. */
typedef struct {
    float *at;
    long count, width, reach, span; /* blocks; pixels of a row, without and with the zeros around it */
} Ring;

static inline Ring ring(float **scratch, long count, long width, long reach) {
    Ring made = {*scratch, count, width, reach, width + 2 * reach};
    long size = (2 * reach + 1) * count * made.span * LANES;
    memset(*scratch, 0, sizeof(float) * size);
    *scratch += size;
    return made;
}

static inline floats *row_of(Ring r, long y, long block) {
    long size = 2 * r.reach + 1;
    return (floats *)(r.at + ((y + 2 * size) % size * r.count + block) * r.span * LANES);
}

static inline void clear(Ring r, long y) { memset(row_of(r, y, 0), 0, sizeof(floats) * r.count * r.span); }

/* Return row y as the target of a product. */
static inline Vectors into(Ring r, long y, long block) {
    return blocked((float *)(row_of(r, y, block) + r.reach), r.span);
}

/* Return one vector of a 3x3 convolution; the filter is in registers. */
static inline floats convolve_3x3(const floats *above, const floats *here, const floats *below, const floats *filters) {
    return above[0] * filters[0] + above[1] * filters[1] + above[2] * filters[2]
         + here[0] * filters[3] + here[1] * filters[4] + here[2] * filters[5]
         + below[0] * filters[6] + below[1] * filters[7] + below[2] * filters[8];
}

/* Filters are (blocks, 9, LANES). */
static inline void read_filters(floats *to, const float *filters, long block) {
    memcpy(to, filters + block * 9 * LANES, 9 * sizeof(floats));
}

static inline void read_flipped_filters(floats *to, const float *filters, long block) {
    for (int k = 0; k < 9; k++) to[k] = load(filters + (block * 9 + 8 - k) * LANES, LANES);
}

/* Add the contribution of row y of `grad` to the gradient of the filters of one block of `map`. */
static inline void add_filter_gradient(float *sums, Ring grad, Ring map, long y, long block) {
    const floats *above = row_of(map, y - 1, block), *here = row_of(map, y, block), *below = row_of(map, y + 1, block);
    const floats *from = row_of(grad, y, block) + 1;
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
    read_filters(before, sums, block);
    for (int k = 0; k < 9; k++) store(sums + (block * 9 + k) * LANES, before[k] + total[k], LANES);
}

/* Convolutions with larger filters, (blocks, size * size, LANES). */
#define COLUMNS 8
static inline __attribute__((always_inline)) void convolve_large(Ring map, long y, long block, const floats *filters,
                                                                 floats *to, long x, const long count) {
    floats total[COLUMNS] = {{0}};
    for (long dy = -map.reach; dy <= map.reach; dy++) {
        const floats *row = row_of(map, y + dy, block) + x;
        for (long dx = 0; dx <= 2 * map.reach; dx++, filters++)
            for (long i = 0; i < count; i++) total[i] += row[i + dx] * *filters;
    }
    for (long i = 0; i < count; i++) to[x + i] = total[i];
}

static inline void convolve_large_row(Ring map, long y, long block, const floats *filters, floats *to) {
    long x = 0;
    for (; x + COLUMNS <= map.width; x += COLUMNS) convolve_large(map, y, block, filters, to, x, COLUMNS);
    for (; x < map.width; x++) convolve_large(map, y, block, filters, to, x, 1);
}

/* Add the contribution of row y of `grad` to the gradient of the filters of one block of `map`. */
#define LARGEST 7
static inline void add_large_filter_gradient(float *sums, Ring grad, Ring map, long y, long block) {
    long size = 2 * map.reach + 1;
    const floats *from = row_of(grad, y, block) + grad.reach;
    float *to = sums + block * size * size * LANES;
    for (long dy = -map.reach; dy <= map.reach; dy++) {
        const floats *row = row_of(map, y + dy, block);
        floats total[LARGEST] = {{0}};
        for (long x = 0; x < map.width; x++)
            for (long k = 0; k < LARGEST; k++) total[k] += from[x] * row[x + k];
        for (long k = 0; k < LARGEST; k++, to += LANES) store(to, load(to, LANES) + total[k], LANES);
    }
}
