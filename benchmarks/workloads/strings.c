// Memory copy and fill, and the string functions of the C library, which chooses the best for the CPU that it is shown.
#include "workload.h"

// Copies and fills from 16 bytes to 64 KiB, some of them not aligned.
static uint64_t copy(unsigned long n)
{
    unsigned char *from = room(1 << 17), *to = room(1 << 17);
    uint64_t seed = 23, sum = 0;
    for (size_t i = 0; i < 1 << 17; i++)
        from[i] = next_random(&seed) >> 56;
    memset(to, 0, 1 << 17);
    for (unsigned long k = 0; k < n; k++)
        for (unsigned bits = 4; bits <= 16; bits++) {
            size_t size = (1u << bits) - (k & 7);
            for (unsigned i = 0; i < 1u << (16 - bits); i++) {
                memcpy(to + (i & 15) + bits, from + (k & 31), size);
                __asm__ volatile("" ::: "memory");
            }
            sum = mix(sum, to[size / 2]);
        }
    return sum;
}

static uint64_t fill(unsigned long n)
{
    unsigned char *to = room(1 << 17);
    uint64_t sum = 0;
    for (unsigned long k = 0; k < n; k++)
        for (unsigned bits = 4; bits <= 16; bits++) {
            size_t size = (1u << bits) - (k & 7);
            for (unsigned i = 0; i < 1u << (16 - bits); i++) {
                memset(to + (i & 15), k + i, size);
                __asm__ volatile("" ::: "memory");
            }
            sum = mix(sum, to[size / 2]);
        }
    return sum;
}

// Large blocks, through all cache levels.
static uint64_t bulk(unsigned long n)
{
    size_t size = 4 << 20;
    unsigned char *a = room(size), *b = room(size);
    uint64_t sum = 0;
    memset(a, 3, size);
    for (unsigned long k = 0; k < n; k++) {
        memcpy(b, a, size);
        memset(a + size / 4, k, size / 4);
        memmove(a + 1, a, size / 2);
        sum = mix(sum, b[k * 4099 % size] + a[size / 2]);
    }
    return sum;
}

// Plain C byte loops, which no library makes fast.
static uint64_t bytes(unsigned long n)
{
    enum { SIZE = 8192 };
    static volatile unsigned char a[SIZE], b[SIZE];
    uint64_t sum = 0;
    for (unsigned long k = 0; k < n; k++) {
        for (int i = 0; i < SIZE; i++)
            a[i] = i + k;
        for (int i = 0; i < SIZE; i++)
            b[i] = a[SIZE - 1 - i];
        sum = mix(sum, b[k % SIZE]);
    }
    return sum;
}

static uint64_t search(unsigned long n)
{
    enum { WORDS = 512 };
    static char words[WORDS][64], text[WORDS * 64];
    uint64_t seed = 29, sum = 0;
    for (int i = 0; i < WORDS; i++) {
        int length = 3 + (next_random(&seed) >> 59);
        for (int j = 0; j < length; j++)
            words[i][j] = 'a' + (next_random(&seed) >> 61);
    }
    for (int i = 0, at = 0; i < WORDS; i++) {
        strcpy(text + at, words[i]);
        at += strlen(words[i]);
        text[at++] = ' ';
        text[at] = 0;
    }
    for (unsigned long k = 0; k < n; k++) {
        for (int i = 0; i < WORDS; i++) {
            sum += strlen(words[i]) + (strcmp(words[i], words[(i + k) % WORDS]) > 0);
            char *found = strchr(words[i], 'h');
            sum += found ? found - words[i] : 99;
            sum += memcmp(words[i], words[(i + 1) % WORDS], 8) > 0;
        }
        for (int i = 0; i < WORDS; i += 32) {
            char *found = strstr(text, words[i]);
            sum = mix(sum, found ? found - text : 0);
        }
        sum += (char *)memchr(text, 0, sizeof text) - text;
    }
    return sum;
}

int main(int argc, char **argv)
{
    static const struct workload table[] = {{"copy", copy},   {"fill", fill},     {"bulk", bulk},
                                            {"bytes", bytes}, {"search", search}, {0, 0}};
    return run_workload(table, argc, argv);
}
