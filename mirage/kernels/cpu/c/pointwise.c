/* Operators that read one pixel at a time, computed for a few pixels at once: the channel MLP and the fusion of
   branches. */

#include "product.h"

#define PIXELS 128 /* pixels at once; the gradient of a matrix is summed over them before it is added to its total */

/* Two linear layers with a GELU between them, for `count` pixels that are `stride` floats apart. expand (channels x
   hidden), contract (hidden x outputs); `hidden` counts blocks. The caller owns all memory. */
void mirage_channel_mlp(const float *x, float *out, const float *expand, const float *contract, float *scratch,
                        long count, long stride, long channels, long outputs, long hidden) {
    floats *map = (floats *)scratch, unused;
    for (long start = 0; start < count; start += PIXELS) {
        long here = min(PIXELS, count - start);
        mirage_product(here, channels, hidden * LANES, pixels(x + start * stride, stride), blocked(expand, channels),
                       blocked(scratch, PIXELS), (Init){0});
        for (long p = 0; p < hidden; p++)
            for (long i = 0; i < here; i++) map[p * PIXELS + i] = gelu(map[p * PIXELS + i], &unused);
        mirage_product(here, hidden * LANES, outputs, from_blocked(scratch, PIXELS),
                       blocked(contract, hidden * LANES), rows(out + start * outputs, outputs), (Init){0});
    }
}

/* Gradients of the channel MLP; contract (outputs x hidden) and expand_back (hidden x channels) are for the backward
   products. Adds to grad_expand (channels x hidden) and grad_contract (outputs x hidden). */
void mirage_channel_mlp_backward(const float *x, const float *grad_out, float *grad_x, const float *expand,
                                 const float *contract, const float *expand_back, float *grad_expand,
                                 float *grad_contract, float *scratch, long count, long stride, long channels,
                                 long outputs, long hidden) {
    floats *active = (floats *)scratch, *grad_hidden = active + hidden * PIXELS;
    for (long start = 0; start < count; start += PIXELS) {
        long here = min(PIXELS, count - start);
        Scalars from = pixels(x + start * stride, stride), g = pixels(grad_out + start * outputs, outputs);
        mirage_product(here, channels, hidden * LANES, from, blocked(expand, channels),
                       blocked((float *)active, PIXELS), (Init){0});
        mirage_product(here, outputs, hidden * LANES, g, blocked(contract, outputs),
                       blocked((float *)grad_hidden, PIXELS), (Init){0});
        for (long p = 0; p < hidden; p++)
            for (long i = p * PIXELS; i < p * PIXELS + here; i++) {
                floats slope;
                active[i] = gelu(active[i], &slope);
                grad_hidden[i] *= slope;
            }
        mirage_product(here, hidden * LANES, channels, from_blocked((float *)grad_hidden, PIXELS),
                       blocked(expand_back, hidden * LANES), rows(grad_x + start * channels, channels), (Init){0});
        mirage_product(channels, here, hidden * LANES, transposed(from), blocked((float *)grad_hidden, PIXELS),
                       blocked(grad_expand, channels), (Init){0, 1});
        mirage_product(outputs, here, hidden * LANES, transposed(g), blocked((float *)active, PIXELS),
                       blocked(grad_contract, outputs), (Init){0, 1});
    }
}

/* Gate one vector of every branch by the others; write the gates to `gates`. */
static inline __attribute__((always_inline)) void gate_vector(const float *const *branches, floats *gated,
                                                              floats *gates, const float *scales, long at, long left,
                                                              const long count) {
    for (long j = 0; j < count; j++) gated[j] = load(branches[j] + at, left);
    for (long j = 0; j < count; j++) {
        floats others = gated[(j + 1) % count];
        if (count == 3) others += gated[(j + 2) % count];
        gates[j] = sigmoid(others);
    }
    for (long j = 0; j < count; j++) gated[j] += scales[j] * gates[j];
}

