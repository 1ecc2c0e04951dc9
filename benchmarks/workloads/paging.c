// What changes page tables: faults, copy on write, fork, exec, mmap.
#include "workload.h"
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static char *self;

// First touch of fresh pages.
static uint64_t faults(unsigned long n)
{
    size_t size = 4 << 20;
    uint64_t sum = 0;
    for (unsigned long k = 0; k < n; k++) {
        char *a = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        check(a != MAP_FAILED);
        madvise(a, size, MADV_NOHUGEPAGE);
        for (size_t i = 0; i < size; i += 4096)
            a[i] = i >> 12;
        sum = mix(sum, a[size / 2]);
        munmap(a, size);
    }
    return sum;
}

// A process with 1 MiB of data; the child writes to half of it.
static uint64_t forks(unsigned long n)
{
    size_t size = 1 << 20;
    char *a = room(size);
    uint64_t sum = 0;
    memset(a, 1, size);
    for (unsigned long k = 0; k < n; k++) {
        pid_t child = fork();
        check(child >= 0);
        if (child == 0) {
            for (size_t i = 0; i < size; i += 8192)
                a[i]++;
            _exit(a[0] + a[4096]);
        }
        int status;
        check(waitpid(child, &status, 0) == child);
        sum += WEXITSTATUS(status);
    }
    return sum;
}

static uint64_t execs(unsigned long n)
{
    uint64_t sum = 0;
    for (unsigned long k = 0; k < n; k++) {
        pid_t child = fork();
        check(child >= 0);
        if (child == 0) {
            execl(self, self, "nothing", "7", (char *)0);
            _exit(99);
        }
        int status;
        check(waitpid(child, &status, 0) == child);
        sum += WEXITSTATUS(status);
    }
    return sum;
}

static uint64_t nothing(unsigned long n)
{
    _exit(n);
}

// Small mappings that come, change their rights and go.
static uint64_t mappings(unsigned long n)
{
    enum { MAPS = 16, SIZE = 16384 };
    char *map[MAPS];
    uint64_t sum = 0;
    for (unsigned long k = 0; k < n * 10; k++) {
        for (int i = 0; i < MAPS; i++) {
            map[i] = mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            check(map[i] != MAP_FAILED);
            map[i][i * 64] = i;
        }
        for (int i = 0; i < MAPS; i++) {
            check(mprotect(map[i], SIZE, PROT_READ) == 0);
            sum += map[i][i * 64] + map[i][8192];
            check(munmap(map[i], SIZE) == 0);
        }
    }
    return sum;
}

int main(int argc, char **argv)
{
    static const struct workload table[] = {{"faults", faults},     {"forks", forks}, {"execs", execs},
                                            {"mappings", mappings}, {"nothing", nothing}, {0, 0}};
    self = argv[0];
    return run_workload(table, argc, argv);
}
