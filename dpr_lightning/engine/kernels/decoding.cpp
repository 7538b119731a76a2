// One more token for each of a few rows: products with weights, norms, attention to kept keys and values, and drawing.
//
// Sums are float. What a row gives does not depend on how many rows there are, nor on how many threads.

#include <vector>

#include "products.h"

namespace {

// ---------------------------------------------------------------------------------------------------------- products

// Weights lie as panels of PANEL columns, a column being a row of the layer's weight [columns, width]. A panel has, for
// each word of a row of the input, that word of all its columns.

enum Then { NOTHING = 0, SILU = 1, TIMES = 2, PLUS = 3 };

inline Floats followed(Floats value, Floats other, int then) {
    if (then == SILU) return value / (1.f + exponential(-value));
    if (then == TIMES) return value * other;
    return then == PLUS ? value + other : value;
}

template <typename Number, int ROWS>
void tile(const Number* rows, long width, const uint32_t* panel, const char* ahead, long stride, const Number* bias,
          const Number* other, Number* out, long columns, long here, int then) {
    Floats made[ROWS][TILE_VECTORS];
    const long words = width / in_a_word<Number>;
    multiply<Number, ROWS>(rows, words, panel, made, ahead, stride);
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < TILE_VECTORS; v++) {
            const long left = std::min<long>(LANES, here - v * LANES), at = r * columns + v * LANES;
            if (left <= 0) break;
            const bool whole = left == LANES;
            const auto read = [&](const Number* from) { return whole ? load(from) : load_some(from, left); };
            Floats value = made[r][v];
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
    const long stride = (4 * PANEL + blocks - 1) / blocks;  // bytes of the next panel to fetch with a word of this one
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
            switch (std::min<long>(TILE_ROWS, count - row)) {
                case 1: step(std::integral_constant<int, 1>{}); break;
                case 2: step(std::integral_constant<int, 2>{}); break;
                case 3: step(std::integral_constant<int, 3>{}); break;
                case 4: step(std::integral_constant<int, 4>{}); break;
                case 5: step(std::integral_constant<int, 5>{}); break;
                case 6: step(std::integral_constant<int, 6>{}); break;
                case 7: step(std::integral_constant<int, 7>{}); break;
                default: step(std::integral_constant<int, TILE_ROWS>{});
            }
        }
    }
}

template <typename Number>
void lay_out(const Number* weight, uint32_t* panels, long width, long columns, int threads) {
    const long words = width / in_a_word<Number>, all_panels = (columns + PANEL - 1) / PANEL;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long p = 0; p < all_panels; p++)
        lay_out_panel(weight + p * PANEL * width, columns - p * PANEL, width, panels + p * words * PANEL);
}

// ------------------------------------------------------------------------------------------------------------- norms

// weight · row / √(mean(row²) + epsilon)
template <typename Number>
void norm(const Number* from, const Number* weight, Number* out, long rows, long width, float epsilon, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width > 8192)
    for (long row = 0; row < rows; row++) {
        const Number* given = from + row * width;
        Number* to = out + row * width;
        Floats squares{};
        for (long d = 0; d < width; d += LANES) squares += load(given + d) * load(given + d);
        const float scale = 1.f / std::sqrt(sum(squares) / width + epsilon);
        for (long d = 0; d < width; d += LANES) store(to + d, load(given + d) * scale * load(weight + d));
    }
}

// --------------------------------------------------------------------------------------------------------- attention

template <typename Number>
inline void fetch(const Number* from, long count) {
    const char* bytes = reinterpret_cast<const char*>(from);
    for (long at = 0; at < count * long(sizeof(Number)); at += 64) __builtin_prefetch(bytes + at, 0, 2);
}

// Keys and values of one key head: [length, width], and what is added to the scores of the tokens, or nothing.
template <typename Number>
struct Kept {
    const Number* keys;
    const Number* values;
    const float* bias;
    long length;
    const Number* next;  // keys that will be read after these values
};

// The keys of a head are read while its values, and the values while the next head's keys, are fetched.
constexpr int KEYS_AT_ONCE = 4;

