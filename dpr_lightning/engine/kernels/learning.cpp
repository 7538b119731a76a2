// Backward passes of layers, and what is made of logits, each in one pass over memory.
//
// Sums are float. What a row gives does not depend on how many rows there are, nor on how many threads.

#include "vectors.h"

namespace {

constexpr float LEAST = -1e30f;  // stands for −∞: an impossible token adds 0 to the entropy, and no NaN
constexpr long AT_ONCE = 32;  // vectors, or rows, that are summed by themselves, so that a long sum loses no digits

// Of each row of logits: its highest, the sum of e^(logit − highest), the log-probability of its token, the entropy.
template <typename Number>
void weigh(const Number* logits, const int64_t* tokens, float* highest, float* total, float* logprob, float* entropy,
           long rows, long columns, int threads) {
    const long whole = columns / LANES * LANES, left = columns - whole;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < rows; row++) {
        const Number* given = logits + row * columns;
        Floats most = all(-INFINITY);
        for (long c = 0; c < whole; c += LANES) most = larger(most, load(given + c));
        float top = largest(most);
        for (long c = whole; c < columns; c++) top = std::max(top, wide(given[c]));
        Floats sum_of_weights{}, sum_of_logits{};
        for (long start = 0; start < whole; start += AT_ONCE * LANES) {
            Floats weights{}, weighted{};
            for (long c = start; c < std::min(whole, start + AT_ONCE * LANES); c += LANES) {
                const Floats logit = load(given + c) - top, weight = exponential(logit);
                weights += weight;
                weighted += larger(logit, all(LEAST)) * weight;
            }
            sum_of_weights += weights;
            sum_of_logits += weighted;
        }
        if (left) {
            Floats logit = load_some(given + whole, left) - top, weight = exponential(logit);
            for (long i = left; i < LANES; i++) weight[i] = 0;
            sum_of_weights += weight;
            sum_of_logits += larger(logit, all(LEAST)) * weight;
        }
        highest[row] = top;
        total[row] = sum(sum_of_weights);
        const float normaliser = std::log(total[row]);
        logprob[row] = wide(given[tokens[row]]) - top - normaliser;
        entropy[row] = normaliser - sum(sum_of_logits) / total[row];
    }
}

// Logits become slope · ∂(log-probability of the token)/∂logits; zeros where a row's slope is 0.
template <typename Number>
void change(Number* logits, const int64_t* tokens, const float* highest, const float* total, const float* slope,
            long rows, long columns, int threads) {
    const long whole = columns / LANES * LANES, left = columns - whole;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < rows; row++) {
        Number* given = logits + row * columns;
        if (slope[row] == 0) {
            std::memset(given, 0, columns * sizeof(Number));
            continue;
        }
        const float factor = -slope[row] / total[row], top = highest[row];
        const Floats of_token = slope[row] + factor * exponential(all(wide(given[tokens[row]]) - top));
        for (long c = 0; c < whole; c += LANES) store(given + c, factor * exponential(load(given + c) - top));
        if (left)
            store_some(given + whole, factor * exponential(load_some(given + whole, left) - top), left);
        store_some(given + tokens[row], of_token, 1);
    }
}

// Of silu(gate) · up, and the gradient of that: the product, and the gradients of both.
template <typename Number>
void gated_backward(const Number* gate, const Number* up, Number* gradient_then_up, Number* product, Number* of_gate,
                    long count, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long start = 0; start < count; start += LANES) {
        const long here = std::min<long>(LANES, count - start);
        const bool is_whole = here == LANES;
        const auto read = [&](const Number* from) {
            return is_whole ? load(from + start) : load_some(from + start, here);
        };
        const auto write = [&](Number* to, Floats value) {
            is_whole ? store(to + start, value) : store_some(to + start, value, here);
        };
        const Floats g = read(gate), u = read(up), gradient = read(gradient_then_up);
        const Floats sigmoid = 1.f / (1.f + exponential(-g)), active = g * sigmoid;
        write(product, active * u);
        write(gradient_then_up, gradient * active);
        write(of_gate, gradient * u * (sigmoid + active * (1.f - sigmoid)));
    }
}

// Of weight · n, n = hidden · scale, scale = 1/√(mean(hidden²) + ε): gradients of hidden, and of the weight if asked.
template <typename Number>
void norm_backward(const Number* hidden, const Number* weight, const float* scale, const Number* gradient,
                   Number* of_hidden, float* of_weight, long rows, long width, int threads) {
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long row = 0; row < rows; row++) {
            const Number *x = hidden + row * width, *g = gradient + row * width;
            Floats product{};
            for (long d = 0; d < width; d += LANES) product += load(g + d) * load(weight + d) * load(x + d);
            const float mean = sum(product) * scale[row] / width;
            for (long d = 0; d < width; d += LANES) {
                const Floats normed = load(x + d) * scale[row];
                store(of_hidden + row * width + d, (load(g + d) * load(weight + d) - normed * mean) * scale[row]);
            }
        }
#pragma omp for schedule(static)
        for (long d = 0; d < (of_weight ? width : 0); d += LANES) {
            Floats made{};
            for (long start = 0; start < rows; start += AT_ONCE) {
                Floats part{};
                for (long row = start; row < std::min(rows, start + AT_ONCE); row++)
                    part += load(gradient + row * width + d) * (load(hidden + row * width + d) * scale[row]);
                made += part;
            }
            store(of_weight + d, made);
        }
    }
}

}  // namespace

#define FOR_EACH_TYPE(NAME, NUMBER)                                                                                    \
    void weigh_##NAME(const NUMBER* logits, const int64_t* tokens, float* highest, float* total, float* logprob,       \
                      float* entropy, long rows, long columns, int threads) {                                          \
        weigh(logits, tokens, highest, total, logprob, entropy, rows, columns, threads);                               \
    }                                                                                                                  \
    void change_##NAME(NUMBER* logits, const int64_t* tokens, const float* highest, const float* total,                \
                       const float* slope, long rows, long columns, int threads) {                                     \
        change(logits, tokens, highest, total, slope, rows, columns, threads);                                         \
    }                                                                                                                  \
    void gated_backward_##NAME(const NUMBER* gate, const NUMBER* up, NUMBER* gradient_then_up, NUMBER* product,        \
                               NUMBER* of_gate, long count, int threads) {                                             \
        gated_backward(gate, up, gradient_then_up, product, of_gate, count, threads);                                  \
    }                                                                                                                  \
    void norm_backward_##NAME(const NUMBER* hidden, const NUMBER* weight, const float* scale, const NUMBER* gradient,  \
                              NUMBER* of_hidden, float* of_weight, long rows, long width, int threads) {               \
        norm_backward(hidden, weight, scale, gradient, of_hidden, of_weight, rows, width, threads);                    \
    }

extern "C" {
FOR_EACH_TYPE(float32, float)
FOR_EACH_TYPE(bfloat16, Half)
}
