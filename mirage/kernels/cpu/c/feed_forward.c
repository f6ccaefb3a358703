/* Layer norm and gated feed-forward network, a row of pixels at a time.

   The norm's scale and shift are folded into `expand` (channels x 2n) and `bias` (2n), in blocks: n gates, then n
   values. filters (blocks, 9, LANES); contract is n x channels in forward. One call computes rows `start` to `stop` of
   one image (height, width, channels); the caller owns all memory. */

#include <math.h>
#include "convolution.h"

#define EPS 1e-5f

/* Normalise a row of pixels to mean 0 and variance 1; write 1 / deviation to `scales` unless it is null. */
static void normalise(const float *x, float *to, float *scales, long width, long channels) {
    for (long i = 0; i < width; i++, x += channels, to += channels) {
        floats total = {0}, squares = {0};
        for (long c = 0; c < channels; c += LANES) total += load(x + c, channels - c);
        floats mean = all(sum(total) / channels);
        for (long c = 0; c < channels; c += LANES) {
            floats apart = first(channels - c, load(x + c, channels - c) - mean);
            squares += apart * apart;
        }
        float scale = 1 / sqrtf(sum(squares) / channels + EPS);
        for (long c = 0; c < channels; c += LANES)
            store(to + c, (load(x + c, channels - c) - mean) * scale, channels - c);
        if (scales) scales[i] = scale;
    }
}

/* Replace the gradient g (width, channels) of the result of `normalise` by that of its input. */
static void normalise_backward(float *g, const float *normed, const float *scales, long width, long channels) {
    for (long i = 0; i < width; i++, g += channels, normed += channels) {
        floats total = {0}, along = {0};
        for (long c = 0; c < channels; c += LANES) {
            floats here = load(g + c, channels - c);
            total += here;
            along += here * load(normed + c, channels - c);
        }
        floats mean = all(sum(total) / channels), slope = all(sum(along) / channels);
        for (long c = 0; c < channels; c += LANES) {
            long count = channels - c;
            store(g + c, (load(g + c, count) - mean - load(normed + c, count) * slope) * scales[i], count);
        }
    }
}

/* Compute row y of the hidden map after its GELU, and the derivative of the GELU if `slopes` has memory. */
static void load_row(Ring active, Ring slopes, const float *normed, const float *expand, const float *bias, long y,
                     long channels) {
    long width = active.width;
    for (long p = 0; p < active.count; p += WIDE) {
        long end = min(p + WIDE, active.count);
        mirage_product(width, channels, (end - p) * LANES, pixels(normed, channels),
                       blocked(expand + p * channels * LANES, channels), into(active, y, p),
                       (Init){bias + p * LANES, 0});
        for (long q = p; q < end; q++) {
            floats unused, *row = row_of(active, y, q) + 1, *slope = slopes.at ? row_of(slopes, y, q) + 1 : 0;
            for (long x = 0; x < width; x++) row[x] = gelu(row[x], slope ? slope + x : &unused);
        }
    }
}

void mirage_feed_forward(const float *x, float *out, const float *expand, const float *bias, const float *filters,
                         const float *contract, float *scratch, long height, long width, long channels, long half,
                         long start, long stop) {
    Ring active = ring(&scratch, 2 * half, width, 1), none = {0};
    floats *products = (floats *)scratch;
    float *normed = scratch + half * width * LANES;
    for (long y = start - 1; y <= stop; y++) {
        if (y >= 0 && y < height) {
            normalise(x + y * width * channels, normed, 0, width, channels);
            load_row(active, none, normed, expand, bias, y, channels);
        } else clear(active, y);
        if (y <= start) continue;
        long middle = y - 1;
        for (long p = 0; p < half; p++) {
            floats gate[9], values[9], unused;
            read_filters(gate, filters, p);
            read_filters(values, filters, half + p);
            const floats *g0 = row_of(active, middle - 1, p), *g1 = row_of(active, middle, p),
                         *g2 = row_of(active, y, p), *v0 = row_of(active, middle - 1, half + p),
                         *v1 = row_of(active, middle, half + p), *v2 = row_of(active, y, half + p);
            for (long i = 0; i < width; i++)
                products[p * width + i] = gelu(convolve_3x3(g0 + i, g1 + i, g2 + i, gate), &unused)
                                        * convolve_3x3(v0 + i, v1 + i, v2 + i, values);
        }
        mirage_product(width, half * LANES, channels, from_blocked((float *)products, width),
                       blocked(contract, half * LANES), rows(out + middle * width * channels, channels), (Init){0});
    }
}

/* Gradients for rows of one image. expand, bias and filters as in forward; `contract` (channels x n) and `expand_back`
   (2n x channels) for the backward products. Adds to grad_expand (channels x 2n), grad_bias (2n), grad_filters and
   grad_contract (channels x n). */
