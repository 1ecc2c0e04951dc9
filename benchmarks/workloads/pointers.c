// Pointers and arrays: what goes through memory.
#include "workload.h"

static uint64_t sieve(unsigned long n)
{
    size_t size = 1 << 20;
    unsigned char *composite = room(size);
    uint64_t sum = 0;
    for (unsigned long k = 0; k < n; k++) {
        memset(composite, 0, size);
        for (size_t i = 2; i * i < size; i++)
            if (!composite[i])
                for (size_t j = i * i; j < size; j += i)
                    composite[j] = 1;
        for (size_t i = 2; i < size; i++)
            sum += !composite[i];
    }
    return sum;
}

static void quicksort(uint32_t *a, long low, long high)
{
    while (low < high) {
        uint32_t pivot = a[(low + high) / 2];
        long i = low, j = high;
        while (i <= j) {
            while (a[i] < pivot)
                i++;
            while (a[j] > pivot)
                j--;
            if (i <= j) {
                uint32_t t = a[i];
                a[i++] = a[j];
                a[j--] = t;
            }
        }
        if (j - low < high - i)
            quicksort(a, low, j), low = i;
        else
            quicksort(a, i, high), high = j;
    }
}

static uint64_t sort(unsigned long n)
{
    size_t size = 200000;
    uint32_t *a = room(size * sizeof *a);
    uint64_t seed = 7, sum = 0;
    for (unsigned long k = 0; k < n; k++) {
        for (size_t i = 0; i < size; i++)
            a[i] = next_random(&seed) >> 32;
        quicksort(a, 0, size - 1);
        for (size_t i = 0; i < size; i += 97)
            sum = mix(sum, a[i]);
    }
    return sum;
}

// Open addressing in 4 MiB: insertions and look-ups, most of them misses of the first cache levels.
static uint64_t hash(unsigned long n)
{
    size_t slots = 1 << 18;
    struct slot {
        uint64_t key, value;
    } *table = room(slots * sizeof *table);
    uint64_t seed = 11, sum = 0;
    for (unsigned long k = 0; k < n; k++) {
        memset(table, 0, slots * sizeof *table);
        for (unsigned long i = 0; i < slots; i++) {
            uint64_t key = (next_random(&seed) >> 47) + 1;
            size_t at = (key * 0x9E3779B97F4A7C15u) >> 46;
            while (table[at].key && table[at].key != key)
                at = (at + 1) & (slots - 1);
            table[at].key = key;
            table[at].value += i;
        }
        for (size_t i = 0; i < slots; i++)
            sum += table[i].key * table[i].value;
    }
    return sum;
}

struct node {
    struct node *next;
    uint64_t value;
    uint64_t more[6];
};

static uint64_t walk(unsigned long n, size_t count)
{
    struct node *nodes = room(count * sizeof *nodes);
    uint32_t *order = room(count * sizeof *order);
    uint64_t seed = 13, sum = 0;
    for (size_t i = 0; i < count; i++)
        order[i] = i;
    for (size_t i = count - 1; i; i--) {
        size_t j = next_random(&seed) % (i + 1);
        uint32_t t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
    for (size_t i = 0; i < count; i++) {
        nodes[order[i]].next = &nodes[order[(i + 1) % count]];
        nodes[order[i]].value = i * 3;
    }
    struct node *at = nodes;
    for (unsigned long k = 0; k < n * 1000; k++) {
        sum += at->value;
        at = at->next;
    }
    return sum;
}

// A linked list in random order, in 16 KiB and in 8 MiB.
static uint64_t list(unsigned long n)
{
    return walk(n * 8, 256);
}

static uint64_t longlist(unsigned long n)
{
    return walk(n, 131072);
}

int main(int argc, char **argv)
{
    static const struct workload table[] = {{"sieve", sieve}, {"sort", sort},         {"hash", hash},
                                            {"list", list},   {"longlist", longlist}, {0, 0}};
    return run_workload(table, argc, argv);
}
