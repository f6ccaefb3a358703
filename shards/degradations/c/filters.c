/* Filters of degradations: the sums of convolution.py and resampling.py, in the same order.

Each sum is a chain of separate products and additions (no fused ones: the flags forbid contraction), so the bits are
those of NumPy on every processor. Images are (h, w, channels) of float. */

#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#define ROWS 4  /* rows and vectors of a row that are summed at once, to stay in registers */
#define BLOCK 2

typedef float vector __attribute__((vector_size(LANES * sizeof(float))));
typedef float pixel __attribute__((vector_size(4 * sizeof(float))));

/* A place of the image, relative to a value of the first of ROWS rows, with its weight for each of them. */
typedef struct {
    long offset;
    float weights[ROWS];
} tap;

static long mirrored(long place, long size) {
    long remainder = ((place % (2 * size)) + 2 * size) % (2 * size);
    return remainder < size ? remainder : 2 * size - 1 - remainder;
}

/* Fill a row of (width + 2 * right) pixels: an image's row between its mirror images. */
static void fill(float *to, const float *from, long width, long channels, long right) {
    size_t bytes = (size_t)channels * sizeof(float);
    memcpy(to + right * channels, from, (size_t)width * bytes);
    for (long x = 1; x <= right; x++) {
        memcpy(to + (right - x) * channels, from + mirrored(-x, width) * channels, bytes);
        memcpy(to + (right + width - 1 + x) * channels, from + mirrored(width - 1 + x, width) * channels, bytes);
    }
}

/* List the taps of a kernel that is turned by half a turn, row by row; return their number. A tap whose weight is 0
 * for some of the rows adds 0 to them, which changes no bit. */
static long list_taps(const float *kernel, long height, long width, long columns, long channels, tap *taps) {
    long number = 0;
    for (long y = 0; y < height + ROWS - 1; y++)
        for (long x = 0; x < width; x++) {
            tap next = {y * columns + x * channels, {0}};
            int any = 0;
            for (long k = 0; k < ROWS; k++)
                if (y - k >= 0 && y - k < height) {
                    next.weights[k] = kernel[(height - 1 - (y - k)) * width + width - 1 - x];
                    any |= next.weights[k] != 0;
                }
            if (any) taps[number++] = next;
        }
    return number;
}

/* Sum the taps of a block of the image, in their order. */
static void sum_taps(const float *from, const tap *taps, long number, float out[ROWS][BLOCK * LANES]) {
    vector sums[ROWS][BLOCK] = {0};
    for (long t = 0; t < number; t++) {
        vector values[BLOCK];
        for (int b = 0; b < BLOCK; b++) memcpy(&values[b], from + taps[t].offset + b * LANES, sizeof(vector));
        for (int k = 0; k < ROWS; k++)
            for (int b = 0; b < BLOCK; b++) sums[k][b] += taps[t].weights[k] * values[b];
    }
    for (int k = 0; k < ROWS; k++)
        for (int b = 0; b < BLOCK; b++) memcpy(out[k] + b * LANES, &sums[k][b], sizeof(vector));
}

/* Convolve an image, mirrored beyond its border, with a kernel of odd sides. Return 0 if there is no memory. */
long degradations_convolve(const float *image, const float *kernel, float *out, long height, long width,
                           long channels, long kernel_height, long kernel_width) {
    long down = kernel_height / 2, right = kernel_width / 2;
    long columns = (width + 2 * right) * channels, length = width * channels;
    /* The last rows and vectors may compute more than the image has: the memory reaches as far. */
    long rows = height + 2 * down + ROWS - 1;
    float *padded = calloc((size_t)(rows * columns + BLOCK * LANES), sizeof(float));
    tap *taps = malloc((size_t)((kernel_height + ROWS - 1) * kernel_width) * sizeof(tap));
    long enough = padded && taps;
    if (enough) {
        for (long y = -down; y < height + down; y++)
            fill(padded + (y + down) * columns, image + mirrored(y, height) * length, width, channels, right);
        long number = list_taps(kernel, kernel_height, kernel_width, columns, channels, taps);
        for (long y = 0; y < height; y += ROWS)
            for (long x = 0; x < length; x += BLOCK * LANES) {
                float sums[ROWS][BLOCK * LANES];
                sum_taps(padded + y * columns + x, taps, number, sums);
                long values = length - x < BLOCK * LANES ? length - x : BLOCK * LANES;
                for (long k = 0; k < ROWS && y + k < height; k++)
                    memcpy(out + (y + k) * length + x, sums[k], (size_t)values * sizeof(float));
            }
    }
    free(padded);
    free(taps);
    return enough;
}

/* Sum rows: out[j] = shares[t][j] * image[places[t][j]], in the order of t; rows have `length` values. */
long degradations_resize_rows(const float *image, const long *places, const float *shares, float *out, long target,
                              long taps, long length) {
    for (long j = 0; j < target; j++) {
        long x = 0;
        for (; x + BLOCK * LANES <= length; x += BLOCK * LANES) {
            vector sums[BLOCK] = {0};
            for (long t = 0; t < taps; t++) {
                const float *from = image + places[t * target + j] * length + x;
                for (int b = 0; b < BLOCK; b++) {
                    vector values;
                    memcpy(&values, from + b * LANES, sizeof values);
                    sums[b] += shares[t * target + j] * values;
                }
            }
            for (int b = 0; b < BLOCK; b++) memcpy(out + j * length + x + b * LANES, &sums[b], sizeof(vector));
        }
        for (; x < length; x++) {
            float sum = 0;
            for (long t = 0; t < taps; t++)
                sum += shares[t * target + j] * image[places[t * target + j] * length + x];
            out[j * length + x] = sum;
        }
    }
    return 1;
}

/* Sum the columns of an RGB image likewise. A pixel is read and written as four values; the fourth is the next one's. */
long degradations_resize_columns(const float *image, const long *places, const float *shares, float *out, long target,
                                 long taps, long height, long width) {
    float *row = calloc((size_t)(3 * width + 1), sizeof(float));
    float *resized = malloc((size_t)(3 * target + 1) * sizeof(float));
    long enough = row && resized;
    for (long y = 0; enough && y < height; y++) {
        memcpy(row, image + y * width * 3, (size_t)(3 * width) * sizeof(float));
        for (long j = 0; j < target; j++) {
            pixel sum = {0};
            for (long t = 0; t < taps; t++) {
                pixel value;
                memcpy(&value, row + 3 * places[t * target + j], sizeof value);
                sum += shares[t * target + j] * value;
            }
            memcpy(resized + 3 * j, &sum, sizeof sum);
        }
        memcpy(out + y * target * 3, resized, (size_t)(3 * target) * sizeof(float));
    }
    free(row);
    free(resized);
    return enough;
}
