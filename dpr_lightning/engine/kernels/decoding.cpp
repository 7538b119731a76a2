// One token for each of a few rows: products with weights, norms, and attention to cached keys and values.
//
// Sums are float. A row's result depends neither on the number of rows nor on the number of threads.

#include <vector>

#include "products.h"

namespace {

// ---------------------------------------------------------------------------------------------------------- products

// Weights are packed in panels of PANEL columns; a column is a row of the layer's weight [columns, width]. A panel has,
// for each word of a row of the input, that word of all its columns.

enum Then { NOTHING = 0, SILU = 1, TIMES = 2, PLUS = 3 };

inline Floats followed(Floats value, Floats other, int then) {
    if (then == SILU) return value / (1.f + exponential(-value));
    if (then == TIMES) return value * other;
    return then == PLUS ? value + other : value;
}

template <typename Number, int ROWS>
void tile(const Number* rows, long width, const uint32_t* panel, const char* ahead, long stride, const Number* bias,
          const Number* other, Number* out, long columns, long here, int then) {
    Floats result[ROWS][TILE_VECTORS];
    const long words = width / in_a_word<Number>;
    multiply<Number, ROWS>(rows, words, panel, result, ahead, stride);
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < TILE_VECTORS; v++) {
            const long left = std::min<long>(LANES, here - v * LANES), at = r * columns + v * LANES;
            if (left <= 0) break;
            const bool whole = left == LANES;
            const auto read = [&](const Number* from) { return whole ? load(from) : load_some(from, left); };
            Floats value = result[r][v];
            if (bias) value += read(bias + v * LANES);
            value = followed(value, other ? read(other + at) : Floats{}, then);
            if (whole)
                store(out + at, value);
            else
                store_some(out + at, value, left);
        }
}

template <typename Number>
void product(const Number* rows, const uint32_t* panels, const Number* bias, const Number* other, Number* out,
             long count, long width, long columns, int then, int threads) {
    const long words = width / in_a_word<Number>, all_panels = (columns + PANEL - 1) / PANEL;
    const long blocks = (count + TILE_ROWS - 1) / TILE_ROWS;
    if (blocks == 0) return;
    const long stride = (4 * PANEL + blocks - 1) / blocks;  // bytes of the next panel to prefetch for each word
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long p = 0; p < all_panels; p++) {
        const uint32_t* panel = panels + p * words * PANEL;
        const char* next = reinterpret_cast<const char*>(p + 1 < all_panels ? panel + words * PANEL : panel);
        const long column = p * PANEL, here = std::min<long>(PANEL, columns - column);
        for (long block = 0; block < blocks; block++) {
            const long row = block * TILE_ROWS, at = row * columns + column;
            const char* ahead = next + block * words * stride;
            const auto step = [&](auto rows_here) {
                tile<Number, decltype(rows_here)::value>(rows + row * width, width, panel, ahead, stride,
                                                         bias ? bias + column : nullptr, other ? other + at : nullptr,
                                                         out + at, columns, here, then);
            };
            with_count<TILE_ROWS>(count - row, step);
        }
    }
}

template <typename Number>
void pack(const Number* weight, uint32_t* panels, long width, long columns, int threads) {
    const long words = width / in_a_word<Number>, all_panels = (columns + PANEL - 1) / PANEL;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long p = 0; p < all_panels; p++)
        pack_panel(weight + p * PANEL * width, columns - p * PANEL, width, panels + p * words * PANEL);
}

// ------------------------------------------------------------------------------------------------------------- norms

// weight · row / √(mean(row²) + epsilon)
template <typename Number>
void norm(const Number* from, const Number* weight, Number* out, long rows, long width, float epsilon, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width > 8192)
    for (long row = 0; row < rows; row++) {
        const Number* input = from + row * width;
        Number* to = out + row * width;
        Floats squares{};
        for (long d = 0; d < width; d += LANES) squares += load(input + d) * load(input + d);
        const float scale = 1.f / std::sqrt(sum(squares) / width + epsilon);
        for (long d = 0; d < width; d += LANES) store(to + d, load(input + d) * scale * load(weight + d));
    }
}

// --------------------------------------------------------------------------------------------------------- attention

template <typename Number>
inline void fetch(const Number* from, long count) {
    const char* bytes = reinterpret_cast<const char*>(from);
    for (long at = 0; at < count * long(sizeof(Number)); at += 64) __builtin_prefetch(bytes + at, 0, 2);
}

// Keys and values of one key head: [length, width], and the bias of the tokens' scores, or null.
template <typename Number>
struct CachedKeys {
    const Number* keys;
    const Number* values;
    const float* bias;
    long length;
    const Number* next;  // keys that are read after these values
};

// While the keys of a head are read, its values are prefetched, and then the next head's keys.
constexpr int KEYS_AT_ONCE = 4;

