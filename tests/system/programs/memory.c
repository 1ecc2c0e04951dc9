/* Memory: large copies and fills, overlapping moves, sorting, copy-on-write, mappings, strings, non-local jumps. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LARGE = 16 << 20, COUNT = 100000 };

static uint32_t state = 12345;

static uint32_t next(void)
{
    return state = state * 1664525 + 1013904223;
}

static uint64_t digest(const void *data, size_t length)
{
    const uint64_t *words = data;
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < length / 8; i++)
        hash = (hash ^ words[i]) * 1099511628211u;
    return hash;
}

static int ascending(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void copies(void)
{
    uint8_t *a = malloc(LARGE + 64), *b = malloc(LARGE + 64);
    for (int i = 0; i < LARGE / 4; i++)
        ((uint32_t *)a)[i] = next();
    memset(b, 0x5A, LARGE + 64);
    printf("fill %016lx\n", digest(b, LARGE));
    memcpy(b, a, LARGE);
    printf("copy %016lx %d\n", digest(b, LARGE), memcmp(a, b, LARGE));
    memmove(b + 7, b, LARGE - 7);
    printf("move up %016lx\n", digest(b, LARGE));
    memmove(b, b + 13, LARGE - 13);
    printf("move down %016lx\n", digest(b, LARGE));
    for (size_t length = 0; length < 300; length++) {
        memcpy(b + 1 + length % 17, a + length % 23, length);
        memset(b + 1000 + length % 19, (int)length, length);
    }
    printf("small ones %016lx\n", digest(b, 4096));
    __asm__ volatile("rep movsb" : : "D"(b + 3), "S"(a + 5), "c"((long)100003) : "memory");
    __asm__ volatile("std; rep movsq; cld" : : "D"(b + 80000), "S"(b + 72000), "c"((long)4001) : "memory");
    __asm__ volatile("rep stosw" : : "D"(b + 200001), "a"(0xBEEF), "c"((long)30000) : "memory");
    printf("string instructions %016lx\n", digest(b, 1 << 20));
    free(a);
    free(b);
}

static void sorting(void)
{
    uint32_t *numbers = malloc(COUNT * sizeof *numbers);
    for (int i = 0; i < COUNT; i++)
        numbers[i] = next();
    qsort(numbers, COUNT, sizeof *numbers, ascending);
    printf("sorted %08x %08x %08x %016lx\n", numbers[0], numbers[COUNT / 2], numbers[COUNT - 1],
           digest(numbers, COUNT * sizeof *numbers));
    uint32_t *found = bsearch(&numbers[777], numbers, COUNT, sizeof *numbers, ascending);
    printf("found %d\n", found && *found == numbers[777]);
    free(numbers);
    char *words[500];
    for (int i = 0; i < 500; i++)
        if (asprintf(&words[i], "%x-%u", next(), next() % 1000) < 0)
            abort();
    qsort(words, 500, sizeof *words, by_text);
    printf("words %s %s %s %zu\n", words[0], words[250], words[499], strcspn(words[3], "-"));
}

static void mappings(void)
{
    size_t length = 64 * 4096;
    uint32_t *own = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t *common = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (size_t i = 0; i < length / 4; i += 512)
        own[i] = common[i] = (uint32_t)i;
    fflush(stdout);
    pid_t pid = fork();
    if (!pid) {
        for (size_t i = 0; i < length / 4; i += 512)
            own[i] += 1, common[i] += 1;
        _exit(own[512] == 513 && common[1024] == 1025 ? 0 : 1);
    }
    int status;
    waitpid(pid, &status, 0);
    printf("copy-on-write: %d, own %016lx, common %016lx\n", WEXITSTATUS(status), digest(own, length),
           digest(common, length));
    munmap(own + 1024, 4096);
    uint32_t *again = mmap(own + 1024, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    printf("mapped again: %u %u %u\n", own[512], again[0], own[2048]);
    uint32_t *moved = mremap(own + 2048, 4096, 8 * 4096, MREMAP_MAYMOVE);
    printf("moved: %u %u\n", moved[0], moved[8 * 1024 - 1]);
}

static jmp_buf out;

static void descend(int depth, double kept)
{
    if (depth == 0)
        longjmp(out, (int)kept);
    descend(depth - 1, kept + 0.5);
}

int main(void)
{
    copies();
    sorting();
    mappings();
    int rounds = 0;
    for (volatile int i = 1; i <= 100; i++) {
        int value = setjmp(out);
        if (!value)
            descend(i, i);
        rounds += value;
    }
    printf("jumps %d\n", rounds);
    return 0;
}
