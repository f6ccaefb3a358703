/* Layer norm and gated feed-forward network, a row of pixels at a time.

   The norm's own scale and shift are already in `expand` (channels x 2n) and `bias` (2n), in planes: those of the gate
   and as many of the values. taps (planes, 9, LANES); contract is n x channels in forward. One call does rows `first` to
   `last` of one image of (height, width, channels); the caller owns all memory. */

#include <math.h>
#include "windows.h"

#define EPS 1e-5f

/* A row of pixels with mean 0 and variance 1 each; 1 / deviation to `scales`, unless that is null. */
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

/* Gradient of `normalise`: g (width, channels) of what it made becomes that of what it took. */
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

/* Row y of the hidden map behind its GELU, and the GELU's slopes unless there is no ring for them. */
static void enter(Ring active, Ring slopes, const float *normed, const float *expand, const float *bias, long y,
                  long channels) {
    long width = active.width;
    for (long p = 0; p < active.count; p += WIDE) {
        long end = least(p + WIDE, active.count);
        mirage_product(width, channels, (end - p) * LANES, pixels(normed, channels),
                planes(expand + p * channels * LANES, channels), into(active, y, p), (Start){bias + p * LANES, 0});
        for (long q = p; q < end; q++) {
            floats unused, *row = row_of(active, y, q) + 1, *slope = slopes.at ? row_of(slopes, y, q) + 1 : 0;
            for (long x = 0; x < width; x++) row[x] = gelu(row[x], slope ? slope + x : &unused);
        }
    }
}

void mirage_feed_forward(const float *x, float *out, const float *expand, const float *bias, const float *taps,
                         const float *contract, float *scratch, long height, long width, long channels, long half,
                         long start, long stop) {
    Ring active = ring(&scratch, 2 * half, width, 1), none = {0};
    floats *products = (floats *)scratch;
    float *normed = scratch + half * width * LANES;
    for (long y = start - 1; y <= stop; y++) {
        if (y >= 0 && y < height) {
            normalise(x + y * width * channels, normed, 0, width, channels);
            enter(active, none, normed, expand, bias, y, channels);
        } else clear(active, y);
        if (y <= start) continue;
        long middle = y - 1;
        for (long p = 0; p < half; p++) {
            floats gate[9], values[9], unused;
            read_taps(gate, taps, p);
            read_taps(values, taps, half + p);
            const floats *g0 = row_of(active, middle - 1, p), *g1 = row_of(active, middle, p),
                         *g2 = row_of(active, y, p), *v0 = row_of(active, middle - 1, half + p),
                         *v1 = row_of(active, middle, half + p), *v2 = row_of(active, y, half + p);
            for (long i = 0; i < width; i++)
                products[p * width + i] =
                    gelu(window(g0 + i, g1 + i, g2 + i, gate), &unused) * window(v0 + i, v1 + i, v2 + i, values);
        }
        mirage_product(width, half * LANES, channels, in_planes((float *)products, width), planes(contract, half * LANES),
                rows(out + middle * width * channels, channels), (Start){0});
    }
}

/* Gradients of one image's rows. `above` is the gradient of the output. expand, bias and taps as in forward;
   `contract` (channels x n) and `expand_back` (2n x channels) are for the way back. Added up: to_expand
   (channels x 2n), to_bias (2n), to_taps, to_contract (channels x n). */
