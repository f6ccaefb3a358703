/* Gated convolution, a row of pixels at a time.

   Channels of the hidden map, in planes: the gate of what is not convolved and of what is, then the values, in the same
   order. `plain` and `convolved` count their planes. kernels (planes, 49, LANES) are one image's; expand
   (channels x hidden map) and bias make the hidden map of x, whose pixels are `step` floats apart. One call does rows
   `start` to `stop` of one image; the caller owns all memory. */

#include "windows.h"

#define REACH 3
#define SIZE 49

/* What is not convolved, and all gates: (planes, width). */
static void beside(float *to, const float *x, const float *expand, const float *bias, long width, long step,
                   long channels, long count) {
    mirage_product(width, channels, count * LANES, pixels(x, step), planes(expand, channels), planes(to, width),
            (Start){bias, 0});
}

/* Row y of what is convolved. */
static void enter(Ring map, const float *x, const float *expand, const float *bias, long y, long height, long step,
                  long channels) {
    if (y < 0 || y >= height) {
        clear(map, y);
        return;
    }
    mirage_product(map.width, channels, map.count * LANES, pixels(x + y * map.width * step, step), planes(expand, channels),
            into(map, y, 0), (Start){bias, 0});
}

void mirage_gated_unit(const float *x, float *out, const float *expand, const float *bias, const float *kernels,
                       const float *contract, float *scratch, long height, long width, long step, long channels,
                       long outputs, long plain, long convolved, long start, long stop) {
    long half = plain + convolved, ahead = half + plain;
    Ring map = ring(&scratch, convolved, width, REACH);
    floats *hidden = (floats *)scratch, *windowed = hidden + ahead * width, unused;
    for (long y = start - REACH; y < stop + REACH; y++) {
        enter(map, x, expand + ahead * channels * LANES, bias + ahead * LANES, y, height, step, channels);
        long middle = y - REACH;
        if (middle < start) continue;
        beside((float *)hidden, x + middle * width * step, expand, bias, width, step, channels, ahead);
        for (long p = 0; p < half; p++) {
            floats *gate = hidden + p * width, *values = hidden + (half + p) * width;
            if (p >= plain) {
                values = windowed;
                floats taps[SIZE];
                memcpy(taps, kernels + (p - plain) * SIZE * LANES, sizeof taps);
                large_windows(map, middle, p - plain, taps, values);
            }
            for (long i = 0; i < width; i++) gate[i] = gelu(gate[i], &unused) * values[i];
        }
        mirage_product(width, half * LANES, outputs, in_planes((float *)hidden, width), planes(contract, half * LANES),
                rows(out + middle * width * outputs, outputs), (Start){0});
    }
}

/* Gradients of one image's rows, `above` that of the output. contract (outputs x half of the hidden map) and
   expand_back (hidden map x channels) are for the way back. Added up: to_expand, to_bias, to_kernels (planes, 49, LANES),
   to_contract (outputs x half). Matrices' gradients are summed over `hold` rows first. */
