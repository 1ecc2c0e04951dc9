/* POSIX threads: a bounded queue with mutex and condition variables, a barrier, atomics, thread-local storage, cancel. */
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

enum { PRODUCERS = 3, CONSUMERS = 3, ITEMS = 2000, ROOM = 16, PHASES = 20 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t not_empty = PTHREAD_COND_INITIALIZER, not_full = PTHREAD_COND_INITIALIZER;
static int queue[ROOM], held, head, finished;
static atomic_long consumed, total;
static _Thread_local long mine;

static void *produce(void *argument)
{
    long number = (long)argument;
    for (int i = 0; i < ITEMS; i++) {
        pthread_mutex_lock(&lock);
        while (held == ROOM)
            pthread_cond_wait(&not_full, &lock);
        queue[(head + held++) % ROOM] = (int)(number * ITEMS) + i;
        pthread_cond_signal(&not_empty);
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

static void *consume(void *argument)
{
    (void)argument;
    for (;;) {
        pthread_mutex_lock(&lock);
        while (!held && !finished)
            pthread_cond_wait(&not_empty, &lock);
        if (!held) {
            pthread_mutex_unlock(&lock);
            break;
        }
        int item = queue[head];
        head = (head + 1) % ROOM;
        held--;
        pthread_cond_signal(&not_full);
        pthread_mutex_unlock(&lock);
        mine += item;
        atomic_fetch_add(&consumed, 1);
    }
    atomic_fetch_add(&total, mine);
    return NULL;
}

static pthread_barrier_t barrier;
static long phase_sum[PHASES];
static atomic_long phase_count;

static void *step(void *argument)
{
    for (int phase = 0; phase < PHASES; phase++) {
        atomic_fetch_add(&phase_count, (long)argument + phase);
        if (pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD)
            phase_sum[phase] = atomic_load(&phase_count);
        pthread_barrier_wait(&barrier);
    }
    return NULL;
}

static sem_t ping, pong;
static volatile int ball;

static void *play(void *argument)
{
    (void)argument;
    for (int i = 0; i < 1000; i++) {
        sem_wait(&ping);
        ball++;
        sem_post(&pong);
    }
    return NULL;
}

static void *forever(void *argument)
{
    for (;;)
        pthread_testcancel();
    return argument;
}

int main(void)
{
    pthread_t threads[PRODUCERS + CONSUMERS];
    for (long i = 0; i < PRODUCERS + CONSUMERS; i++)
        pthread_create(&threads[i], NULL, i < PRODUCERS ? produce : consume, (void *)i);
    for (int i = 0; i < PRODUCERS; i++)
        pthread_join(threads[i], NULL);
    pthread_mutex_lock(&lock);
    finished = 1;
    pthread_cond_broadcast(&not_empty);
    pthread_mutex_unlock(&lock);
    for (int i = PRODUCERS; i < PRODUCERS + CONSUMERS; i++)
        pthread_join(threads[i], NULL);
    printf("queue: %ld items, sum %ld, main's own %ld\n", atomic_load(&consumed), atomic_load(&total), mine);

    pthread_barrier_init(&barrier, NULL, 4);
    for (long i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, step, (void *)i);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    for (int phase = 0; phase < PHASES; phase++)
        printf("phase %d: %ld\n", phase, phase_sum[phase]);

    sem_init(&ping, 0, 0);
    sem_init(&pong, 0, 0);
    pthread_create(&threads[0], NULL, play, NULL);
    for (int i = 0; i < 1000; i++) {
        ball++;
        sem_post(&ping);
        sem_wait(&pong);
    }
    pthread_join(threads[0], NULL);
    printf("ball: %d\n", ball);

    void *result;
    pthread_create(&threads[0], NULL, forever, NULL);
    pthread_cancel(threads[0]);
    pthread_join(threads[0], &result);
    printf("cancelled: %d\n", result == PTHREAD_CANCELED);
    return 0;
}
