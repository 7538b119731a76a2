// Causal attention of whole rows in bfloat16, and its gradients: scores of a few queries at a time, never of all.
//
// Sums, scores and the softmax are float; weights are rounded for their products with values. Tokens are columns of
// panels where they are asked (scores), and pairs of tokens are words where they are summed over (mixtures).

#include <vector>

#include "products.h"

namespace {

constexpr int QUERIES = 8, BLOCK = 64;  // of a tile, and of what gradients of keys are summed over at a time
constexpr int MIXED_ROWS = 4, MIXED_VECTORS = LANES == 8 ? 2 : 4;
constexpr float HIDDEN = -3e38f;  // a score that leaves a query that sees nothing the mean of some values

struct Strides {  // numbers from one to the next
    long row, head, token;
};

struct Shape {
    long rows, key_heads, share, queries, keys, width;  // share: heads of queries for one of keys
};

long panels_of(long tokens) { return (tokens + PANEL - 1) / PANEL; }

struct Head {  // of keys or values of one row
    const Half* from;
    long stride, tokens, width;

    void as_columns(uint32_t* panels) const {
        for (long p = 0; p < panels_of(tokens); p++)
            lay_out_panel(from + p * PANEL * stride, stride, tokens - p * PANEL, width, panels + p * width / 2 * PANEL);
    }

    void as_pairs(uint32_t* pairs) const {
        for (long t = 0; t < tokens; t += 2)
            for (long d = 0; d < width; d++) {
                const Half zero{0}, first = from[t * stride + d], second = t + 1 < tokens ? from[(t + 1) * stride + d] : zero;
                pairs[t / 2 * width + d] = first.bits | uint32_t(second.bits) << 16;
            }
    }
};

struct Mask {
    const uint8_t* seen;  // or nothing: all
    long by_row, by_token;

