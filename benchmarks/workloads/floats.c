// Floating point: scalar code, x87, SSE, AVX2 with FMA. Results are compared by their bits.
#include "workload.h"
#include <immintrin.h>
#include <math.h>

static uint64_t matrix(unsigned long n)
{
    enum { SIZE = 128 };
    static double a[SIZE][SIZE], b[SIZE][SIZE], c[SIZE][SIZE];
    for (int i = 0; i < SIZE; i++)
        for (int j = 0; j < SIZE; j++)
            a[i][j] = i - j * 0.5, b[i][j] = j + i * 0.25;
    for (unsigned long k = 0; k < n; k++) {
        for (int i = 0; i < SIZE; i++)
            for (int j = 0; j < SIZE; j++) {
                double sum = 0;
                for (int m = 0; m < SIZE; m++)
                    sum += a[i][m] * b[m][j];
                c[i][j] = sum;
            }
        a[k % SIZE][3] = c[5][k % SIZE] * 1e-6;
    }
    uint64_t sum = 0;
    for (int i = 0; i < SIZE; i++)
        sum = mix(sum, bits_of(c[i][i]));
    return sum;
}

static uint64_t fft(unsigned long n)
{
    enum { SIZE = 4096 };
    static double re[SIZE], im[SIZE], wr[SIZE / 2], wi[SIZE / 2];
    // Roots of unity by halving angles: sqrt is exact everywhere, sin and cos depend on the library.
    wr[0] = 1, wi[0] = 0;
    double cosine = -1, sine = 0;
    for (int step = SIZE / 2; step >= 1; step /= 2) {
        for (int i = step; i < SIZE / 2; i += 2 * step) {
            wr[i] = wr[i - step] * cosine - wi[i - step] * sine;
            wi[i] = wr[i - step] * sine + wi[i - step] * cosine;
        }
        double half = sqrt((1 + cosine) / 2);
        sine = -sqrt((1 - cosine) / 2);
        cosine = half;
    }
    for (int i = 0; i < SIZE; i++)
        re[i] = i % 37, im[i] = i % 11;
    for (unsigned long k = 0; k < n; k++) {
        for (int i = 1, j = 0; i < SIZE; i++) {
            int bit = SIZE >> 1;
            for (; j & bit; bit >>= 1)
                j ^= bit;
            j ^= bit;
            if (i < j) {
                double t = re[i];
                re[i] = re[j], re[j] = t;
                t = im[i];
                im[i] = im[j], im[j] = t;
            }
        }
        for (int len = 2; len <= SIZE; len <<= 1)
            for (int i = 0; i < SIZE; i += len)
                for (int j = 0; j < len / 2; j++) {
                    int w = j * (SIZE / len), p = i + j, q = i + j + len / 2;
                    double tr = re[q] * wr[w] - im[q] * wi[w], ti = re[q] * wi[w] + im[q] * wr[w];
                    re[q] = re[p] - tr, im[q] = im[p] - ti;
                    re[p] += tr, im[p] += ti;
                }
        for (int i = 0; i < SIZE; i++)
            re[i] *= 1.0 / 64, im[i] *= 1.0 / 64;
    }
    uint64_t sum = 0;
    for (int i = 0; i < SIZE; i++)
        sum = mix(mix(sum, bits_of(re[i])), bits_of(im[i]));
    return sum;
}

static uint64_t nbody(unsigned long n)
{
    enum { BODIES = 5 };
    static double p[BODIES][3], v[BODIES][3], m[BODIES];
    for (int i = 0; i < BODIES; i++) {
        m[i] = 1.0 / (i + 1);
        for (int d = 0; d < 3; d++)
            p[i][d] = i * (d + 1.5) - d, v[i][d] = (i - 2) * 0.01 * (d + 1);
    }
    for (unsigned long k = 0; k < n * 1000; k++) {
        for (int i = 0; i < BODIES; i++)
            for (int j = i + 1; j < BODIES; j++) {
                double x = p[i][0] - p[j][0], y = p[i][1] - p[j][1], z = p[i][2] - p[j][2];
                double square = x * x + y * y + z * z + 0.01;
                double force = 0.001 / (square * sqrt(square));
                v[i][0] -= x * m[j] * force, v[i][1] -= y * m[j] * force, v[i][2] -= z * m[j] * force;
                v[j][0] += x * m[i] * force, v[j][1] += y * m[i] * force, v[j][2] += z * m[i] * force;
            }
        for (int i = 0; i < BODIES; i++)
            for (int d = 0; d < 3; d++)
                p[i][d] += 0.001 * v[i][d];
    }
    uint64_t sum = 0;
    for (int i = 0; i < BODIES; i++)
        sum = mix(sum, bits_of(p[i][0]));
    return sum;
}