void mirage_feed_forward_backward(const float *x, const float *above, float *grad, const float *expand,
                                  const float *bias, const float *taps, const float *contract,
                                  const float *expand_back, float *to_expand, float *to_bias, float *to_taps,
                                  float *to_contract, float *scratch, long height, long width, long channels, long half,
                                  long start, long stop, long hold) {
    long all_planes = 2 * half, held = hold * width;
    Ring active = ring(&scratch, all_planes, width, 1), slopes = ring(&scratch, all_planes, width, 1);
    Ring after = ring(&scratch, all_planes, width, 1); /* gradient of what the windows made */
    floats *products = (floats *)scratch, *to_hidden = products + half * held;
    floats *to_products = to_hidden + all_planes * held;
    float *normed_ahead = (float *)(to_products + half * width), *normed = normed_ahead + width * channels;
    float *scales = normed + held * channels;

    for (long y = start - 2; y <= stop + 1; y++) {
        if (y >= 0 && y < height) {
            normalise(x + y * width * channels, normed_ahead, 0, width, channels);
            enter(active, slopes, normed_ahead, expand, bias, y, channels);
        } else clear(active, y);

        long middle = y - 1;
        if (middle < start - 1) continue;
        long own = middle >= start && middle < stop;
        if (middle >= 0 && middle < height) {
            mirage_product(width, channels, half * LANES, pixels(above + middle * width * channels, channels),
                    planes(contract, channels), planes((float *)to_products, width), (Start){0});
            for (long p = 0; p < half; p++) {
                floats gate[9], values[9];
                read_taps(gate, taps, p);
                read_taps(values, taps, half + p);
                const floats *g0 = row_of(active, middle - 1, p), *g1 = row_of(active, middle, p),
                             *g2 = row_of(active, y, p), *v0 = row_of(active, middle - 1, half + p),
                             *v1 = row_of(active, middle, half + p), *v2 = row_of(active, y, half + p);
                floats *to_gate = row_of(after, middle, p) + 1, *to_values = row_of(after, middle, half + p) + 1;
                floats *made = own ? products + p * held + (middle - start) % hold * width : 0;
                for (long i = 0; i < width; i++) {
                    floats slope, opened = gelu(window(g0 + i, g1 + i, g2 + i, gate), &slope);
                    floats v = window(v0 + i, v1 + i, v2 + i, values), g = to_products[p * width + i];
                    to_gate[i] = g * v * slope;
                    to_values[i] = g * opened;
                    if (made) made[i] = opened * v;
                }
            }
            if (own) {
                for (long p = 0; p < all_planes; p++) add_taps(to_taps, after, active, middle, p);
                long row = (middle - start) % hold;
                if (row + 1 == hold || middle + 1 == stop)
                    mirage_product(channels, (row + 1) * width, half * LANES,
                            transposed(pixels(above + (middle - row) * width * channels, channels)),
                            planes((float *)products, held), planes(to_contract, channels), (Start){0, 1});
            }
        } else clear(after, middle);

        long leaves = y - 2;
        if (leaves < start || leaves >= stop) continue;
        long row = (leaves - start) % hold;
        float *normed_here = normed + row * width * channels, *to_x = grad + leaves * width * channels;
        normalise(x + leaves * width * channels, normed_here, scales, width, channels);
        for (long p = 0; p < all_planes; p++) {
            floats flipped[9], total = {0};
            read_flipped(flipped, taps, p);
            const floats *a = row_of(after, leaves - 1, p), *b = row_of(after, leaves, p),
                         *c = row_of(after, leaves + 1, p), *slope = row_of(slopes, leaves, p) + 1;
            floats *to = to_hidden + p * held + row * width;
            for (long i = 0; i < width; i++) {
                to[i] = window(a + i, b + i, c + i, flipped) * slope[i];
                total += to[i];
            }
            store(to_bias + p * LANES, load(to_bias + p * LANES, LANES) + total, LANES);
        }
        mirage_product(width, all_planes * LANES, channels, in_planes((float *)(to_hidden + row * width), held),
                planes(expand_back, all_planes * LANES), rows(to_x, channels), (Start){0});
        normalise_backward(to_x, normed_here, scales, width, channels);
        if (row + 1 == hold || leaves + 1 == stop)
            mirage_product(channels, (row + 1) * width, all_planes * LANES, transposed(pixels(normed, channels)),
                    planes((float *)to_hidden, held), planes(to_expand, channels), (Start){0, 1});
    }
}
