// Code that is made while the program runs, as a just-in-time compiler makes it, and runs once or a few times.
#include "workload.h"
#include <sys/mman.h>

enum { SLOT = 64, SIZE = 1 << 20 };
typedef uint32_t function(uint32_t);

// A function of SLOT bytes at `at`: constants that no other has, a branch, a value that goes through memory.
static void make(unsigned char *at, uint64_t *seed)
{
    unsigned char *p = at;
    memcpy(p, "\x89\xF8", 2);                  // mov eax, edi
    p += 2;
    for (int i = 0; i < 6; i++) {
        uint32_t value = next_random(seed);
        *p++ = i % 2 ? 0x35 : 0x05;            // xor eax, value; add eax, value
        memcpy(p, &value, 4);
        p += 4;
        if (i == 2) {
            memcpy(p, "\x79\x02\xF7\xD0", 4);  // jns over; not eax
            p += 4;
        }
    }
    memcpy(p, "\x89\x44\x24\xF8\xC1\xC0\x05\x03\x44\x24\xF8\xC3", 12);
    // mov [rsp-8], eax; rol eax, 5; add eax, [rsp-8]; ret
}

static unsigned char *map(int rights)
{
    unsigned char *a = mmap(0, SIZE, rights, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(a != MAP_FAILED);
    return a;
}

static uint32_t call(unsigned char *at, uint32_t value)
{
    return ((function *)(void *)at)(value);
}

// 1 MiB of functions is written, may be executed from then on, runs and goes.
static uint64_t fresh(unsigned long n)
{
    uint64_t sum = 0, seed = 1;
    for (unsigned long k = 0; k < n; k++) {
        unsigned char *a = map(PROT_READ | PROT_WRITE);
        for (size_t i = 0; i < SIZE; i += SLOT)
            make(a + i, &seed);
        check(mprotect(a, SIZE, PROT_READ | PROT_EXEC) == 0);
        for (size_t i = 0; i < SIZE; i += SLOT)
            sum = mix(sum, call(a + i, k));
        check(munmap(a, SIZE) == 0);
    }
    return sum;
}

// Functions are replaced where they are, beside others that stay.
static uint64_t replaced(unsigned long n)
{
    uint64_t sum = 0, seed = 1;
    unsigned char *a = map(PROT_READ | PROT_WRITE | PROT_EXEC);
    for (size_t i = 0; i < SIZE; i += SLOT)
        make(a + i, &seed);
    for (unsigned long k = 0; k < n * 100; k++) {
        unsigned char *at = a + k * 7 * SLOT % SIZE;
        make(at, &seed);
        sum = mix(sum, call(at, k) + call(at == a ? at + SLOT : at - SLOT, k));
    }
    check(munmap(a, SIZE) == 0);
    return sum;
}

int main(int argc, char **argv)
{
    static const struct workload table[] = {{"fresh", fresh}, {"replaced", replaced}, {0, 0}};
    return run_workload(table, argc, argv);
}
