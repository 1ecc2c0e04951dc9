// Work for two CPUs at once.
#include "workload.h"
#include <pthread.h>
#include <stdatomic.h>

static unsigned long amount;

static void both(void *(*work)(void *), uint64_t *first, uint64_t *second)
{
    pthread_t thread;
    check(pthread_create(&thread, 0, work, second) == 0);
    work(first);
    check(pthread_join(thread, 0) == 0);
}

// Independent: each sieves and sorts in memory of its own.
static void *alone(void *result)
{
    size_t size = 1 << 18;
    unsigned char *composite = room(size);
    uint64_t *sum = result;
    for (unsigned long k = 0; k < amount; k++) {
        memset(composite, 0, size);
        for (size_t i = 2; i * i < size; i++)
            if (!composite[i])
                for (size_t j = i * i; j < size; j += i)
                    composite[j] = 1;
        for (size_t i = 2; i < size; i++)
            *sum += !composite[i] * i;
    }
    return 0;
}

static uint64_t apart(unsigned long n)
{
    uint64_t results[2] = {0, 0};
    amount = n;
    both(alone, results, results + 1);
    return mix(results[0], results[1]);
}

static atomic_ulong counter;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static uint64_t guarded;

// Together: pieces of work taken from a shared counter, results put under a lock.
static void *shared(void *unused)
{
    (void)unused;
    for (;;) {
        uint64_t piece = atomic_fetch_add(&counter, 1), seed = piece + 1, sum = 0;
        uint32_t counts[256] = {0};
        if (piece >= amount)
            return 0;
        for (int i = 0; i < 2000; i++)
            counts[next_random(&seed) >> 56]++;
        for (int i = 0; i < 256; i++)
            sum = mix(sum, counts[i]);
        pthread_mutex_lock(&mutex);
        guarded += sum;
        pthread_mutex_unlock(&mutex);
    }
}

static uint64_t together(unsigned long n)
{
    amount = n;
    both(shared, 0, 0);
    return guarded;
}

int main(int argc, char **argv)
{
    static const struct workload table[] = {{"apart", apart}, {"together", together}, {0, 0}};
    return run_workload(table, argc, argv);
}