// long double: the x87.
static uint64_t x87(unsigned long n)
{
    long double x = 0.5L, sum = 0;
    for (unsigned long i = 0; i < n * 1000; i++) {
        x = 3.75L * x * (1 - x);
        sum += x / (i + 1);
    }
    return mix(bits_of((double)x), bits_of((double)sum));
}

static uint64_t sse(unsigned long n)
{
    static float a[4096] __attribute__((aligned(16))), b[4096] __attribute__((aligned(16)));
    for (int i = 0; i < 4096; i++)
        a[i] = i * 0.5f, b[i] = 4096 - i;
    __m128 total = _mm_setzero_ps();
    for (unsigned long k = 0; k < n; k++) {
        __m128 scale = _mm_set1_ps(1.0f / (k % 97 + 1));
        for (int i = 0; i < 4096; i += 4) {
            __m128 x = _mm_add_ps(_mm_mul_ps(_mm_load_ps(a + i), scale), _mm_load_ps(b + i));
            total = _mm_add_ps(total, _mm_sqrt_ps(x));
            _mm_store_ps(b + i, _mm_min_ps(x, _mm_set1_ps(9000)));
        }
        total = _mm_mul_ps(total, _mm_set1_ps(0.5f));
    }
    float out[4];
    _mm_storeu_ps(out, total);
    return mix(mix(bits_of(out[0]), bits_of(out[1])), mix(bits_of(out[2]), bits_of(b[77])));
}

__attribute__((target("avx2,fma"))) static uint64_t avx2(unsigned long n)
{
    static double a[4096] __attribute__((aligned(32))), b[4096] __attribute__((aligned(32)));
    static uint32_t c[4096] __attribute__((aligned(32)));
    for (int i = 0; i < 4096; i++)
        a[i] = i * 0.25, b[i] = 4096 - i, c[i] = i * 2654435761u;
    __m256d total = _mm256_setzero_pd();
    __m256i bits = _mm256_setzero_si256();
    for (unsigned long k = 0; k < n; k++) {
        __m256d scale = _mm256_set1_pd(1.0 / (k % 89 + 1));
        for (int i = 0; i < 4096; i += 4)
            total = _mm256_fmadd_pd(_mm256_load_pd(a + i), scale, _mm256_sub_pd(total, _mm256_load_pd(b + i)));
        for (int i = 0; i < 4096; i += 8) {
            __m256i x = _mm256_load_si256((__m256i *)(c + i));
            x = _mm256_add_epi32(_mm256_mullo_epi32(x, _mm256_set1_epi32(0x9E3779B1)), _mm256_set1_epi32(k));
            bits = _mm256_xor_si256(bits, _mm256_shuffle_epi32(x, 0x1B));
            _mm256_store_si256((__m256i *)(c + i), x);
        }
        total = _mm256_mul_pd(total, _mm256_set1_pd(0.25));
    }
    double out[4];
    uint32_t more[8];
    _mm256_storeu_pd(out, total);
    _mm256_storeu_si256((__m256i *)more, bits);
    return mix(mix(bits_of(out[0]), bits_of(out[3])), mix(more[0], more[7]));
}

int main(int argc, char **argv)
{
    static const struct workload table[] = {{"matrix", matrix}, {"fft", fft}, {"nbody", nbody}, {"x87", x87},
                                            {"sse", sse},       {"avx2", avx2}, {0, 0}};
    return run_workload(table, argc, argv);
}
