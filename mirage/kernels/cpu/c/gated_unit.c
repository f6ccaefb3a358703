/* Gated convolution, a row of pixels at a time.

   Channels of the hidden map, in blocks: the gates of the values that are not convolved, the gates of those that are,
   then the values in the same order. `plain` and `convolved` count their blocks. filters (blocks, 49, LANES) are those
   of one image; expand (channels x hidden map) and bias compute the hidden map of x, whose pixels are `stride` floats
   apart. One call computes rows `start` to `stop` of one image; the caller owns all memory. */

#include "convolution.h"

#define REACH 3
#define SIZE 49

/* Compute all gates and the values that are not convolved: (blocks, width). */
static void expand_row(float *to, const float *x, const float *expand, const float *bias, long width, long stride,
                       long channels, long count) {
    mirage_product(width, channels, count * LANES, pixels(x, stride), blocked(expand, channels), blocked(to, width),
                   (Init){bias, 0});
}

/* Compute row y of the values that are convolved. */
static void load_row(Ring map, const float *x, const float *expand, const float *bias, long y, long height,
                     long stride, long channels) {
    if (y < 0 || y >= height) {
        clear(map, y);
        return;
    }
    mirage_product(map.width, channels, map.count * LANES, pixels(x + y * map.width * stride, stride),
                   blocked(expand, channels), into(map, y, 0), (Init){bias, 0});
}

void mirage_gated_unit(const float *x, float *out, const float *expand, const float *bias, const float *filters,
                       const float *contract, float *scratch, long height, long width, long stride, long channels,
                       long outputs, long plain, long convolved, long start, long stop) {
    long half = plain + convolved, ahead = half + plain;
    Ring map = ring(&scratch, convolved, width, REACH);
    floats *hidden = (floats *)scratch, *values_convolved = hidden + ahead * width, unused;
    for (long y = start - REACH; y < stop + REACH; y++) {
        load_row(map, x, expand + ahead * channels * LANES, bias + ahead * LANES, y, height, stride, channels);
        long middle = y - REACH;
        if (middle < start) continue;
        expand_row((float *)hidden, x + middle * width * stride, expand, bias, width, stride, channels, ahead);
        for (long p = 0; p < half; p++) {
            floats *gate = hidden + p * width, *values = hidden + (half + p) * width;
            if (p >= plain) {
                values = values_convolved;
                floats filter[SIZE];
                memcpy(filter, filters + (p - plain) * SIZE * LANES, sizeof filter);
                convolve_large_row(map, middle, p - plain, filter, values);
            }
            for (long i = 0; i < width; i++) gate[i] = gelu(gate[i], &unused) * values[i];
        }
        mirage_product(width, half * LANES, outputs, from_blocked((float *)hidden, width),
                       blocked(contract, half * LANES), rows(out + middle * width * outputs, outputs), (Init){0});
    }
}

/* Gradients for rows of one image. contract (outputs x half of the hidden map) and expand_back (hidden map x channels)
   are for the backward products. Adds to grad_expand, grad_bias, grad_filters (blocks, 49, LANES) and grad_contract
   (outputs x half). Gradients of matrices are summed over `batch_rows` rows first. */