/* Gate a few pixels of all branches and concatenate them in blocks. */
static inline __attribute__((always_inline)) void gate_branches(const float *const *branches, floats *to,
                                                                const float *scales, long first, long here,
                                                                long channels, const long count) {
    long each = (channels + LANES - 1) / LANES;
    for (long p = 0; p < each; p++)
        for (long i = 0; i < here; i++) {
            floats gated[3], gates[3];
            long at = (first + i) * channels + p * LANES;
            gate_vector(branches, gated, gates, scales, at, channels - p * LANES, count);
            for (long j = 0; j < count; j++) to[(j * each + p) * PIXELS + i] = gated[j];
        }
}

/* Gate `branches` maps of `count` pixels and `channels` channels, and multiply by weight (blocks of all branches x
   outputs). With two branches the third is not read. */
void mirage_fusion_linear(const float *a, const float *b, const float *c, float *out, const float *scales,
                          const float *weight, float *scratch, long count, long channels, long outputs,
                          long branches) {
    const float *maps[] = {a, b, c};
    long depth = branches * ((channels + LANES - 1) / LANES) * LANES;
    for (long start = 0; start < count; start += PIXELS) {
        long here = min(PIXELS, count - start);
        if (branches == 2) gate_branches(maps, (floats *)scratch, scales, start, here, channels, 2);
        else gate_branches(maps, (floats *)scratch, scales, start, here, channels, 3);
        mirage_product(here, depth, outputs, from_blocked(scratch, PIXELS), blocked(weight, depth),
                       rows(out + start * outputs, outputs), (Init){0});
    }
}

/* Compute the gradients for a few pixels; grad_gated, in blocks, is overwritten with the gated values. */
static inline __attribute__((always_inline)) void gate_branches_backward(const float *const *branches,
                                                                         float *const *grads, floats *grad_gated,
                                                                         const float *scales, float *grad_scales,
                                                                         long first, long here, long channels,
                                                                         const long count) {
    long each = (channels + LANES - 1) / LANES;
    floats along[3] = {{0}};
    for (long p = 0; p < each; p++)
        for (long i = 0; i < here; i++) {
            long at = (first + i) * channels + p * LANES, left = channels - p * LANES;
            floats gated[3], gates[3], grad_out[3], grad_others[3];
            gate_vector(branches, gated, gates, scales, at, left, count);
            for (long j = 0; j < count; j++) {
                floats *place = grad_gated + (j * each + p) * PIXELS + i;
                grad_out[j] = *place;
                *place = gated[j];
                along[j] += gates[j] * grad_out[j];
                grad_others[j] = grad_out[j] * scales[j] * gates[j] * (1.0f - gates[j]);
            }
            for (long j = 0; j < count; j++) {
                floats grad_x = grad_out[j] + grad_others[(j + 1) % count];
                if (count == 3) grad_x += grad_others[(j + 2) % count];
                store(grads[j] + at, grad_x, left);
            }
        }
    for (long j = 0; j < count; j++) grad_scales[j] += sum(along[j]);
}

/* Gradients of the fusion; weight (outputs x blocks of all branches) is for the backward product. Adds to grad_scales
   and grad_weight (in the shape of weight). */
void mirage_fusion_linear_backward(const float *a, const float *b, const float *c, const float *grad_out,
                                   float *grad_a, float *grad_b, float *grad_c, const float *scales,
                                   const float *weight, float *grad_scales, float *grad_weight, float *scratch,
                                   long count, long channels, long outputs, long branches) {
    const float *maps[] = {a, b, c};
    float *grads[] = {grad_a, grad_b, grad_c};
    long width = branches * ((channels + LANES - 1) / LANES) * LANES;
    for (long start = 0; start < count; start += PIXELS) {
        long here = min(PIXELS, count - start);
        Scalars from = pixels(grad_out + start * outputs, outputs);
        mirage_product(here, outputs, width, from, blocked(weight, outputs), blocked(scratch, PIXELS), (Init){0});
        floats *gated = (floats *)scratch;
        if (branches == 2) gate_branches_backward(maps, grads, gated, scales, grad_scales, start, here, channels, 2);
        else gate_branches_backward(maps, grads, gated, scales, grad_scales, start, here, channels, 3);
        mirage_product(outputs, here, width, transposed(from), blocked(scratch, PIXELS),
                       blocked(grad_weight, outputs), (Init){0, 1});
    }
}