template <typename Number, int QUERIES>
void score(const CachedKeys<Number>& cache, const float* queries, long width, float* scores, long capacity) {
    for (long t = 0; t < cache.length; t += LANES) {
        const long here = std::min<long>(LANES, cache.length - t);
        Floats parts[QUERIES][LANES];
        for (long i = 0; i < LANES; i += KEYS_AT_ONCE) {
            const Number* key[KEYS_AT_ONCE];
            Floats result[KEYS_AT_ONCE][QUERIES] = {};
            for (int j = 0; j < KEYS_AT_ONCE; j++) key[j] = cache.keys + (t + std::min(i + j, here - 1)) * width;
            for (long d = 0; d < width; d += LANES) {
                Floats query[QUERIES];
                for (int q = 0; q < QUERIES; q++) query[q] = load(queries + q * width + d);
                for (int j = 0; j < KEYS_AT_ONCE; j++) {
                    const Floats part = load(key[j] + d);
                    for (int q = 0; q < QUERIES; q++) result[j][q] += part * query[q];
                }
            }
            fetch(cache.values + (t + i) * width, KEYS_AT_ONCE * width);
            for (int j = 0; j < KEYS_AT_ONCE; j++)
                for (int q = 0; q < QUERIES; q++) parts[q][i + j] = result[j][q];
        }
        for (int q = 0; q < QUERIES; q++) {
            const Floats bias = cache.bias ? load_some(cache.bias + t, here) : Floats{};
            store(scores + q * capacity + t, sums(parts[q]) + bias);  // numbers beyond the length are overwritten
        }
    }
}

template <typename Number, int QUERIES, int VECTORS>
void mix(const CachedKeys<Number>& cache, const float* weights, long capacity, long width, long from, float* result) {
    Floats sum[QUERIES][VECTORS];
    for (int q = 0; q < QUERIES; q++)
        for (int v = 0; v < VECTORS; v++) sum[q][v] = load(result + q * width + from + v * LANES);
    for (long t = 0; t < cache.length; t++) {
        const Number* value = cache.values + t * width + from;
        fetch(cache.next + t * width + from, VECTORS * LANES);
        for (int v = 0; v < VECTORS; v++) {
            const Floats part = load(value + v * LANES);
            for (int q = 0; q < QUERIES; q++) sum[q][v] += weights[q * capacity + t] * part;
        }
    }
    for (int q = 0; q < QUERIES; q++)
        for (int v = 0; v < VECTORS; v++) store(result + q * width + from + v * LANES, sum[q][v]);
}

// QUERIES queries [QUERIES, width] of one row and key head, scaled; their output goes to `out`.
template <typename Number, int QUERIES>
void attend_head(const CachedKeys<Number>* cache, int parts, const float* queries, long width, float* scores,
                 long capacity, float* result, Number* out) {
    long start = 0;
    for (int part = 0; part < parts; part++) {
        score<Number, QUERIES>(cache[part], queries, width, scores + start, capacity);
        start += cache[part].length;
    }
    for (int q = 0; q < QUERIES; q++) {
        float* row_scores = scores + q * capacity;
        for (long t = start; t < capacity; t++) row_scores[t] = -INFINITY;
        Floats highest = load(row_scores);
        for (long t = LANES; t < capacity; t += LANES) highest = larger(highest, load(row_scores + t));
        const float top = largest(highest);
        Floats total{};
        for (long t = 0; t < capacity; t += LANES) {
            const Floats weight = exponential(load(row_scores + t) - top);
            total += weight;
            store(row_scores + t, weight);
        }
        const float scale = 1.f / sum(total);
        for (long t = 0; t < capacity; t += LANES) store(row_scores + t, load(row_scores + t) * scale);
    }
    std::fill(result, result + QUERIES * width, 0.f);
    start = 0;
    for (int part = 0; part < parts; part++) {
        long from = 0;
        for (; from + 4 * LANES <= width; from += 4 * LANES)
            mix<Number, QUERIES, 4>(cache[part], scores + start, capacity, width, from, result);
        for (; from + 2 * LANES <= width; from += 2 * LANES)
            mix<Number, QUERIES, 2>(cache[part], scores + start, capacity, width, from, result);
        for (; from < width; from += LANES)
            mix<Number, QUERIES, 1>(cache[part], scores + start, capacity, width, from, result);
        start += cache[part].length;
    }
    for (long d = 0; d < QUERIES * width; d += LANES) store(out + d, load(result + d));
}

// x·cosine + (x with its halves exchanged)·sine, where `sine` has the sign of each half.
template <typename Number>
inline void rotate(const Number* from, const Number* cosine, const Number* sine, long width, float scale, float* to) {
    const long half = width / 2;
    for (long d = 0; d < half; d++)
        to[d] = scale * (wide(from[d]) * wide(cosine[d]) + wide(from[d + half]) * wide(sine[d]));
    for (long d = half; d < width; d++)
        to[d] = scale * (wide(from[d]) * wide(cosine[d]) + wide(from[d - half]) * wide(sine[d]));
}