template <typename Number, int QUERIES>
void score(const Kept<Number>& kept, const float* queries, long width, float* scores, long room) {
    for (long t = 0; t < kept.length; t += LANES) {
        const long here = std::min<long>(LANES, kept.length - t);
        Floats parts[QUERIES][LANES];
        for (long i = 0; i < LANES; i += KEYS_AT_ONCE) {
            const Number* key[KEYS_AT_ONCE];
            Floats made[KEYS_AT_ONCE][QUERIES] = {};
            for (int j = 0; j < KEYS_AT_ONCE; j++) key[j] = kept.keys + (t + std::min(i + j, here - 1)) * width;
            for (long d = 0; d < width; d += LANES) {
                Floats query[QUERIES];
                for (int q = 0; q < QUERIES; q++) query[q] = load(queries + q * width + d);
                for (int j = 0; j < KEYS_AT_ONCE; j++) {
                    const Floats part = load(key[j] + d);
                    for (int q = 0; q < QUERIES; q++) made[j][q] += part * query[q];
                }
            }
            fetch(kept.values + (t + i) * width, KEYS_AT_ONCE * width);
            for (int j = 0; j < KEYS_AT_ONCE; j++)
                for (int q = 0; q < QUERIES; q++) parts[q][i + j] = made[j][q];
        }
        for (int q = 0; q < QUERIES; q++) {
            const Floats bias = kept.bias ? load_some(kept.bias + t, here) : Floats{};
            store(scores + q * room + t, sums(parts[q]) + bias);  // what is too much is written over
        }
    }
}

template <typename Number, int QUERIES, int VECTORS>
void mix(const Kept<Number>& kept, const float* weights, long room, long width, long from, float* made) {
    Floats sum[QUERIES][VECTORS];
    for (int q = 0; q < QUERIES; q++)
        for (int v = 0; v < VECTORS; v++) sum[q][v] = load(made + q * width + from + v * LANES);
    for (long t = 0; t < kept.length; t++) {
        const Number* value = kept.values + t * width + from;
        fetch(kept.next + t * width + from, VECTORS * LANES);
        for (int v = 0; v < VECTORS; v++) {
            const Floats part = load(value + v * LANES);
            for (int q = 0; q < QUERIES; q++) sum[q][v] += weights[q * room + t] * part;
        }
    }
    for (int q = 0; q < QUERIES; q++)
        for (int v = 0; v < VECTORS; v++) store(made + q * width + from + v * LANES, sum[q][v]);
}

// QUERIES queries [QUERIES, width] of one row and key head, scaled; what they mix goes to `out`.
template <typename Number, int QUERIES>
void attend_head(const Kept<Number>* kept, int parts, const float* queries, long width, float* scores, long room,
                 float* made, Number* out) {
    long start = 0;
    for (int part = 0; part < parts; part++) {
        score<Number, QUERIES>(kept[part], queries, width, scores + start, room);
        start += kept[part].length;
    }
    for (int q = 0; q < QUERIES; q++) {
        float* mine = scores + q * room;
        for (long t = start; t < room; t++) mine[t] = -INFINITY;
        Floats highest = load(mine);
        for (long t = LANES; t < room; t += LANES) highest = larger(highest, load(mine + t));
        const float top = largest(highest);
        Floats total{};
        for (long t = 0; t < room; t += LANES) {
            const Floats weight = exponential(load(mine + t) - top);
            total += weight;
            store(mine + t, weight);
        }
        const float scale = 1.f / sum(total);
        for (long t = 0; t < room; t += LANES) store(mine + t, load(mine + t) * scale);
    }
    std::fill(made, made + QUERIES * width, 0.f);
    start = 0;
    for (int part = 0; part < parts; part++) {
        long from = 0;
        for (; from + 4 * LANES <= width; from += 4 * LANES)
            mix<Number, QUERIES, 4>(kept[part], scores + start, room, width, from, made);
        for (; from + 2 * LANES <= width; from += 2 * LANES)
            mix<Number, QUERIES, 2>(kept[part], scores + start, room, width, from, made);
        for (; from < width; from += LANES)
            mix<Number, QUERIES, 1>(kept[part], scores + start, room, width, from, made);
        start += kept[part].length;
    }
    for (long d = 0; d < QUERIES * width; d += LANES) store(out + d, load(made + d));
}

