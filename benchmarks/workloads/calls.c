// Calls, recursion, indirect calls.
#include "workload.h"

#define APART __attribute__((noinline, noclone))

static APART uint64_t fibonacci(unsigned n)
{
    return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

static uint64_t recursion(unsigned long n)
{
    uint64_t sum = 0;
    for (unsigned long k = 0; k < n; k++) {
        volatile unsigned depth = 24;
        sum = mix(sum, fibonacci(depth));
    }
    return sum;
}

static APART uint64_t leaf(uint64_t x, uint64_t y)
{
    __asm__ volatile("" : "+r"(x));
    return x * 5 + y;
}

static APART uint64_t middle(uint64_t x, uint64_t y)
{
    return leaf(x, y) ^ leaf(y, x);
}

// Calls two deep, from one place each.
static uint64_t calls(unsigned long n)
{
    uint64_t sum = 1;
    for (unsigned long i = 0; i < n * 1000; i++)
        sum += middle(sum, i);
    return sum;
}

static APART uint64_t op_add(uint64_t a) { return a + 3; }
static APART uint64_t op_mul(uint64_t a) { return a * 7; }
static APART uint64_t op_xor(uint64_t a) { return a ^ 0x55AA55AA; }
static APART uint64_t op_rot(uint64_t a) { return a << 11 | a >> 53; }
static APART uint64_t op_sub(uint64_t a) { return a - 11; }
static APART uint64_t op_not(uint64_t a) { return ~a; }
static APART uint64_t op_shr(uint64_t a) { return a ^ a >> 9; }
static APART uint64_t op_inc(uint64_t a) { return a + (a & 1); }

// Through a table of functions, in an order that repeats after 1024 calls.
static uint64_t indirect(unsigned long n)
{
    static uint64_t (*const table[8])(uint64_t) = {op_add, op_mul, op_xor, op_rot, op_sub, op_not, op_shr, op_inc};
    unsigned char order[1024];
    uint64_t seed = 17, sum = 1;
    for (int i = 0; i < 1024; i++)
        order[i] = next_random(&seed) >> 61;
    for (unsigned long k = 0; k < n; k++)
        for (int i = 0; i < 1024; i++)
            sum = table[order[i]](sum);
    return sum;
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

// qsort of the C library calls back for each comparison.
static uint64_t callback(unsigned long n)
{
    static uint32_t a[20000];
    uint64_t seed = 19, sum = 0;
    for (unsigned long k = 0; k < n; k++) {
        for (int i = 0; i < 20000; i++)
            a[i] = next_random(&seed) >> 32;
        qsort(a, 20000, sizeof *a, compare);
        for (int i = 0; i < 20000; i += 89)
            sum = mix(sum, a[i]);
    }
    return sum;
}

int main(int argc, char **argv)
{
    static const struct workload table[] = {
        {"recursion", recursion}, {"calls", calls}, {"indirect", indirect}, {"callback", callback}, {0, 0}};
    return run_workload(table, argc, argv);
}