    const uint8_t* of(long row, long token) const { return seen ? seen + row * by_row + token * by_token : nullptr; }
};

struct Softened {
    float highest, total;
};

// e^(scale · score − highest) of the scores [until] of a query that sees the first `end`, where `seen` does not hide
// them; 0 behind. `weights` may be where the scores are.
template <typename Number>
Softened soften(float* scores, const uint8_t* seen, long end, long until, float scale, Number* weights) {
    for (long t = 0; t < until; t += LANES) store(scores + t, load(scores + t) * scale);
    if (seen)
        for (long t = 0; t < end; t++)
            if (!seen[t]) scores[t] = HIDDEN;
    for (long t = end; t < until; t++) scores[t] = -INFINITY;
    Floats most = load(scores), all_weights{};
    for (long t = LANES; t < until; t += LANES) most = larger(most, load(scores + t));
    const float highest = largest(most);
    for (long t = 0; t < until; t += LANES) {
        const Floats weight = exponential(load(scores + t) - highest);
        all_weights += weight;
        store(weights + t, weight);
    }
    return {highest, sum(all_weights)};
}

// A tile of queries, next to each other; zeros where there are fewer.
void gather(const Half* from, long stride, long count, long width, Half* to) {
    std::memset(to, 0, QUERIES * width * sizeof(Half));
    for (long r = 0; r < count; r++) std::memcpy(to + r * width, from + r * stride, width * sizeof(Half));
}

// Products of a tile of rows with the columns of panels, [QUERIES, room] float.
void scores_of(const Half* tile, const uint32_t* panels, long count, long width, float* scores, long room) {
    const long words = width / 2;
    for (long p = 0; p < count; p++)
        for (int first = 0; first < QUERIES; first += TILE_ROWS) {
            Floats made[TILE_ROWS][TILE_VECTORS];
            const Rows rows{tile + first * width, words, 1};
            multiply<Half, TILE_ROWS, TILE_VECTORS>(rows, words, panels + p * words * PANEL, PANEL, made);
            for (int r = 0; r < TILE_ROWS; r++)
                for (int v = 0; v < TILE_VECTORS; v++)
                    store(scores + (first + r) * room + p * PANEL + v * LANES, made[r][v]);
        }
}

// Weights of a tile [QUERIES, room] times pairs of tokens: `count` rows go to `out`, times their factor.
template <int VECTORS>
void mix_columns(const Half* weights, long room, long tokens, const uint32_t* pairs, long width, long from, Half* out,
                 long stride, long count, const float* factors) {
    for (int first = 0; first < count; first += MIXED_ROWS) {
        Floats made[MIXED_ROWS][VECTORS];
        const Rows rows{weights + first * room, room / 2, 1};
        multiply<Half, MIXED_ROWS, VECTORS>(rows, (tokens + 1) / 2, pairs + from, width, made);
        for (int r = 0; r < std::min<long>(MIXED_ROWS, count - first); r++)
            for (int v = 0; v < VECTORS; v++)
                store(out + (first + r) * stride + from + v * LANES, made[r][v] * factors[first + r]);
    }
}

void mix(const Half* weights, long room, long tokens, const uint32_t* pairs, long width, Half* out, long stride,
         long count, const float* factors) {
    long from = 0;
    for (; from + MIXED_VECTORS * LANES <= width; from += MIXED_VECTORS * LANES)
        mix_columns<MIXED_VECTORS>(weights, room, tokens, pairs, width, from, out, stride, count, factors);
    for (; from < width; from += LANES)
        mix_columns<1>(weights, room, tokens, pairs, width, from, out, stride, count, factors);
}

void forth(const Half* query, Strides of_query, const Half* key, Strides of_key, const Half* value, Strides of_value,
           Mask mask, Half* out, Shape shape, float scale, int threads) {
    const long width = shape.width, keys = shape.keys, room = panels_of(keys) * PANEL, heads = shape.key_heads * shape.share;
#pragma omp parallel num_threads(threads)
    {
        std::vector<uint32_t> columns(room * width / 2), pairs((keys + 1) / 2 * width);
        std::vector<float> scores(QUERIES * room);
        std::vector<Half> tile(QUERIES * width), weights(QUERIES * room);
#pragma omp for schedule(dynamic)
        for (long item = 0; item < shape.rows * shape.key_heads; item++) {
            const long row = item / shape.key_heads, key_head = item % shape.key_heads;
            Head{key + row * of_key.row + key_head * of_key.head, of_key.token, keys, width}.as_columns(columns.data());
            Head{value + row * of_value.row + key_head * of_value.head, of_value.token, keys, width}.as_pairs(pairs.data());
            for (long head = key_head * shape.share; head < (key_head + 1) * shape.share; head++)
                for (long start = 0; start < shape.queries; start += QUERIES) {
                    const long count = std::min<long>(QUERIES, shape.queries - start);
                    const long before = keys - shape.queries + start, end = before + count, all_panels = panels_of(end);
                    gather(query + row * of_query.row + head * of_query.head + start * of_query.token, of_query.token,
                           count, width, tile.data());
                    scores_of(tile.data(), columns.data(), all_panels, width, scores.data(), room);
                    float factors[QUERIES];
                    for (long r = 0; r < QUERIES; r++) {
                        float* mine = scores.data() + r * room;
                        const long which = std::min(r, count - 1);
                        factors[r] = 1.f / soften(mine, mask.of(row, start + which), before + which + 1, all_panels * PANEL,
                                                  scale, weights.data() + r * room).total;
                    }
                    Half* to = out + ((row * shape.queries + start) * heads + head) * width;
                    mix(weights.data(), room, end, pairs.data(), width, to, heads * width, count, factors);
                }
        }
    }
}

// [width, room] float, the other way round, as [tokens, width].
void turn_over(const float* from, long room, long tokens, long width, float factor, Half* to, long stride) {
    for (long t = 0; t < tokens; t++)
        for (long d = 0; d < width; d += LANES) {
            float made[LANES];
            for (int i = 0; i < LANES; i++) made[i] = factor * from[(d + i) * room + t];
            store(to + t * stride + d, load(made));
        }
}

void back(const Half* query, Strides of_query, const Half* key, Strides of_key, const Half* value, Strides of_value,
          Mask mask, const Half* gradient, Half* query_grad, Half* key_grad,
          Half* value_grad, Shape shape, float scale, int threads) {
    const long width = shape.width, keys = shape.keys, room = panels_of(keys) * PANEL, words = width / 2;
    const long heads = shape.key_heads * shape.share, in_panel = BLOCK / 2 * PANEL;
#pragma omp parallel num_threads(threads)
    {
        std::vector<uint32_t> key_columns(room * words), value_columns(room * words), key_pairs((keys + 1) / 2 * width);
        std::vector<uint32_t> query_pairs(BLOCK / 2 * width), gradient_pairs(BLOCK / 2 * width);
        std::vector<uint32_t> weight_panels(room * BLOCK / 2), change_panels(room * BLOCK / 2);
        std::vector<float> weights(QUERIES * room), changes(QUERIES * room);
        std::vector<float> of_keys(width * room), of_values(width * room);
        std::vector<Half> tile(QUERIES * width), gradients(QUERIES * width), narrowed(QUERIES * room);
        const std::vector<float> factors(QUERIES, scale);
#pragma omp for schedule(dynamic)
        for (long item = 0; item < shape.rows * shape.key_heads; item++) {
            const long row = item / shape.key_heads, key_head = item % shape.key_heads;
            const Head its_keys{key + row * of_key.row + key_head * of_key.head, of_key.token, keys, width};
            const Head its_values{value + row * of_value.row + key_head * of_value.head, of_value.token, keys, width};
            its_keys.as_columns(key_columns.data());
            its_keys.as_pairs(key_pairs.data());
            its_values.as_columns(value_columns.data());
            std::fill(of_keys.begin(), of_keys.end(), 0.f);
            std::fill(of_values.begin(), of_values.end(), 0.f);
            for (long head = key_head * shape.share; head < (key_head + 1) * shape.share; head++)
                for (long start = 0; start < shape.queries; start += BLOCK) {
                    const long count = std::min<long>(BLOCK, shape.queries - start);
                    const long before = keys - shape.queries + start, all_panels = panels_of(before + count);
                    const Half* asked = query + row * of_query.row + head * of_query.head + start * of_query.token;
                    const Half* given = gradient + ((row * shape.queries + start) * heads + head) * width;
                    Head{asked, of_query.token, count, width}.as_pairs(query_pairs.data());
                    Head{given, heads * width, count, width}.as_pairs(gradient_pairs.data());
                    for (long first = 0; first < count; first += QUERIES) {
                        const long here = std::min<long>(QUERIES, count - first), end = before + first + here;
                        const long panels = panels_of(end);
                        gather(asked + first * of_query.token, of_query.token, here, width, tile.data());
                        gather(given + first * heads * width, heads * width, here, width, gradients.data());
                        scores_of(tile.data(), key_columns.data(), panels, width, weights.data(), room);
                        scores_of(gradients.data(), value_columns.data(), panels, width, changes.data(), room);
                        for (long r = 0; r < QUERIES; r++) {
                            float *weight = weights.data() + r * room, *change = changes.data() + r * room;
                            const long token = start + first + std::min(r, here - 1);
                            const Softened found = soften(weight, mask.of(row, token), keys - shape.queries + token + 1,
                                                          panels * PANEL, scale, weight);
                            const float factor = r < here ? 1.f / found.total : 0.f;
                            Floats products{};
                            for (long t = 0; t < panels * PANEL; t += LANES) {
                                const Floats probability = load(weight + t) * factor;
                                products += probability * load(change + t);
                                store(weight + t, probability);
                            }
                            // Scores that are all hidden are those of no query.
                            const float mean = sum(products), heard = found.highest > HIDDEN ? 1.f : 0.f;
                            for (long t = 0; t < panels * PANEL; t += LANES) {
                                const Floats changed = load(weight + t) * (load(change + t) - mean) * heard;
                                store(change + t, changed);
                                store(narrowed.data() + r * room + t, changed);
                            }
                        }
                        // Two queries are a word of what gradients of keys and values are summed over.
                        for (long p = 0; p < all_panels; p++)
                            for (long r = 0; r < QUERIES; r += 2)
                                for (int v = 0; v < TILE_VECTORS; v++) {
                                    const long at = r * room + p * PANEL + v * LANES;
                                    const long to = p * in_panel + (first + r) / 2 * PANEL + v * LANES;
                                    const auto word = [&](const float* from) {
                                        if (p >= panels) return Words{};
                                        return narrow(load(from + at)) | narrow(load(from + at + room)) << 16;
                                    };
                                    const Words weight = word(weights.data()), change = word(changes.data());
                                    std::memcpy(&weight_panels[to], &weight, sizeof weight);
                                    std::memcpy(&change_panels[to], &change, sizeof change);
                                }
                        Half* to = query_grad + ((row * shape.queries + start + first) * heads + head) * width;
                        mix(narrowed.data(), room, end, key_pairs.data(), width, to, heads * width, here, factors.data());
                    }
                    const auto add = [&](const uint32_t* pairs, const uint32_t* panels, float* sums) {
                        for (long p = 0; p < all_panels; p++)
                            for (long d = 0; d < width; d += TILE_ROWS) {
                                Floats made[TILE_ROWS][TILE_VECTORS];
                                multiply<Half, TILE_ROWS, TILE_VECTORS>(Rows{pairs + d, 1, width}, (count + 1) / 2,
                                                                        panels + p * in_panel, PANEL, made);
                                for (int r = 0; r < TILE_ROWS; r++)
                                    for (int v = 0; v < TILE_VECTORS; v++) {
                                        float* to = sums + (d + r) * room + p * PANEL + v * LANES;
                                        store(to, load(to) + made[r][v]);
                                    }
                            }
                    };
                    add(query_pairs.data(), change_panels.data(), of_keys.data());
                    add(gradient_pairs.data(), weight_panels.data(), of_values.data());
                }
            const long to = (row * keys * shape.key_heads + key_head) * width, stride = shape.key_heads * width;
            turn_over(of_keys.data(), room, keys, width, scale, key_grad + to, stride);
            turn_over(of_values.data(), room, keys, width, 1.f, value_grad + to, stride);
        }
    }
}

}  // namespace

