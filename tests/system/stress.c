/* Threads, signals and memory maps, all at once, for so many seconds: stress SECONDS [THREADS].
 *
 * Every thread checks what it can be sure of: that memory it has just mapped is zero, keeps what was written and is gone
 * when it is unmapped, that locked counters lose nothing, that each signal it sends is taken once, that a child of fork
 * sees a copy, that code it has just written runs as written, here and in another thread. Ends with a line of totals and
 * status 0, or with a line that says what was wrong and status 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, MAX_THREADS = 32 };

static atomic_long maps, signals_sent, signals_taken, forks, calls, handovers, shared_locked;
static long shared_mutexed, mutexed;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_t threads[MAX_THREADS];
static atomic_int alive[MAX_THREADS];
static atomic_int stop;
static int count;
static _Atomic(int (*)(void)) published;
static atomic_int published_value;
static pthread_mutex_t code_mutex = PTHREAD_MUTEX_INITIALIZER;

static void fail(const char *what, long a, long b)
{
    printf("wrong: %s (%ld, %ld)\n", what, a, b);
    fflush(stdout);
    _exit(1);
}

static uint64_t draw(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    return *seed ^= *seed << 17;
}

static void on_signal(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info, (void)context;
    signals_taken++;
}

static void map_some(uint64_t *seed)
{
    size_t pages = 1 + draw(seed) % 64, size = pages * PAGE;
    unsigned char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        fail("mmap", errno, 0);
    uint64_t mark = draw(seed);
    for (size_t i = 0; i < pages; i++) {
        uint64_t *word = (uint64_t *)(at + i * PAGE + (draw(seed) % 500) * 8);
        if (*word)
            fail("fresh memory is not zero", *word, i);
        *word = 0;
        *(uint64_t *)(at + i * PAGE) = mark + i;
    }
    if (draw(seed) & 1) {
        if (mprotect(at, size, PROT_READ))
            fail("mprotect", errno, 0);
    } else if (pages > 2 && madvise(at + PAGE, PAGE, MADV_DONTNEED) == 0) {
        if (*(uint64_t *)(at + PAGE))
            fail("a page given up keeps its contents", 0, 0);
        *(uint64_t *)(at + PAGE) = mark + 1;
    }
    if (draw(seed) % 4 == 0) {
        unsigned char *moved = mremap(at, size, size + PAGE, MREMAP_MAYMOVE);
        if (moved == MAP_FAILED)
            fail("mremap", errno, 0);
        at = moved;
        size += PAGE;
    }
    for (size_t i = 0; i < pages; i++)
        if (*(uint64_t *)(at + i * PAGE) != mark + i)
            fail("memory lost what was written", *(uint64_t *)(at + i * PAGE), mark + i);
    if (munmap(at, size))
        fail("munmap", errno, 0);
    maps++;
}

static void send_signal(uint64_t *seed)
{
    int target = draw(seed) % count;
    if (alive[target] && pthread_kill(threads[target], SIGUSR1) == 0)
        signals_sent++;
}

static void fork_one(uint64_t *seed)
{
    volatile uint64_t mine = draw(seed);
    uint64_t copy = mine;
    pid_t child = fork();
    if (child == 0) {
        if (mine != copy)
            _exit(2);
        mine = 0;
        _exit(7);
    }
    if (child < 0)
        return;
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            fail("waitpid", errno, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 7)
        fail("a child ended so", status, 0);
    if (mine != copy)
        fail("a child's write is seen", mine, copy);
    forks++;
}

static void write_code(uint64_t *seed)
{
    int value = draw(seed) & 0x7FFFFFFF;
    unsigned char *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        fail("mmap", errno, 0);
    at[0] = 0xB8; /* mov $value, %eax; ret */
    memcpy(at + 1, &value, 4);
    at[5] = 0xC3;
    if (mprotect(at, PAGE, PROT_READ | PROT_EXEC))
        fail("mprotect", errno, 0);
    int (*function)(void) = (int (*)(void))(void *)at;
    if (function() != value)
        fail("fresh code gives", function(), value);
    pthread_mutex_lock(&code_mutex);
    int (*old)(void) = published;
    published_value = value;
    published = function;
    pthread_mutex_unlock(&code_mutex);
    calls++;
    if (old)
        munmap((void *)old, PAGE);
}

static void call_code(void)
{
    pthread_mutex_lock(&code_mutex);
    if (published) {
        int value = published();
        if (value != published_value)
            fail("another thread's code gives", value, published_value);
        handovers++;
    }
    pthread_mutex_unlock(&code_mutex);
}

static void *work(void *argument)
{
    long number = (long)argument;
    uint64_t seed = 0x9E3779B97F4A7C15ull * (number + 1);
    alive[number] = 1;
    while (!stop) {
        switch (draw(&seed) % 8) {
        case 0:
        case 1:
            map_some(&seed);
            break;
        case 2:
        case 3:
            send_signal(&seed);
            break;
        case 4:
            if (draw(&seed) % 16 == 0)
                fork_one(&seed);
            break;
        case 5:
            write_code(&seed);
            break;
        case 6:
            call_code();
            break;
        default:
            for (int i = 0; i < 100; i++) {
                shared_locked++;
                pthread_mutex_lock(&mutex);
                shared_mutexed++;
                mutexed++;
                pthread_mutex_unlock(&mutex);
            }
            sched_yield();
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atof(argv[1]) : 1;
    count = argc > 2 ? atoi(argv[2]) : 4;
    if (count < 1 || count > MAX_THREADS)
        fail("threads", count, MAX_THREADS);
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGUSR1, &action, NULL);
    for (long i = 0; i < count; i++)
        if (pthread_create(&threads[i], NULL, work, (void *)i))
            fail("pthread_create", errno, 0);
    struct timespec end, now;
    clock_gettime(CLOCK_MONOTONIC, &end);
    double until = end.tv_sec + end.tv_nsec / 1e9 + seconds;
    do {
        usleep(50000);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec + now.tv_nsec / 1e9 < until);
    stop = 1;
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    if (shared_locked != shared_mutexed || mutexed != shared_mutexed)
        fail("counters differ", shared_locked, shared_mutexed);
    if (signals_taken > signals_sent) /* a signal that is pending already is not queued again */
        fail("more signals taken than sent", signals_taken, signals_sent);
    printf("maps %ld signals %ld of %ld forks %ld code %ld handed over %ld counted %ld: clean\n", maps, signals_taken,
           signals_sent, forks, calls, handovers, shared_mutexed);
    return 0;
}