// x·cosine + (x with its halves exchanged)·turned, where the sines of `turned` have their sign.
template <typename Number>
inline void turn(const Number* from, const Number* cosine, const Number* turned, long width, float scale, float* to) {
    const long half = width / 2;
    for (long d = 0; d < half; d++)
        to[d] = scale * (wide(from[d]) * wide(cosine[d]) + wide(from[d + half]) * wide(turned[d]));
    for (long d = half; d < width; d++)
        to[d] = scale * (wide(from[d]) * wide(cosine[d]) + wide(from[d - half]) * wide(turned[d]));
}

struct Shape {
    long rows, key_heads, group, width;  // group: queries that share a key head
    long room, length;                   // of a row's own keys: for how many there is room, how many there will be
    long prompt_length;                  // of every prompt
    long bias_stride;                    // of a row's own bias
};

template <typename Number>
void attend(const Number* asked, const Number* cosine, const Number* turned, Number* keys, Number* values,
            const float* bias, const Number* prompt_keys, const Number* prompt_values, const float* prompt_bias,
            const int64_t* prompt, const int64_t* order, Number* out, const Shape& shape, float scale, int threads) {
    const long width = shape.width, group = shape.group, heads = shape.key_heads;
    const long of_row = (group + 2) * heads * width;
    const long known = shape.length + (prompt ? shape.prompt_length : 0);
    const long room = (known + LANES - 1) / LANES * LANES + LANES;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> space(4 * room + 8 * width + width);
        float *scores = space.data(), *queries = scores + 4 * room, *made = queries + 4 * width, *key = made + 4 * width;
#pragma omp for schedule(static)
        for (long item = 0; item < shape.rows * heads; item++) {
            const long head = item / shape.rows, row = order ? order[item % shape.rows] : item % shape.rows;
            const Number* given = asked + row * of_row;
            const Number *cosines = cosine + row * width, *sines = turned + row * width;
            const long place = (row * heads + head) * shape.room * width, last = (shape.length - 1) * width;
            turn(given + (group * heads + head) * width, cosines, sines, width, 1.f, key);
            for (long d = 0; d < width; d += LANES) store(keys + place + last + d, load(key + d));
            std::memcpy(values + place + last, given + ((group + 1) * heads + head) * width, width * sizeof(Number));
            const long after = order && (item + 1) % shape.rows ? order[item % shape.rows + 1] : row + 1;
            const long next_place = (std::min(after, shape.rows - 1) * heads + head) * shape.room * width;
            Kept<Number> kept[2];
            int parts = 0;
            if (prompt) {
                const long at = (prompt[row] * heads + head) * shape.prompt_length * width;
                kept[parts++] = {prompt_keys + at, prompt_values + at,
                                 prompt_bias ? prompt_bias + prompt[row] * shape.prompt_length : nullptr,
                                 shape.prompt_length, prompt_keys + at};
            }
            kept[parts++] = {keys + place, values + place, bias ? bias + row * shape.bias_stride : nullptr,
                             shape.length, keys + next_place};
            for (long q = 0; q < group; q += 4) {
                const long first = head * group + q;
                const int count = int(std::min<long>(4, group - q));
                for (int i = 0; i < count; i++)
                    turn(given + (first + i) * width, cosines, sines, width, scale, queries + i * width);
                Number* to = out + row * group * heads * width + first * width;
                switch (count) {
                    case 1: attend_head<Number, 1>(kept, parts, queries, width, scores, room, made, to); break;
                    case 2: attend_head<Number, 2>(kept, parts, queries, width, scores, room, made, to); break;
                    case 3: attend_head<Number, 3>(kept, parts, queries, width, scores, room, made, to); break;
                    default: attend_head<Number, 4>(kept, parts, queries, width, scores, room, made, to);
                }
            }
        }
    }
}

// ----------------------------------------------------------------------------------------------------------- drawing

