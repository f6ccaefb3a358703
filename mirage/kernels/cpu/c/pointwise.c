/* Regions that look at one pixel at a time, a few pixels at once: the channel MLP and the fusion of branches. */

#include "product.h"

#define AT_ONCE 128 /* pixels, over which the gradient of a matrix is summed before it is added to its total */

/* Two layers, GELU between them, of `count` pixels that are `step` floats apart. expand (channels x hidden), contract
   (hidden x outputs); `hidden` counts planes. The caller owns all memory. */
void mirage_channel_mlp(const float *x, float *out, const float *expand, const float *contract, float *scratch,
                        long count, long step, long channels, long outputs, long hidden) {
    floats *map = (floats *)scratch, unused;
    for (long start = 0; start < count; start += AT_ONCE) {
        long here = least(AT_ONCE, count - start);
        mirage_product(here, channels, hidden * LANES, pixels(x + start * step, step), planes(expand, channels),
                planes(scratch, AT_ONCE), (Start){0});
        for (long p = 0; p < hidden; p++)
            for (long i = 0; i < here; i++) map[p * AT_ONCE + i] = gelu(map[p * AT_ONCE + i], &unused);
        mirage_product(here, hidden * LANES, outputs, in_planes(scratch, AT_ONCE), planes(contract, hidden * LANES),
                rows(out + start * outputs, outputs), (Start){0});
    }
}

/* Its gradients; contract (outputs x hidden) and expand_back (hidden x channels) are for the way back. Added up:
   to_expand (channels x hidden), to_contract (outputs x hidden). */
void mirage_channel_mlp_backward(const float *x, const float *above, float *grad, const float *expand,
                                 const float *contract, const float *expand_back, float *to_expand,
                                 float *to_contract, float *scratch, long count, long step, long channels,
                                 long outputs, long hidden) {
    floats *active = (floats *)scratch, *to_hidden = active + hidden * AT_ONCE;
    for (long start = 0; start < count; start += AT_ONCE) {
        long here = least(AT_ONCE, count - start);
        Numbers from = pixels(x + start * step, step), g = pixels(above + start * outputs, outputs);
        mirage_product(here, channels, hidden * LANES, from, planes(expand, channels), planes((float *)active, AT_ONCE),
                (Start){0});
        mirage_product(here, outputs, hidden * LANES, g, planes(contract, outputs), planes((float *)to_hidden, AT_ONCE),
                (Start){0});
        for (long p = 0; p < hidden; p++)
            for (long i = p * AT_ONCE; i < p * AT_ONCE + here; i++) {
                floats slope;
                active[i] = gelu(active[i], &slope);
                to_hidden[i] *= slope;
            }
        mirage_product(here, hidden * LANES, channels, in_planes((float *)to_hidden, AT_ONCE),
                planes(expand_back, hidden * LANES), rows(grad + start * channels, channels), (Start){0});
        mirage_product(channels, here, hidden * LANES, transposed(from), planes((float *)to_hidden, AT_ONCE),
                planes(to_expand, channels), (Start){0, 1});
        mirage_product(outputs, here, hidden * LANES, transposed(g), planes((float *)active, AT_ONCE),
                planes(to_contract, outputs), (Start){0, 1});
    }
}

/* One vector of every branch, each lifted by the gate that the others open; the gates too. */
static inline __attribute__((always_inline)) void lift(const float *const *branches, floats *lifted, floats *gates,
                                                       const float *scales, long at, long left, const long count) {
    for (long j = 0; j < count; j++) lifted[j] = load(branches[j] + at, left);
    for (long j = 0; j < count; j++) {
        floats others = lifted[(j + 1) % count];
        if (count == 3) others += lifted[(j + 2) % count];
        gates[j] = sigmoid(others);
    }
    for (long j = 0; j < count; j++) lifted[j] += scales[j] * gates[j];
}

