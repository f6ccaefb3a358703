/* What channel attention takes of a map, a row of pixels at a time: v, and the Gram matrix of q and k.

   q, k and v are `each` planes; matrix is channels x 3 parts, taps (planes, 9, LANES). One call does rows `start` to
   `stop` of one image, whose pixels are `step` floats apart; the caller owns all memory. */

#include "windows.h"

static void enter(Ring map, const float *x, const float *matrix, long y, long height, long step, long channels) {
    if (y < 0 || y >= height) {
        clear(map, y);
        return;
    }
    mirage_product(map.width, channels, map.count * LANES, pixels(x + y * map.width * step, step), planes(matrix, channels),
            into(map, y, 0), (Start){0});
}

/* Row y of one plane behind its windows. */
static void windows(Ring map, long y, long plane, const floats *taps, floats *to) {
    const floats *above = row_of(map, y - 1, plane), *here = row_of(map, y, plane), *below = row_of(map, y + 1, plane);
    for (long i = 0; i < map.width; i++) to[i] = window(above + i, here + i, below + i, taps);
}

/* Added up: gram (q and k's channels, squared). Its sums are taken over `hold` rows first. */
void mirage_attention_input(const float *x, float *v, float *gram, const float *matrix, const float *taps,
                            float *scratch, long height, long width, long step, long channels, long values, long each,
                            long start, long stop, long hold) {
    long held = hold * width, both = 2 * each * LANES;
    Ring map = ring(&scratch, 3 * each, width, 1);
    floats *qk = (floats *)scratch, *row_of_v = qk + 2 * each * held, here[9];
    for (long y = start - 1; y <= stop; y++) {
        enter(map, x, matrix, y, height, step, channels);
        long middle = y - 1, row = (middle - start) % hold;
        if (middle < start) continue;
        for (long p = 0; p < 3 * each; p++) {
            read_taps(here, taps, p);
            windows(map, middle, p, here, p < 2 * each ? qk + p * held + row * width : row_of_v);
            if (p < 2 * each) continue;
            long channel = (p - 2 * each) * LANES;
            for (long i = 0; i < width; i++)
                store(v + (middle * width + i) * values + channel, row_of_v[i], values - channel);
        }
        if (row + 1 < hold && middle + 1 < stop) continue;
        for (long p = 0; p < 2 * each; p++)
            mirage_product(LANES, (row + 1) * width, both, transposed(in_planes((float *)(qk + p * held), held)),
                    planes((float *)qk, held), planes(gram + p * LANES * LANES, both), (Start){0, 1});
    }
}

/* Gradients of one image's rows. to_qk (q and k's channels, squared) takes q and k to their gradient; matrix_back is
   3 parts x channels. Added up: to_matrix (channels x 3 parts), to_taps. */
void mirage_attention_input_backward(const float *x, const float *above, float *grad, const float *matrix,
                                     const float *taps, const float *to_qk, const float *matrix_back,
                                     float *to_matrix, float *to_taps, float *scratch, long height, long width,
                                     long step, long channels, long values, long each, long start, long stop,
                                     long hold) {
    long held = hold * width, whole = 3 * each, both = 2 * each * LANES;
    Ring map = ring(&scratch, whole, width, 1), after = ring(&scratch, whole, width, 1);
    floats *qk = (floats *)scratch, *to_map = qk + 2 * each * width, here[9];
    for (long y = start - 2; y <= stop + 1; y++) {
        enter(map, x, matrix, y, height, step, channels);

        long middle = y - 1;
        if (middle < start - 1) continue;
        if (middle >= 0 && middle < height) {
            for (long p = 0; p < 2 * each; p++) {
                read_taps(here, taps, p);
                windows(map, middle, p, here, qk + p * width);
            }
            mirage_product(width, both, both, in_planes((float *)qk, width), planes(to_qk, both), into(after, middle, 0),
                    (Start){0});
            for (long p = 0; p < each; p++) {
                floats *to = row_of(after, middle, 2 * each + p) + 1;
                const float *from = above + middle * width * values + p * LANES;
                for (long i = 0; i < width; i++) to[i] = load(from + i * values, values - p * LANES);
            }
            if (middle >= start && middle < stop)
                for (long p = 0; p < whole; p++) add_taps(to_taps, after, map, middle, p);
        } else clear(after, middle);

        long leaves = y - 2, row = (leaves - start) % hold;
        if (leaves < start) continue;
        for (long p = 0; p < whole; p++) {
            read_flipped(here, taps, p);
            windows(after, leaves, p, here, to_map + p * held + row * width);
        }
        mirage_product(width, whole * LANES, channels, in_planes((float *)(to_map + row * width), held),
                planes(matrix_back, whole * LANES), rows(grad + leaves * width * channels, channels), (Start){0});
        if (row + 1 == hold || leaves + 1 == stop)
            mirage_product(channels, (row + 1) * width, whole * LANES,
                    transposed(pixels(x + (leaves - row) * width * step, step)), planes((float *)to_map, held),
                    planes(to_matrix, channels), (Start){0, 1});
    }
}