// The token of each row at which the sum of the probabilities before and with it exceeds `uniform`.
template <typename Number>
void draw(const Number* logits, const double* uniform, int64_t* chosen, float* logprob, long rows, long columns,
          float temperature, int threads) {
    constexpr long BLOCK = 256;
    const long blocks = (columns + BLOCK - 1) / BLOCK;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> of_row(blocks * BLOCK, -INFINITY);
        std::vector<double> until(blocks);
        float* wide_row = of_row.data();
#pragma omp for schedule(static)
        for (long row = 0; row < rows; row++) {
            const Number* given = logits + row * columns;
            Floats highest = all(-INFINITY);
            const long whole = columns / LANES * LANES;
            for (long c = 0; c < whole; c += LANES) store(wide_row + c, load(given + c) / temperature);
            for (long c = whole; c < columns; c++) wide_row[c] = wide(given[c]) / temperature;
            for (long c = 0; c < columns; c += LANES) highest = larger(highest, load(wide_row + c));
            const float top = largest(highest);
            double total = 0;
            for (long block = 0; block < blocks; block++) {
                Floats weight{};
                for (long i = 0; i < BLOCK; i += LANES)
                    weight += exponential(load(wide_row + block * BLOCK + i) - top);
                until[block] = total += sum(weight);
            }
            // The first block, and token in it, above the target; where rounding leads to none, the last that counts.
            const double target = uniform[row] * total;
            long block = 0;
            while (block + 1 < blocks && !(until[block] > target)) block++;
            while (block > 0 && until[block] == until[block - 1]) block--;
            double reached = block ? until[block - 1] : 0;
            long token = block * BLOCK;
            for (long i = 0; i < BLOCK && block * BLOCK + i < columns; i += LANES) {
                Floats weight = exponential(load(wide_row + block * BLOCK + i) - top);
                for (int lane = 0; lane < LANES; lane++) {
                    if (!(weight[lane] > 0)) continue;
                    token = block * BLOCK + i + lane;
                    reached += weight[lane];
                    if (reached > target) goto found;
                }
            }
        found:
            chosen[row] = token;
            logprob[row] = wide_row[token] - top - float(std::log(total));
        }
    }
}

}  // namespace

#define FOR_EACH_TYPE(NAME, NUMBER)                                                                                    \
    void lay_out_##NAME(const NUMBER* weight, uint32_t* panels, long width, long columns, int threads) {               \
        lay_out(weight, panels, width, columns, threads);                                                              \
    }                                                                                                                  \
    void product_##NAME(const NUMBER* rows, const uint32_t* panels, const NUMBER* bias, const NUMBER* other,           \
                        NUMBER* out, long count, long width, long columns, int then, int threads) {                    \
        product(rows, panels, bias, other, out, count, width, columns, then, threads);                                 \
    }                                                                                                                  \
    void norm_##NAME(const NUMBER* from, const NUMBER* weight, NUMBER* out, long rows, long width, float epsilon,      \
                     int threads) {                                                                                    \
        norm(from, weight, out, rows, width, epsilon, threads);                                                        \
    }                                                                                                                  \
    void attend_##NAME(const NUMBER* asked, const NUMBER* cosine, const NUMBER* turned, NUMBER* keys, NUMBER* values,  \
                       const float* bias, const NUMBER* prompt_keys, const NUMBER* prompt_values,                      \
                       const float* prompt_bias, const int64_t* prompt, const int64_t* order, NUMBER* out, long rows,  \
                       long key_heads, long group, long width, long room, long length, long prompt_length,             \
                       long bias_stride, float scale, int threads) {                                                   \
        attend(asked, cosine, turned, keys, values, bias, prompt_keys, prompt_values, prompt_bias, prompt, order, out, \
               Shape{rows, key_heads, group, width, room, length, prompt_length, bias_stride}, scale, threads);        \
    }                                                                                                                  \
    void draw_##NAME(const NUMBER* logits, const double* uniform, int64_t* chosen, float* logprob, long rows,          \
                     long columns, float temperature, int threads) {                                                   \
        draw(logits, uniform, chosen, logprob, rows, columns, temperature, threads);                                   \
    }

extern "C" {
int lanes() { return LANES; }
int panel() { return PANEL; }
FOR_EACH_TYPE(float32, float)
FOR_EACH_TYPE(bfloat16, Half)
}
