/* Input of channel attention, a row of pixels at a time: v, and the Gram matrix of q and k.

   q, k and v have `each` blocks; matrix is channels x 3 parts, filters (blocks, 9, LANES). One call computes rows
   `start` to `stop` of one image, whose pixels are `stride` floats apart; the caller owns all memory. */

#include "convolution.h"

/* Compute row y of q, k and v before the convolution; zeros outside the image. */
static void load_row(Ring map, const float *x, const float *matrix, long y, long height, long stride, long channels) {
    if (y < 0 || y >= height) {
        clear(map, y);
        return;
    }
    mirage_product(map.width, channels, map.count * LANES, pixels(x + y * map.width * stride, stride),
                   blocked(matrix, channels), into(map, y, 0), (Init){0});
}

/* Convolve row y of one block. */
static void convolve_row(Ring map, long y, long block, const floats *filters, floats *to) {
    const floats *above = row_of(map, y - 1, block), *here = row_of(map, y, block), *below = row_of(map, y + 1, block);
    for (long i = 0; i < map.width; i++) to[i] = convolve_3x3(above + i, here + i, below + i, filters);
}

/* Adds to gram (channels of q and k, squared). Sums over `batch_rows` rows are formed first. */
void mirage_attention_input(const float *x, float *v, float *gram, const float *matrix, const float *filters,
                            float *scratch, long height, long width, long stride, long channels, long values,
                            long each, long start, long stop, long batch_rows) {
    long batch_pixels = batch_rows * width, both = 2 * each * LANES;
    Ring map = ring(&scratch, 3 * each, width, 1);
    floats *qk = (floats *)scratch, *row_of_v = qk + 2 * each * batch_pixels, here[9];
    for (long y = start - 1; y <= stop; y++) {
        load_row(map, x, matrix, y, height, stride, channels);
        long middle = y - 1, row = (middle - start) % batch_rows;
        if (middle < start) continue;
        for (long p = 0; p < 3 * each; p++) {
            read_filters(here, filters, p);
            convolve_row(map, middle, p, here, p < 2 * each ? qk + p * batch_pixels + row * width : row_of_v);
            if (p < 2 * each) continue;
            long channel = (p - 2 * each) * LANES;
            for (long i = 0; i < width; i++)
                store(v + (middle * width + i) * values + channel, row_of_v[i], values - channel);
        }
        if (row + 1 < batch_rows && middle + 1 < stop) continue;
        for (long p = 0; p < 2 * each; p++)
            mirage_product(LANES, (row + 1) * width, both,
                           transposed(from_blocked((float *)(qk + p * batch_pixels), batch_pixels)),
                           blocked((float *)qk, batch_pixels), blocked(gram + p * LANES * LANES, both), (Init){0, 1});
    }
}

/* Gradients for rows of one image. grad_qk (channels of q and k, squared) maps q and k to their gradient; matrix_back
   is 3 parts x channels. Adds to grad_matrix (channels x 3 parts) and grad_filters. */
void mirage_attention_input_backward(const float *x, const float *grad_out, float *grad_x, const float *matrix,
                                     const float *filters, const float *grad_qk, const float *matrix_back,
                                     float *grad_matrix, float *grad_filters, float *scratch, long height, long width,
                                     long stride, long channels, long values, long each, long start, long stop,
                                     long batch_rows) {
    long batch_pixels = batch_rows * width, whole = 3 * each, both = 2 * each * LANES;
    Ring map = ring(&scratch, whole, width, 1), grad_convolved = ring(&scratch, whole, width, 1);
    floats *qk = (floats *)scratch, *grad_map = qk + 2 * each * width, here[9];
    for (long y = start - 2; y <= stop + 1; y++) {
        load_row(map, x, matrix, y, height, stride, channels);

        long middle = y - 1;
        if (middle < start - 1) continue;
        if (middle >= 0 && middle < height) {
            for (long p = 0; p < 2 * each; p++) {
                read_filters(here, filters, p);
                convolve_row(map, middle, p, here, qk + p * width);
            }
            mirage_product(width, both, both, from_blocked((float *)qk, width), blocked(grad_qk, both),
                           into(grad_convolved, middle, 0), (Init){0});
            for (long p = 0; p < each; p++) {
                floats *to = row_of(grad_convolved, middle, 2 * each + p) + 1;
                const float *from = grad_out + middle * width * values + p * LANES;
                for (long i = 0; i < width; i++) to[i] = load(from + i * values, values - p * LANES);
            }
            if (middle >= start && middle < stop)
                for (long p = 0; p < whole; p++) add_filter_gradient(grad_filters, grad_convolved, map, middle, p);
        } else clear(grad_convolved, middle);

        long ready = y - 2, row = (ready - start) % batch_rows;
        if (ready < start) continue;
        for (long p = 0; p < whole; p++) {
            read_flipped_filters(here, filters, p);
            convolve_row(grad_convolved, ready, p, here, grad_map + p * batch_pixels + row * width);
        }
        mirage_product(width, whole * LANES, channels, from_blocked((float *)(grad_map + row * width), batch_pixels),
                       blocked(matrix_back, whole * LANES), rows(grad_x + ready * width * channels, channels),
                       (Init){0});
        if (row + 1 == batch_rows || ready + 1 == stop)
            mirage_product(channels, (row + 1) * width, whole * LANES,
                           transposed(pixels(x + (ready - row) * width * stride, stride)),
                           blocked((float *)grad_map, batch_pixels), blocked(grad_matrix, channels), (Init){0, 1});
    }
}
