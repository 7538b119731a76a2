// Tiles of products that stay in registers.
//
// The number of a row and the weight of a column meet as words: one float, or two neighbouring bfloat16 numbers.

#pragma once

#include "vectors.h"
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

// A tile of results stays in registers: TILE_ROWS rows of TILE_VECTORS vectors; a panel is as wide as a tile.
constexpr int TILE_ROWS = LANES == 8 ? 4 : 8, TILE_VECTORS = 3, PANEL = TILE_VECTORS * LANES;

template <typename Number>
constexpr int in_a_word = 4 / sizeof(Number);

inline Floats multiply_add(Floats sum, uint32_t word, Words weights, float) {
    float value;
    std::memcpy(&value, &word, 4);
    return sum + value * (Floats)weights;
}

inline Floats multiply_add(Floats sum, uint32_t word, Words weights, Half) {
#if defined(__AVX512BF16__)
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int(word)), (__m512bh)weights);
#else
    uint32_t high = word & 0xffff0000u, low = word << 16;
    float first, second;
    std::memcpy(&first, &low, 4);
    std::memcpy(&second, &high, 4);
    return sum + first * (Floats)(weights << 16) + second * (Floats)(weights & 0xffff0000u);
#endif
}

// Where the words of ROWS rows are: `row` words from one row to the next, `next` from one word of a row to the next.
struct Rows {
    const void* words;
    long row, next;

    uint32_t at(long r, long k) const {
        uint32_t word;
        std::memcpy(&word, static_cast<const uint32_t*>(words) + r * row + k * next, 4);
        return word;
    }
};

// Rows times columns: the words of VECTORS vectors of columns lie next to each other, `stride` words from one word of
// the columns to the next. `ahead` is fetched in the meantime, `ahead_stride` bytes for each word.
template <typename Number, int ROWS, int VECTORS>
inline void multiply(Rows rows, long words, const uint32_t* columns, long stride, Floats (&made)[ROWS][VECTORS],
                     const char* ahead = nullptr, long ahead_stride = 0) {
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++) made[r][v] = Floats{};
    for (long k = 0; k < words; k++) {
        Words weights[VECTORS];
        for (int v = 0; v < VECTORS; v++)
            std::memcpy(&weights[v], columns + k * stride + v * LANES, sizeof weights[v]);
        if (ahead) __builtin_prefetch(ahead + k * ahead_stride, 0, 2);
        for (int r = 0; r < ROWS; r++) {
            const uint32_t word = rows.at(r, k);
            for (int v = 0; v < VECTORS; v++) made[r][v] = multiply_add(made[r][v], word, weights[v], Number{});
        }
    }
}

// A panel of PANEL columns, a column being `width` numbers of `from`, which has `count` of them `stride` apart; the
// others are zeros.
template <typename Number>
void lay_out_panel(const Number* from, long stride, long count, long width, uint32_t* panel) {
    const long words = width / in_a_word<Number>;
    for (long c = 0; c < PANEL; c++)
        for (long k = 0; k < words; k++) {
            uint32_t word = 0;
            if (c < count) std::memcpy(&word, from + c * stride + k * in_a_word<Number>, 4);
            panel[k * PANEL + c] = word;
        }
}

}  // namespace