/* Some pixels of all branches, lifted, side by side in planes. */
static inline __attribute__((always_inline)) void lift_all(const float *const *branches, floats *to,
                                                           const float *scales, long first, long here, long channels,
                                                           const long count) {
    long each = (channels + LANES - 1) / LANES;
    for (long p = 0; p < each; p++)
        for (long i = 0; i < here; i++) {
            floats lifted[3], gates[3];
            lift(branches, lifted, gates, scales, (first + i) * channels + p * LANES, channels - p * LANES, count);
            for (long j = 0; j < count; j++) to[(j * each + p) * AT_ONCE + i] = lifted[j];
        }
}

/* `branches` maps of `count` pixels and `channels` each, lifted, times weight (branches' planes x outputs). Of two
   branches the third is not read. */
void mirage_fused_product(const float *a, const float *b, const float *c, float *out, const float *scales,
                          const float *weight, float *scratch, long count, long channels, long outputs,
                          long branches) {
    const float *maps[] = {a, b, c};
    long depth = branches * ((channels + LANES - 1) / LANES) * LANES;
    for (long start = 0; start < count; start += AT_ONCE) {
        long here = least(AT_ONCE, count - start);
        if (branches == 2) lift_all(maps, (floats *)scratch, scales, start, here, channels, 2);
        else lift_all(maps, (floats *)scratch, scales, start, here, channels, 3);
        mirage_product(here, depth, outputs, in_planes(scratch, AT_ONCE), planes(weight, depth),
                rows(out + start * outputs, outputs), (Start){0});
    }
}

/* Gradients of some pixels: to_lifted, in planes, becomes what was lifted. */
static inline __attribute__((always_inline)) void lift_backward(const float *const *branches, float *const *grads,
                                                                floats *to_lifted, const float *scales,
                                                                float *to_scales, long first, long here,
                                                                long channels, const long count) {
    long each = (channels + LANES - 1) / LANES;
    floats along[3] = {{0}};
    for (long p = 0; p < each; p++)
        for (long i = 0; i < here; i++) {
            long at = (first + i) * channels + p * LANES, left = channels - p * LANES;
            floats lifted[3], gates[3], above[3], to_others[3];
            lift(branches, lifted, gates, scales, at, left, count);
            for (long j = 0; j < count; j++) {
                floats *place = to_lifted + (j * each + p) * AT_ONCE + i;
                above[j] = *place;
                *place = lifted[j];
                along[j] += gates[j] * above[j];
                to_others[j] = above[j] * scales[j] * gates[j] * (1.0f - gates[j]);
            }
            for (long j = 0; j < count; j++) {
                floats grad = above[j] + to_others[(j + 1) % count];
                if (count == 3) grad += to_others[(j + 2) % count];
                store(grads[j] + at, grad, left);
            }
        }
    for (long j = 0; j < count; j++) to_scales[j] += sum(along[j]);
}

/* Its gradients; weight (outputs x branches' planes) is for the way back. Added up: to_scales, to_weight (outputs x
   branches' planes). */
void mirage_fused_product_backward(const float *a, const float *b, const float *c, const float *above, float *to_a,
                                   float *to_b, float *to_c, const float *scales, const float *weight,
                                   float *to_scales, float *to_weight, float *scratch, long count, long channels,
                                   long outputs, long branches) {
    const float *maps[] = {a, b, c};
    float *grads[] = {to_a, to_b, to_c};
    long width = branches * ((channels + LANES - 1) / LANES) * LANES;
    for (long start = 0; start < count; start += AT_ONCE) {
        long here = least(AT_ONCE, count - start);
        Numbers from = pixels(above + start * outputs, outputs);
        mirage_product(here, outputs, width, from, planes(weight, outputs), planes(scratch, AT_ONCE), (Start){0});
        floats *lifted = (floats *)scratch;
        if (branches == 2) lift_backward(maps, grads, lifted, scales, to_scales, start, here, channels, 2);
        else lift_backward(maps, grads, lifted, scales, to_scales, start, here, channels, 3);
        mirage_product(outputs, here, width, transposed(from), planes(scratch, AT_ONCE), planes(to_weight, outputs),
                (Start){0, 1});
    }
}
