// Products in tiles that stay in registers.
//
// Numbers and weights are multiplied as words: one float, or two neighbouring bfloat16 numbers.

#pragma once

#include "vectors.h"
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

// A tile of results has TILE_ROWS rows of TILE_VECTORS vectors; a panel is as wide as a tile.
constexpr int TILE_ROWS = LANES == 8 ? 4 : 8, TILE_VECTORS = 3, PANEL = TILE_VECTORS * LANES;

template <typename Number>
constexpr int in_a_word = 4 / sizeof(Number);

inline Words load_words(const uint32_t* from) {
    Words result;
    std::memcpy(&result, from, sizeof result);
    return result;
}

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

// ROWS rows of `words` words, one after the other, times a panel: PANEL columns, whose words lie next to each other. Of
// `ahead`, `ahead_stride` bytes are prefetched for each word.
template <typename Number, int ROWS>
inline void multiply(const void* rows, long words, const uint32_t* panel, Floats (&result)[ROWS][TILE_VECTORS],
                     const char* ahead, long ahead_stride) {
    // Summed in variables of their own, and loops unrolled: GCC would otherwise leave the tile in memory with AVX2.
    Floats sum[ROWS][TILE_VECTORS] = {};
    for (long k = 0; k < words; k++) {
        Words weights[TILE_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; v++) weights[v] = load_words(panel + k * PANEL + v * LANES);
        __builtin_prefetch(ahead + k * ahead_stride, 0, 2);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            uint32_t word;
            std::memcpy(&word, static_cast<const uint32_t*>(rows) + r * words + k, 4);
#pragma GCC unroll 4
            for (int v = 0; v < TILE_VECTORS; v++) sum[r][v] = multiply_add(sum[r][v], word, weights[v], Number{});
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < TILE_VECTORS; v++) result[r][v] = sum[r][v];
}

// A panel of PANEL columns from `count` rows of weights, each `width` numbers; columns beyond those are zeros.
template <typename Number>
void pack_panel(const Number* weight, long count, long width, uint32_t* panel) {
    const long words = width / in_a_word<Number>;
    for (long c = 0; c < PANEL; c++)
        for (long k = 0; k < words; k++) {
            uint32_t word = 0;
            if (c < count) std::memcpy(&word, weight + c * width + k * in_a_word<Number>, 4);
            panel[k * PANEL + c] = word;
        }
}

}  // namespace
