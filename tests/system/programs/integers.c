/* Integer arithmetic: 128-bit products and quotients, carries, shifts, rotations, bit counts, wrap-around, bit fields. */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>

static uint64_t seed = 88172645463325252u;

static uint64_t next(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

struct packed {
    unsigned a : 3, b : 11, c : 18;
    int64_t d : 37;
};

int main(void)
{
    uint64_t mix = 0;
    for (int i = 0; i < 200000; i++) {
        uint64_t a = next(), b = next(), c = next() | 1;
        unsigned shift = a & 63;
        unsigned __int128 wide = (unsigned __int128)a * b;
        mix ^= (uint64_t)(wide >> 64) + (uint64_t)wide;
        mix += (uint64_t)(wide / c) ^ (uint64_t)(wide % c);
        mix ^= (uint64_t)((__int128)(int64_t)a * (int64_t)b >> 64);
        mix += (uint64_t)((int64_t)a / (int64_t)(c >> 3 | 1)) - (uint64_t)((int32_t)b % (int16_t)(c | 1));
        mix ^= a << shift | b >> (63 - shift);
        mix += (uint64_t)((int64_t)b >> shift) ^ (a >> shift | a << (64 - shift) % 64);
        mix ^= (uint64_t)__builtin_popcountll(a) << 32 | (uint64_t)__builtin_ctzll(c | 1u << 31);
        mix += (uint64_t)__builtin_clzll(b | 1) + __builtin_bswap64(a);
        uint64_t sum;
        mix += __builtin_add_overflow(a, b, &sum) + sum;
        int32_t product;
        mix ^= __builtin_mul_overflow((int32_t)a, (int32_t)b, &product) ? (uint64_t)product << 7 : (uint64_t)product;
        mix += (uint8_t)a * (int8_t)b + (uint16_t)a * (int16_t)c;
        struct packed fields = {a, b, c, (int64_t)(a << 10) >> 20};
        fields.b += fields.a;
        mix ^= (uint64_t)fields.d + fields.b * 3u + fields.c;
        if (i % 20000 == 0)
            printf("%d %016" PRIx64 "\n", i, mix);
    }
    printf("%016" PRIx64 "\n", mix);
    return 0;
}
