// AVX-512 as compilers and libraries use it: masks, gathers and scatters, compression, rounding, faults that a mask keeps
// away, the state across signals, and the loops of a compiler for x86-64-v4.

#define _GNU_SOURCE
#include <immintrin.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static uint64_t seed = 12345;

static uint64_t random64(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static uint64_t hash(const void *data, size_t size)
{
    const uint8_t *bytes = data;
    uint64_t h = 0xCBF29CE484222325;
    for (size_t i = 0; i < size; i++)
        h = (h ^ bytes[i]) * 0x100000001B3;
    return h;
}

static void show(const char *name, const void *data, size_t size)
{
    printf("%-24s %016llx\n", name, (unsigned long long)hash(data, size));
}

static void show512(const char *name, __m512i v) { show(name, &v, sizeof v); }

static sigjmp_buf back;
static uintptr_t fault_at;

static void on_fault(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    fault_at = (uintptr_t)info->si_addr;
    siglongjmp(back, 1);
}

// --- masks -----------------------------------------------------------------------------------------------------------

static void masks(void)
{
    uint8_t text[256];
    for (int i = 0; i < 256; i++)
        text[i] = random64() % 7;
    uint64_t found = 0;
    for (int i = 0; i < 256; i += 64) {
        __m512i v = _mm512_loadu_si512(text + i);
        __mmask64 k = _mm512_cmpeq_epi8_mask(v, _mm512_set1_epi8(3));
        found = found * 31 + k + _mm_popcnt_u64(k);
        k = _kxor_mask64(_kandn_mask64(k, _mm512_test_epi8_mask(v, v)), _kshiftli_mask64(k, 5));
        found ^= _cvtmask64_u64(k) + _kortestz_mask64_u8(k, k) + 2 * _kortestc_mask64_u8(k, _knot_mask64(k));
        v = _mm512_mask_add_epi8(v, k, v, v);
        v = _mm512_maskz_sub_epi8(_knot_mask64(k), v, _mm512_set1_epi8(9));
        show512("bytes", v);
    }
    printf("found %016llx\n", (unsigned long long)found);
    __m512i a = _mm512_set_epi32(1, -2, 3, -4, 5, -6, 7, -8, 9, -10, 11, -12, 13, -14, 15, -16);
    __m512i b = _mm512_rorv_epi32(a, _mm512_set1_epi32(7));
    show512("ternary", _mm512_mask_ternarylogic_epi32(a, 0xA5F0, b, _mm512_srai_epi32(a, 3), 0x96));
    show512("broadcast", _mm512_mul_epi32(a, _mm512_set1_epi64(random64())));
    show512("conflict", _mm512_conflict_epi32(_mm512_and_si512(a, _mm512_set1_epi32(3))));
    show512("leading zeros", _mm512_lzcnt_epi64(b));
    show512("permuted", _mm512_permutex2var_epi32(a, _mm512_srli_epi32(b, 27), b));
    show512("aligned", _mm512_alignr_epi32(a, b, 5));
    printf("reduced %d %d\n", _mm512_reduce_add_epi32(a), _mm512_mask_reduce_max_epi32(0x1F00, b));
}

// --- memory ----------------------------------------------------------------------------------------------------------

static void memory(void)
{
    static double table[4096];
    static int64_t out[512];
    for (int i = 0; i < 4096; i++)
        table[i] = (double)(int64_t)random64() / 3;
    __m512d sum = _mm512_setzero_pd();
    for (int i = 0; i < 200; i++) {
        __m256i at = _mm256_set_epi32(i, i * 7 & 4095, i * 13 & 4095, i * 29 & 4095, 5, i * 2, i * 31 & 4095, 4095 - i);
        sum = _mm512_add_pd(sum, _mm512_mask_i32gather_pd(sum, random64(), at, table, 8));
    }
    show("gathered", &sum, sizeof sum);
    for (int i = 0; i < 200; i++) {
        __m512i at = _mm512_set_epi64(i, i + 3, i * 2 & 511, 511 - i, i + 1, i + 2, i * 3 & 511, i * 5 & 511);
        _mm512_mask_i64scatter_epi64(out, random64(), at, _mm512_set1_epi64(random64()), 8);
    }
    show("scattered", out, sizeof out);

    int32_t packed[2048], count = 0;
    for (int i = 0; i < 128; i++) {
        __m512i v = _mm512_set1_epi32(random64());
        v = _mm512_srlv_epi32(v, _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
        __mmask16 k = random64();
        _mm512_mask_compressstoreu_epi32(packed + count, k, v);
        count += __builtin_popcount(k);
        v = _mm512_mask_expandloadu_epi32(v, ~k, packed + count / 2);
        _mm512_mask_cvtepi32_storeu_epi8((uint8_t *)out + i * 16, random64(), v);
    }
    printf("compressed %d\n", count);
    show("compressed", packed, count * 4);
    show("narrowed", out, sizeof out);
}

// A mask keeps faults away; what faults is the first enabled element.
static void faults(void)
{
    uint8_t *pages = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *end = pages + 4096;
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    mprotect(end, 4096, PROT_NONE);
    for (int i = 0; i < 4096; i++)
        pages[i] = pages[2 * 4096 + i] = random64();
    uint64_t sum = 0;
    int faulted = 0;
    for (int i = 0; i < 400; i++) {
        unsigned over = random64() % 64;
        __mmask64 k = random64() >> random64() % 64;
        if (random64() & 1)
            k &= ~0ull >> over >> 1;
        uint8_t *at = end - 64 + over;
        fault_at = 0;
        if (!sigsetjmp(back, 1)) {
            __m512i v = _mm512_maskz_loadu_epi8(k, at);
            sum = sum * 37 + hash(&v, sizeof v);
            _mm512_mask_storeu_epi8(at, k, _mm512_add_epi8(v, _mm512_set1_epi8(i)));
        } else {
            faulted++;
            sum = sum * 41 + (fault_at - (uintptr_t)pages);
        }
        __mmask16 low = k;
        if (!sigsetjmp(back, 1)) {
            __m512 f = _mm512_mask_add_ps(_mm512_set1_ps(i), low, _mm512_set1_ps(2), *(__m512 *)(end - (over & ~3)));
            sum = sum * 43 + (_mm512_cmp_ps_mask(f, f, _CMP_ORD_Q) ^ low);
        } else {
            faulted++;
            sum = sum * 47 + (fault_at - (uintptr_t)pages);
        }
    }
    printf("faults %d of 800, %016llx\n", faulted, (unsigned long long)sum);
    show("pages", pages, 4096);
    munmap(pages, 3 * 4096);
}

// --- rounding --------------------------------------------------------------------------------------------------------

static void rounding(void)
{
    __m512d a = _mm512_set_pd(1.5, -2.5, 1e300, -1e-300, 3.14159, 0.1, -7.75, 1e16);
    __m512d b = _mm512_set1_pd(3.3);
    __m512d up = _mm512_div_round_pd(a, b, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    __m512d down = _mm512_div_round_pd(a, b, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    show("up", &up, sizeof up);
    show("down", &down, sizeof down);
    show512("whole", _mm512_cvt_roundpd_epi64(_mm512_mul_pd(a, _mm512_set1_pd(1e-10)), _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC));
    __m512d g = _mm512_getmant_pd(_mm512_scalef_pd(a, b), _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
    show("mantissa", &g, sizeof g);
    printf("class %x\n", _mm512_fpclass_pd_mask(_mm512_sqrt_pd(a), 0x81));
}

// --- state across signals and threads ----------------------------------------------------------------------------------

static volatile int ticks;

static void on_tick(int number)
{
    // Spoils every register that it may
    (void)number;
    __asm__ volatile("vpternlogd $0xff, %%zmm0, %%zmm0, %%zmm0\n vmovdqa64 %%zmm0, %%zmm17\n vmovdqa64 %%zmm0, %%zmm31\n"
                     "kxnorq %%k0, %%k0, %%k3\n kxnorq %%k0, %%k0, %%k7" ::: "xmm0", "xmm17", "xmm31", "k3", "k7");
    ticks++;
}

static void *keeps(void *argument)
{
    uint64_t value = (uintptr_t)argument * 0x9E3779B97F4A7C15;
    uint64_t wrong = 0;
    for (int i = 0; i < 20000; i++) {
        uint64_t high, low, mask, back_mask = value + i;
        __asm__ volatile("vpbroadcastq %3, %%zmm29\n vpbroadcastq %3, %%zmm5\n kmovq %3, %%k5\n"
                         "mov %3, %0\n .rept 8\n imul $3, %0, %0\n .endr\n"
                         "valignq $7, %%zmm29, %%zmm29, %%zmm30\n vmovq %%xmm30, %0\n"
                         "vextracti64x4 $1, %%zmm5, %%ymm6\n vmovq %%xmm6, %1\n kmovq %%k5, %2"
                         : "=&r"(high), "=&r"(low), "=&r"(mask) : "r"(back_mask)
                         : "xmm5", "xmm6", "xmm29", "xmm30", "k5");
        wrong += high != back_mask || low != back_mask || mask != back_mask;
        if (i % 500 == 0)
            sched_yield();
    }
    return (void *)wrong;
}

static void state(void)
{
    signal(SIGUSR1, on_tick);
    uint64_t wrong = 0;
    for (int i = 0; i < 300; i++) {
        uint64_t value = random64(), out, mask;
        __asm__ volatile("vpbroadcastq %2, %%zmm17\n vpbroadcastq %2, %%zmm31\n kmovq %2, %%k3\n kmovq %2, %%k7\n"
                         "mov $39, %%eax\n syscall\n mov %%eax, %%edi\n mov $10, %%esi\n mov $62, %%eax\n syscall\n"
                         "vpxorq %%zmm17, %%zmm31, %%zmm18\n vptestmq %%zmm18, %%zmm18, %%k1\n kmovb %%k1, %k0\n"
                         "vmovq %%xmm31, %1\n kxorq %%k3, %%k7, %%k3\n kmovq %%k3, %%rdi\n or %%rdi, %0"
                         : "=&r"(mask), "=&r"(out) : "r"(value)
                         : "rax", "rcx", "rdi", "rsi", "r11", "xmm17", "xmm18", "xmm31", "k1", "k3", "k7", "memory");
        wrong += out != value || mask != 0;
    }
    printf("signals %d, wrong %llu\n", ticks, (unsigned long long)wrong);
    pthread_t threads[4];
    wrong = 0;
    for (uintptr_t i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, keeps, (void *)(i + 1));
    for (int i = 0; i < 4; i++) {
        void *result;
        pthread_join(threads[i], &result);
        wrong += (uintptr_t)result;
    }
    printf("threads, wrong %llu\n", (unsigned long long)wrong);
}

// --- what the compiler makes -------------------------------------------------------------------------------------------

static float x[1003], y[1003];
static int16_t shorts[1003];
static uint8_t bytes[1003];

static void compiled(void)
{
    for (int i = 0; i < 1003; i++) {
        x[i] = (float)(int32_t)random64() / 65536;
        y[i] = (float)(random64() % 1000);
        shorts[i] = random64();
    }
    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < 1003; i++)
            if (x[i] > y[i])
                y[i] += x[i] * 0.5f;
            else
                x[i] = y[i] - x[i];
        for (int i = 0; i < 1003; i++)
            bytes[i] = shorts[i] > 0 ? shorts[i] >> 7 : bytes[i] + shorts[i];
        for (int i = 0; i < 1003; i++)
            shorts[i] = abs(shorts[i]) - bytes[i] * round;
    }
    show("x", x, sizeof x);
    show("y", y, sizeof y);
    show("bytes", bytes, sizeof bytes);
    show("shorts", shorts, sizeof shorts);
    uint64_t total = 0;
    char text[600];
    for (int i = 0; i < 599; i++)
        text[i] = 'a' + random64() % 26;
    text[599] = 0;
    for (int from = 0; from < 599; from++) {
        char copy[700];
        strcpy(copy, text + from);
        total = total * 33 + strlen(copy) + (strchr(copy, 'q') ? strchr(copy, 'q') - copy : 0);
        total += memcmp(copy, text, 599 - from) > 0;
        memmove(copy + from % 64, copy, strlen(copy) / 2);
        total ^= hash(copy, 64);
    }
    printf("strings %016llx\n", (unsigned long long)total);
}

int main(void)
{
    if (!__builtin_cpu_supports("x86-64-v4")) {
        printf("no AVX-512\n");
        return 77;
    }
    masks();
    memory();
    faults();
    rounding();
    state();
    compiled();
    return 0;
}
