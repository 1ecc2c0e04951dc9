// What every program of the suite is made of: a table of named workloads, each a function of how much of it to do that
// returns a checksum. `PROGRAM NAME N` runs one and prints the checksum, which depends on nothing but N.
#ifndef WORKLOAD_H
#define WORKLOAD_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct workload {
    const char *name;
    uint64_t (*run)(unsigned long n);
};

static inline uint64_t mix(uint64_t sum, uint64_t value)
{
    sum ^= value + 0x9E3779B97F4A7C15u + (sum << 6) + (sum >> 2);
    return sum;
}

// xorshift64*: the same numbers everywhere.
static inline uint64_t next_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545F4914F6CDD1Du;
}

static inline uint64_t bits_of(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline void *room(size_t size)
{
    void *memory = malloc(size);
    if (!memory)
        exit(3);
    return memory;
}

static inline void check(int right)
{
    if (!right) {
        perror("a system call failed");
        exit(4);
    }
}

static inline int run_workload(const struct workload *table, int argc, char **argv)
{
    if (argc == 3)
        for (; table->name; table++)
            if (!strcmp(table->name, argv[1])) {
                printf("%016llx\n", (unsigned long long)table->run(strtoul(argv[2], 0, 10)));
                return 0;
            }
    fprintf(stderr, "usage: %s WORKLOAD N\n", argv[0]);
    return 2;
}

#endif
