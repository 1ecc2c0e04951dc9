/* Floating point: SSE2 and x87, matrices, a Fourier transform, rounding modes, denormals, conversions, exceptions. */
#include <complex.h>
#include <fenv.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 96, POINTS = 4096 };

static double a[N][N], b[N][N], c[N][N];
static double complex wave[POINTS];

static void matrices(void)
{
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            a[i][j] = (i * 31 + j * 17) % 101 / 7.0 - 5 + (i == j) * 40;
            b[i][j] = (i * 13 + j * 29) % 97 / 11.0;
        }
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            for (int k = 0; k < N; k++)
                c[i][j] += a[i][k] * b[k][j];
    double trace = 0, norm = 0;
    for (int i = 0; i < N; i++) {
        trace += c[i][i];
        for (int j = 0; j < N; j++)
            norm += c[i][j] * c[i][j];
    }
    printf("product: trace %a norm %a\n", trace, sqrt(norm));
    double log_determinant = 0;
    for (int k = 0; k < N; k++) {
        for (int i = k + 1; i < N; i++) {
            double factor = a[i][k] / a[k][k];
            for (int j = k; j < N; j++)
                a[i][j] -= factor * a[k][j];
        }
        log_determinant += log(fabs(a[k][k]));
    }
    printf("log determinant: %.12g\n", log_determinant);
}

static void transform(double complex *x, int n, int sign)
{
    for (int i = 1, j = 0; i < n; i++) {
        int bit = n >> 1;
        for (; j & bit; bit >>= 1)
            j ^= bit;
        j ^= bit;
        if (i < j) {
            double complex t = x[i];
            x[i] = x[j];
            x[j] = t;
        }
    }
    for (int length = 2; length <= n; length <<= 1)
        for (int i = 0; i < n; i += length)
            for (int k = 0; k < length / 2; k++) {
                double complex u = x[i + k];
                double complex v = x[i + k + length / 2] * cexp(sign * 2 * M_PI * I * k / length);
                x[i + k] = u + v;
                x[i + k + length / 2] = u - v;
            }
}

static void waves(void)
{
    for (int i = 0; i < POINTS; i++)
        wave[i] = sin(2 * M_PI * 50 * i / POINTS) + 0.25 * cos(2 * M_PI * 300 * i / POINTS) + I * (i % 7);
    transform(wave, POINTS, -1);
    printf("bins: %.9g %.9g %.9g\n", cabs(wave[50]), cabs(wave[300]), cabs(wave[0]));
    transform(wave, POINTS, 1);
    double worst = 0;
    for (int i = 0; i < POINTS; i++)
        worst = fmax(worst, fabs(cimag(wave[i]) / POINTS - i % 7));
    printf("there and back: %s\n", worst < 1e-9 ? "exact enough" : "wrong");
}

static void extended(void)
{
    long double sum = 0, x = 1.0L / 3;
    for (int i = 1; i < 20000; i++)
        sum += (i & 1 ? 1 : -1) * x / i;
    printf("x87: %.18Lg %.18Lg %.18Lg\n", sum, sqrtl(2), fmodl(1e18L + 7, 3.3L));
    printf("x87: %.15Lg %.15Lg %.15Lg %.15Lg\n", sinl(1), atan2l(1, -3), log2l(10), expl(0.5L));
    printf("x87: %lld %ld %Lg\n", llrintl(-2.5L), lrintl(1e9L + 0.5L), scalbnl(0.75L, 16000));
}

static void corners(void)
{
    static const int modes[] = {FE_TONEAREST, FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO};
    volatile double one = 1, three = 3, tiny = 0x1p-1060, big = 1e308, zero = 0;
    volatile float third = 1.0f / 3;
    for (int i = 0; i < 4; i++) {
        fesetround(modes[i]);
        volatile double quotient = one / three, negative = -one / three;
        printf("rounding %d: %a %a %ld %ld %a\n", i, quotient, negative, lrint(2.5 * one), lrint(-1.5 * one),
               (double)(float)quotient);
    }
    fesetround(FE_TONEAREST);
    printf("denormal: %a %a %a\n", tiny, tiny / 1024, tiny * tiny);
    feclearexcept(FE_ALL_EXCEPT);
    volatile double result = one / zero;
    printf("1/0: %g %d\n", result, !!fetestexcept(FE_DIVBYZERO));
    result = big * big;
    printf("overflow: %g %d\n", result, !!fetestexcept(FE_OVERFLOW));
    result = zero / zero;
    printf("0/0: %d %d\n", isnan(result), !!fetestexcept(FE_INVALID));
    printf("compare: %d %d %d %d\n", result < 1, result != result, one < big, -zero == zero);
    printf("float: %a %a %a\n", third * 3.0f, sqrtf(third), (double)third);
    printf("convert: %d %lld %u %g %g\n", (int)-2.9, (long long)1e15, (unsigned)3e9, (double)0xFFFFFFFFFFFFFFFFull,
           (float)16777217);
    printf("functions: %.12g %.12g %.12g %.12g %.12g\n", exp(1.5), pow(1.1, 40), tan(2), cbrt(10), lgamma(5.5));
    printf("text: %.17g %g %.3e %a\n", strtod("0.1", NULL), strtod("1e-320", NULL), 12345.678, strtod("0x1.8p3", NULL));
}

int main(void)
{
    matrices();
    waves();
    extended();
    corners();
    return 0;
}
