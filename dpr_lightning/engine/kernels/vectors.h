// Vectors of floats, by the extensions of GCC and Clang, so that one source fits every CPU: 16 floats with AVX-512, 8
// with AVX, 4 elsewhere. Numbers in memory are float or bfloat16.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

using Floats = float __attribute__((vector_size(4 * LANES)));
using Words = uint32_t __attribute__((vector_size(4 * LANES)));
using Shorts = uint16_t __attribute__((vector_size(2 * LANES)));

struct Half {  // bfloat16
    uint16_t bits;
};

inline Floats all(float value) { return Floats{} + value; }

inline Floats load(const float* from) {
    Floats result;
    std::memcpy(&result, from, sizeof result);
    return result;
}

inline Floats load(const Half* from) {
    Shorts read;
    std::memcpy(&read, from, sizeof read);
    return (Floats)(__builtin_convertvector(read, Words) << 16);
}

inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

// The bfloat16 numbers nearest to these, to the even one between two, each in the lower half of a word.
inline Words narrow(Floats value) {
    Words bits = (Words)value;
    Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    Words number = (Words)(value == value);
    return (rounded & number) | (~number & 0x7fc0);
}

inline void store(Half* to, Floats value) {
    Shorts result = __builtin_convertvector(narrow(value), Shorts);
    std::memcpy(to, &result, sizeof result);
}

inline float wide(float value) { return value; }

inline float wide(Half value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

// e^x with an error of some 1e-7 of itself: 2^n times a polynomial (Cephes' expf), 0 below −87.
inline Floats exponential(Floats x) {
    Floats least = all(-87.f), most = all(88.f);
    Words small = (Words)(x < least);
    x = x < least ? least : x;
    x = x > most ? most : x;
    Floats shifted = x * 1.44269504f + 12582912.f;  // 1.5 · 2^23: the integer part is in the lowest bits
    Floats n = shifted - 12582912.f;
    Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Floats p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.f;
    Floats result = (Floats)((((Words)shifted << 23) + (Words)p) & ~small);
    return x == x ? result : x;
}

// Every second number of two vectors, from `FIRST` on.
template <int FIRST, int... INDICES>
inline Floats every_second(Floats a, Floats b, std::integer_sequence<int, INDICES...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (2 * INDICES + FIRST)...);
#else
    return __builtin_shuffle(a, b, Words{(2 * INDICES + FIRST)...});  // GCC < 12 has no shufflevector
#endif
}

inline Floats neighbours_added(Floats a, Floats b) {
    auto indices = std::make_integer_sequence<int, LANES>{};
    return every_second<0>(a, b, indices) + every_second<1>(a, b, indices);
}

// The sums of LANES vectors, in their order; `parts` is overwritten.
inline Floats sums(Floats* parts) {
    for (int count = LANES; count > 1; count /= 2)
        for (int i = 0; i < count / 2; i++) parts[i] = neighbours_added(parts[2 * i], parts[2 * i + 1]);
    return parts[0];
}

inline float sum(Floats value) {
    for (int count = LANES; count > 1; count /= 2) value = neighbours_added(value, value);
    return value[0];
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

inline float largest(Floats value) {
    auto indices = std::make_integer_sequence<int, LANES>{};
    for (int count = LANES; count > 1; count /= 2)
        value = larger(every_second<0>(value, value, indices), every_second<1>(value, value, indices));
    return value[0];
}

// Calls `function` with the smaller of `count` and MOST, at least 1, as a compile-time constant.
template <int MOST, typename Function>
inline void with_count(long count, const Function& function) {
    if constexpr (MOST > 1) {
        if (count < MOST) return with_count<MOST - 1>(count, function);
    }
    function(std::integral_constant<int, MOST>{});
}

// A part of a vector: `count` numbers from memory, and zeros.
template <typename Number>
inline Floats load_some(const Number* from, long count) {
    Number padded[LANES] = {};
    std::memcpy(padded, from, count * sizeof(Number));
    return load(padded);
}

template <typename Number>
inline void store_some(Number* to, Floats value, long count) {
    Number padded[LANES];
    store(padded, value);
    std::memcpy(to, padded, count * sizeof(Number));
}

}  // namespace