void mirage_gated_unit_backward(const float *x, const float *above, float *grad, const float *expand, const float *bias,
                                const float *kernels, const float *contract, const float *expand_back,
                                float *to_expand, float *to_bias, float *to_kernels, float *to_contract,
                                float *scratch, long height, long width, long step, long channels, long outputs,
                                long plain, long convolved, long start, long stop, long hold) {
    long half = plain + convolved, ahead = half + plain, whole = 2 * half, held = hold * width;
    Ring map = ring(&scratch, convolved, width, REACH);
    Ring after = ring(&scratch, convolved, width, REACH); /* gradient of what the windows made */
    floats *hidden = (floats *)scratch, *windowed = hidden + ahead * width, *to_products = windowed + width;
    floats *products = to_products + half * width, *to_hidden = products + half * held;
    floats *to_map = to_hidden + ahead * held;

    for (long y = start - 2 * REACH; y < stop + 2 * REACH; y++) {
        enter(map, x, expand + ahead * channels * LANES, bias + ahead * LANES, y, height, step, channels);

        long middle = y - REACH;
        int own = middle >= start && middle < stop;
        if (middle < start - REACH) continue;
        if (middle >= 0 && middle < height) {
            const float *here = x + middle * width * step, *above_here = above + middle * width * outputs;
            long row = own ? (middle - start) % hold : 0;
            beside((float *)hidden, here, expand, bias, width, step, channels, ahead);
            mirage_product(width, outputs, half * LANES, pixels(above_here, outputs), planes(contract, outputs),
                    planes((float *)to_products, width), (Start){0});
            for (long p = 0; p < half; p++) {
                floats *gate = hidden + p * width, *values = hidden + (half + p) * width, *g = to_products + p * width;
                floats *made = products + p * held + row * width, *to_gate = to_hidden + p * held + row * width;
                floats *to_values = to_gate + half * held, gate_sum = {0}, value_sum = {0};
                if (p >= plain) {
                    values = windowed;
                    to_values = row_of(after, middle, p - plain) + REACH;
                    floats taps[SIZE];
                    memcpy(taps, kernels + (p - plain) * SIZE * LANES, sizeof taps);
                    large_windows(map, middle, p - plain, taps, values);
                }
                for (long i = 0; i < width; i++) {
                    floats slope, opened = gelu(gate[i], &slope);
                    made[i] = opened * values[i];
                    to_gate[i] = g[i] * values[i] * slope;
                    to_values[i] = g[i] * opened;
                    gate_sum += to_gate[i];
                    value_sum += to_values[i];
                }
                if (!own) continue;
                float *bias_sum = to_bias + p * LANES;
                store(bias_sum, load(bias_sum, LANES) + gate_sum, LANES);
                bias_sum += half * LANES;
                if (p < plain) store(bias_sum, load(bias_sum, LANES) + value_sum, LANES);
                else add_large_taps(to_kernels, after, map, middle, p - plain);
            }
            if (own) {
                mirage_product(width, ahead * LANES, channels, in_planes((float *)(to_hidden + row * width), held),
                        planes(expand_back, whole * LANES), rows(grad + middle * width * channels, channels),
                        (Start){0});
                if (row + 1 == hold || middle + 1 == stop) {
                    long before = row * width, count = before + width;
                    mirage_product(channels, count, ahead * LANES, transposed(pixels(here - before * step, step)),
                            planes((float *)to_hidden, held), planes(to_expand, channels), (Start){0, 1});
                    mirage_product(outputs, count, half * LANES, transposed(pixels(above_here - before * outputs, outputs)),
                            planes((float *)products, held), planes(to_contract, outputs), (Start){0, 1});
                }
            }
        } else clear(after, middle);

        long leaves = y - 2 * REACH;
        if (leaves < start) continue;
        long row = (leaves - start) % hold;
        for (long p = 0; p < convolved; p++) {
            floats flipped[SIZE], total = {0}, *to = to_map + p * held + row * width;
            for (long k = 0; k < SIZE; k++) flipped[k] = load(kernels + (p * SIZE + SIZE - 1 - k) * LANES, LANES);
            large_windows(after, leaves, p, flipped, to);
            for (long i = 0; i < width; i++) total += to[i];
            float *bias_sum = to_bias + (ahead + p) * LANES;
            store(bias_sum, load(bias_sum, LANES) + total, LANES);
        }
        mirage_product(width, convolved * LANES, channels, in_planes((float *)(to_map + row * width), held),
                planes(expand_back + ahead * LANES * LANES, whole * LANES),
                rows(grad + leaves * width * channels, channels), (Start){0, 1});
        if (row + 1 == hold || leaves + 1 == stop)
            mirage_product(channels, (row + 1) * width, convolved * LANES,
                    transposed(pixels(x + (leaves - row) * width * step, step)), planes((float *)to_map, held),
                    planes(to_expand + ahead * channels * LANES, channels), (Start){0, 1});
    }
}