extern "C" {
// Queries, keys and values [rows, heads, tokens, width] with the given strides; `out` and the gradients lie as [rows,
// tokens, heads, width].
void attend_rows_bfloat16(const Half* query, const long* of_query, const Half* key, const long* of_key,
                          const Half* value, const long* of_value, const uint8_t* seen, long seen_row, long seen_token,
                          Half* out, const long* shape, float scale, int threads) {
    forth(query, {of_query[0], of_query[1], of_query[2]}, key, {of_key[0], of_key[1], of_key[2]}, value,
          {of_value[0], of_value[1], of_value[2]}, {seen, seen_row, seen_token}, out, {shape[0], shape[1], shape[2], shape[3], shape[4], shape[5]}, scale, threads);
}

void attend_rows_backward_bfloat16(const Half* query, const long* of_query, const Half* key, const long* of_key,
                                   const Half* value, const long* of_value, const uint8_t* seen, long seen_row,
                                   long seen_token, const Half* gradient,
                                   Half* query_grad, Half* key_grad, Half* value_grad, const long* shape, float scale,
                                   int threads) {
    back(query, {of_query[0], of_query[1], of_query[2]}, key, {of_key[0], of_key[1], of_key[2]}, value,
         {of_value[0], of_value[1], of_value[2]}, {seen, seen_row, seen_token}, gradient, query_grad,
         key_grad, value_grad, {shape[0], shape[1], shape[2], shape[3], shape[4], shape[5]}, scale, threads);
}
}
