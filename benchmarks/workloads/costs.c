// What single things cost, for `costs`: accesses to memory by how far the look-up has to go, jumps by where they lead.
// Prints `NAME NANOSECONDS` a line. Each figure is the smallest of several passes that are shorter than a turn of the
// host's scheduler, so that a busy host does not show in it, and includes the loop around.
#include "workload.h"
#include <sys/mman.h>
#include <time.h>

enum { PASSES = 9, PAGE = 4096, FUNCTIONS = 16, NEAR = 256, FAR = 65536 };
static unsigned long accesses = 400000;

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void tell(const char *name, uint64_t best, unsigned long count)
{
    printf("%s %.2f\n", name, (double)best / count);
}

static unsigned char *map(size_t size, int rights)
{
    unsigned char *a = mmap(0, size, rights, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(a != MAP_FAILED);
    madvise(a, size, MADV_NOHUGEPAGE);
    return a;
}

// One access a page, each in another line of the page, so that it is the TLBs that matter and not the host's first cache.
static inline volatile uint64_t *place(unsigned char *a, size_t page)
{
    return (volatile uint64_t *)(a + page * PAGE + page * 64 % PAGE);
}

static __attribute__((noinline)) uint64_t load(unsigned char *a, size_t pages, unsigned long turns)
{
    uint64_t sum = 0;
    for (unsigned long k = 0; k < turns; k++)
        for (size_t i = 0; i < pages; i++)
            sum += *place(a, i);
    return sum;
}

static __attribute__((noinline)) uint64_t store(unsigned char *a, size_t pages, unsigned long turns)
{
    for (unsigned long k = 0; k < turns; k++)
        for (size_t i = 0; i < pages; i++)
            *place(a, i) = k;
    return 0;
}

typedef uint64_t pass(unsigned char *, size_t, unsigned long);

static void memory(const char *name, unsigned char *a, size_t pages, pass *access)
{
    unsigned long turns = 1 + accesses / pages;
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < PASSES; i++) {
        uint64_t start = now();
        access(a, pages, turns);
        uint64_t took = now() - start;
        best = took < best ? took : best;
    }
    tell(name, best, turns * pages);
}

typedef void function(unsigned long);

static void jumps(const char *name, unsigned char *code, int each)
{
    unsigned long turns = accesses;
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < PASSES; i++) {
        uint64_t start = now();
        ((function *)(void *)code)(turns);
        uint64_t took = now() - start;
        best = took < best ? took : best;
    }
    tell(name, best, turns * each);
}

static unsigned char *put32(unsigned char *p, int32_t value)
{
    memcpy(p, &value, 4);
    return p + 4;
}

// at: jmp to;  to: dec rdi; jnz at; ret
static unsigned char *pair(unsigned char *at, unsigned char *to)
{
    *at = 0xE9;
    put32(at + 1, to - (at + 5));
    memcpy(to, "\x48\xFF\xCF\x0F\x85", 5);
    *put32(to + 5, at - (to + 9)) = 0xC3;
    return at;
}

// Calls by a register to `targets` functions in turn, which lie `apart`.
static void calls(const char *name, unsigned char *code, int targets, size_t apart)
{
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < PASSES; i++) {
        uint64_t start = now();
        for (unsigned long k = 0; k < accesses; k++)
            ((function *)(void *)(code + (k & (targets - 1)) * apart))(k);
        uint64_t took = now() - start;
        best = took < best ? took : best;
    }
    tell(name, best, accesses);
}

int main(int argc, char **argv)
{
    size_t most = 256 << 20;
    unsigned char *a = map(most, PROT_READ | PROT_WRITE);
    unsigned char *code = map(1 << 20, PROT_READ | PROT_WRITE | PROT_EXEC);
    if (argc > 1)
        accesses = strtoul(argv[1], 0, 10);
    store(a, most / PAGE, 1);
    memory("load-hit", a, 16, load);
    memory("store-hit", a, 16, store);
    memory("load-second", a, (8 << 20) / PAGE, load);
    memory("store-second", a, (8 << 20) / PAGE, store);
    memory("load-walk", a, most / PAGE, load);
    memory("store-walk", a, most / PAGE, store);
    for (int i = 0; i < FUNCTIONS; i++)
        code[i * FAR + 512] = 0xC3;
    code[512 + NEAR] = 0xC3;
    jumps("chain", pair(code, code + 64), 2);
    jumps("crossing", pair(code + PAGE, code + 2 * PAGE), 2);
    calls("call-found", code + 512, 2, NEAR);
    calls("call-missed", code + 512, FUNCTIONS, FAR);
    return 0;
}