struct Shape {
    long rows, key_heads, group, width;  // group: queries that share a key head
    long capacity, length;               // of a row's own keys: preallocated, and used with the new token
    long prompt_length;                  // of every prompt
    long bias_stride;                    // of the bias of a row's own keys
};

template <typename Number>
void attend(const Number* projected, const Number* cosine, const Number* sine, Number* keys, Number* values,
            const float* bias, const Number* prompt_keys, const Number* prompt_values, const float* prompt_bias,
            const int64_t* prompt, const int64_t* order, Number* out, const Shape& shape, float scale, int threads) {
    const long width = shape.width, group = shape.group, heads = shape.key_heads;
    const long of_row = (group + 2) * heads * width;
    const long known = shape.length + (prompt ? shape.prompt_length : 0);
    const long capacity = (known + LANES - 1) / LANES * LANES + LANES;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> space(4 * capacity + 8 * width + width);
        float *scores = space.data(), *queries = scores + 4 * capacity;
        float *result = queries + 4 * width, *key = result + 4 * width;
#pragma omp for schedule(static)
        for (long item = 0; item < shape.rows * heads; item++) {
            const long head = item / shape.rows, row = order ? order[item % shape.rows] : item % shape.rows;
            const Number* input = projected + row * of_row;
            const Number *cosine_row = cosine + row * width, *sine_row = sine + row * width;
            const long offset = (row * heads + head) * shape.capacity * width, last = (shape.length - 1) * width;
            rotate(input + (group * heads + head) * width, cosine_row, sine_row, width, 1.f, key);
            for (long d = 0; d < width; d += LANES) store(keys + offset + last + d, load(key + d));
            std::memcpy(values + offset + last, input + ((group + 1) * heads + head) * width, width * sizeof(Number));
            const long after = order && (item + 1) % shape.rows ? order[item % shape.rows + 1] : row + 1;
            const long next_offset = (std::min(after, shape.rows - 1) * heads + head) * shape.capacity * width;
            CachedKeys<Number> cache[2];
            int parts = 0;
            if (prompt) {
                const long at = (prompt[row] * heads + head) * shape.prompt_length * width;
                cache[parts++] = {prompt_keys + at, prompt_values + at,
                                 prompt_bias ? prompt_bias + prompt[row] * shape.prompt_length : nullptr,
                                 shape.prompt_length, prompt_keys + at};
            }
            cache[parts++] = {keys + offset, values + offset, bias ? bias + row * shape.bias_stride : nullptr,
                              shape.length, keys + next_offset};
            for (long q = 0; q < group; q += 4) {
                const long first = head * group + q;
                const int count = int(std::min<long>(4, group - q));
                for (int i = 0; i < count; i++)
                    rotate(input + (first + i) * width, cosine_row, sine_row, width, scale, queries + i * width);
                Number* to = out + row * group * heads * width + first * width;
                with_count<4>(count, [&](auto queries_here) {
                    attend_head<Number, decltype(queries_here)::value>(cache, parts, queries, width, scores, capacity,
                                                                       result, to);
                });
            }
        }
    }
}

}  // namespace

#define FOR_EACH_TYPE(NAME, NUMBER)                                                                                    \
    void pack_##NAME(const NUMBER* weight, uint32_t* panels, long width, long columns, int threads) {                  \
        pack(weight, panels, width, columns, threads);                                                                 \
    }                                                                                                                  \
    void product_##NAME(const NUMBER* rows, const uint32_t* panels, const NUMBER* bias, const NUMBER* other,           \
                        NUMBER* out, long count, long width, long columns, int then, int threads) {                    \
        product(rows, panels, bias, other, out, count, width, columns, then, threads);                                 \
    }                                                                                                                  \
    void norm_##NAME(const NUMBER* from, const NUMBER* weight, NUMBER* out, long rows, long width, float epsilon,      \
                     int threads) {                                                                                    \
        norm(from, weight, out, rows, width, epsilon, threads);                                                        \
    }                                                                                                                  \
    void attend_##NAME(const NUMBER* projected, const NUMBER* cosine, const NUMBER* sine, NUMBER* keys,                \
                       NUMBER* values, const float* bias, const NUMBER* prompt_keys, const NUMBER* prompt_values,      \
                       const float* prompt_bias, const int64_t* prompt, const int64_t* order, NUMBER* out, long rows,  \
                       long key_heads, long group, long width, long capacity, long length, long prompt_length,         \
                       long bias_stride, float scale, int threads) {                                                   \
        attend(projected, cosine, sine, keys, values, bias, prompt_keys, prompt_values, prompt_bias, prompt, order,    \
               out, Shape{rows, key_heads, group, width, capacity, length, prompt_length, bias_stride}, scale,         \
               threads);                                                                                               \
    }

extern "C" {
int lanes() { return LANES; }
int panel() { return PANEL; }
FOR_EACH_TYPE(float32, float)
FOR_EACH_TYPE(bfloat16, Half)
}