void mirage_gated_unit_backward(const float *x, const float *grad_out, float *grad_x, const float *expand,
                                const float *bias, const float *filters, const float *contract,
                                const float *expand_back, float *grad_expand, float *grad_bias, float *grad_filters,
                                float *grad_contract, float *scratch, long height, long width, long stride,
                                long channels, long outputs, long plain, long convolved, long start, long stop,
                                long batch_rows) {
    long half = plain + convolved, ahead = half + plain, whole = 2 * half, batch_pixels = batch_rows * width;
    Ring map = ring(&scratch, convolved, width, REACH);
    Ring grad_convolved = ring(&scratch, convolved, width, REACH); /* gradient of the convolved map */
    floats *hidden = (floats *)scratch, *values_convolved = hidden + ahead * width;
    floats *grad_products = values_convolved + width;
    floats *products = grad_products + half * width, *grad_hidden = products + half * batch_pixels;
    floats *grad_map = grad_hidden + ahead * batch_pixels;

    for (long y = start - 2 * REACH; y < stop + 2 * REACH; y++) {
        load_row(map, x, expand + ahead * channels * LANES, bias + ahead * LANES, y, height, stride, channels);

        long middle = y - REACH;
        int in_range = middle >= start && middle < stop;
        if (middle < start - REACH) continue;
        if (middle >= 0 && middle < height) {
            const float *here = x + middle * width * stride, *grad_out_row = grad_out + middle * width * outputs;
            long row = in_range ? (middle - start) % batch_rows : 0;
            expand_row((float *)hidden, here, expand, bias, width, stride, channels, ahead);
            mirage_product(width, outputs, half * LANES, pixels(grad_out_row, outputs), blocked(contract, outputs),
                           blocked((float *)grad_products, width), (Init){0});
            for (long p = 0; p < half; p++) {
                floats *gate = hidden + p * width, *values = hidden + (half + p) * width;
                floats *g = grad_products + p * width, *product = products + p * batch_pixels + row * width;
                floats *grad_gate = grad_hidden + p * batch_pixels + row * width;
                floats *grad_values = grad_gate + half * batch_pixels, gate_sum = {0}, value_sum = {0};
                if (p >= plain) {
                    values = values_convolved;
                    grad_values = row_of(grad_convolved, middle, p - plain) + REACH;
                    floats filter[SIZE];
                    memcpy(filter, filters + (p - plain) * SIZE * LANES, sizeof filter);
                    convolve_large_row(map, middle, p - plain, filter, values);
                }
                for (long i = 0; i < width; i++) {
                    floats slope, activated = gelu(gate[i], &slope);
                    product[i] = activated * values[i];
                    grad_gate[i] = g[i] * values[i] * slope;
                    grad_values[i] = g[i] * activated;
                    gate_sum += grad_gate[i];
                    value_sum += grad_values[i];
                }
                if (!in_range) continue;
                float *bias_sum = grad_bias + p * LANES;
                store(bias_sum, load(bias_sum, LANES) + gate_sum, LANES);
                bias_sum += half * LANES;
                if (p < plain) store(bias_sum, load(bias_sum, LANES) + value_sum, LANES);
                else add_large_filter_gradient(grad_filters, grad_convolved, map, middle, p - plain);
            }
            if (in_range) {
                mirage_product(width, ahead * LANES, channels,
                               from_blocked((float *)(grad_hidden + row * width), batch_pixels),
                               blocked(expand_back, whole * LANES),
                               rows(grad_x + middle * width * channels, channels), (Init){0});
                if (row + 1 == batch_rows || middle + 1 == stop) {
                    long before = row * width, count = before + width;
                    mirage_product(channels, count, ahead * LANES, transposed(pixels(here - before * stride, stride)),
                                   blocked((float *)grad_hidden, batch_pixels), blocked(grad_expand, channels),
                                   (Init){0, 1});
                    mirage_product(outputs, count, half * LANES,
                                   transposed(pixels(grad_out_row - before * outputs, outputs)),
                                   blocked((float *)products, batch_pixels), blocked(grad_contract, outputs),
                                   (Init){0, 1});
                }
            }
        } else clear(grad_convolved, middle);

        long ready = y - 2 * REACH;
        if (ready < start) continue;
        long row = (ready - start) % batch_rows;
        for (long p = 0; p < convolved; p++) {
            floats flipped[SIZE], total = {0}, *to = grad_map + p * batch_pixels + row * width;
            for (long k = 0; k < SIZE; k++) flipped[k] = load(filters + (p * SIZE + SIZE - 1 - k) * LANES, LANES);
            convolve_large_row(grad_convolved, ready, p, flipped, to);
            for (long i = 0; i < width; i++) total += to[i];
            float *bias_sum = grad_bias + (ahead + p) * LANES;
            store(bias_sum, load(bias_sum, LANES) + total, LANES);
        }
        mirage_product(width, convolved * LANES, channels,
                       from_blocked((float *)(grad_map + row * width), batch_pixels),
                       blocked(expand_back + ahead * LANES * LANES, whole * LANES),
                       rows(grad_x + ready * width * channels, channels), (Init){0, 1});
        if (row + 1 == batch_rows || ready + 1 == stop)
            mirage_product(channels, (row + 1) * width, convolved * LANES,
                           transposed(pixels(x + (ready - row) * width * stride, stride)),
                           blocked((float *)grad_map, batch_pixels),
                           blocked(grad_expand + ahead * channels * LANES, channels), (Init){0, 1});
    }
}