void mirage_feed_forward_backward(const float *x, const float *grad_out, float *grad_x, const float *expand,
                                  const float *bias, const float *filters, const float *contract,
                                  const float *expand_back, float *grad_expand, float *grad_bias, float *grad_filters,
                                  float *grad_contract, float *scratch, long height, long width, long channels,
                                  long half, long start, long stop, long batch_rows) {
    long blocks = 2 * half, batch_pixels = batch_rows * width;
    Ring active = ring(&scratch, blocks, width, 1), slopes = ring(&scratch, blocks, width, 1);
    Ring grad_convolved = ring(&scratch, blocks, width, 1); /* gradient of the convolved map */
    floats *products = (floats *)scratch, *grad_hidden = products + half * batch_pixels;
    floats *grad_products = grad_hidden + blocks * batch_pixels;
    float *normed_ahead = (float *)(grad_products + half * width), *normed = normed_ahead + width * channels;
    float *scales = normed + batch_pixels * channels;

    for (long y = start - 2; y <= stop + 1; y++) {
        if (y >= 0 && y < height) {
            normalise(x + y * width * channels, normed_ahead, 0, width, channels);
            load_row(active, slopes, normed_ahead, expand, bias, y, channels);
        } else clear(active, y);

        long middle = y - 1;
        if (middle < start - 1) continue;
        long in_range = middle >= start && middle < stop;
        if (middle >= 0 && middle < height) {
            mirage_product(width, channels, half * LANES, pixels(grad_out + middle * width * channels, channels),
                           blocked(contract, channels), blocked((float *)grad_products, width), (Init){0});
            for (long p = 0; p < half; p++) {
                floats gate[9], values[9];
                read_filters(gate, filters, p);
                read_filters(values, filters, half + p);
                const floats *g0 = row_of(active, middle - 1, p), *g1 = row_of(active, middle, p),
                             *g2 = row_of(active, y, p), *v0 = row_of(active, middle - 1, half + p),
                             *v1 = row_of(active, middle, half + p), *v2 = row_of(active, y, half + p);
                floats *grad_gate = row_of(grad_convolved, middle, p) + 1;
                floats *grad_values = row_of(grad_convolved, middle, half + p) + 1;
                floats *product = in_range ? products + p * batch_pixels + (middle - start) % batch_rows * width : 0;
                for (long i = 0; i < width; i++) {
                    floats slope, activated = gelu(convolve_3x3(g0 + i, g1 + i, g2 + i, gate), &slope);
                    floats v = convolve_3x3(v0 + i, v1 + i, v2 + i, values), g = grad_products[p * width + i];
                    grad_gate[i] = g * v * slope;
                    grad_values[i] = g * activated;
                    if (product) product[i] = activated * v;
                }
            }
            if (in_range) {
                for (long p = 0; p < blocks; p++) add_filter_gradient(grad_filters, grad_convolved, active, middle, p);
                long row = (middle - start) % batch_rows;
                if (row + 1 == batch_rows || middle + 1 == stop)
                    mirage_product(channels, (row + 1) * width, half * LANES,
                                   transposed(pixels(grad_out + (middle - row) * width * channels, channels)),
                                   blocked((float *)products, batch_pixels), blocked(grad_contract, channels),
                                   (Init){0, 1});
            }
        } else clear(grad_convolved, middle);

        long ready = y - 2;
        if (ready < start || ready >= stop) continue;
        long row = (ready - start) % batch_rows;
        float *normed_here = normed + row * width * channels, *grad_x_row = grad_x + ready * width * channels;
        normalise(x + ready * width * channels, normed_here, scales, width, channels);
        for (long p = 0; p < blocks; p++) {
            floats flipped[9], total = {0};
            read_flipped_filters(flipped, filters, p);
            const floats *a = row_of(grad_convolved, ready - 1, p), *b = row_of(grad_convolved, ready, p),
                         *c = row_of(grad_convolved, ready + 1, p), *slope = row_of(slopes, ready, p) + 1;
            floats *to = grad_hidden + p * batch_pixels + row * width;
            for (long i = 0; i < width; i++) {
                to[i] = convolve_3x3(a + i, b + i, c + i, flipped) * slope[i];
                total += to[i];
            }
            store(grad_bias + p * LANES, load(grad_bias + p * LANES, LANES) + total, LANES);
        }
        mirage_product(width, blocks * LANES, channels,
                       from_blocked((float *)(grad_hidden + row * width), batch_pixels),
                       blocked(expand_back, blocks * LANES), rows(grad_x_row, channels), (Init){0});
        normalise_backward(grad_x_row, normed_here, scales, width, channels);
        if (row + 1 == batch_rows || ready + 1 == stop)
            mirage_product(channels, (row + 1) * width, blocks * LANES, transposed(pixels(normed, channels)),
                           blocked((float *)grad_hidden, batch_pixels), blocked(grad_expand, channels), (Init){0, 1});
    }
}
