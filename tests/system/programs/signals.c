/* Signals: faults with their addresses and codes, timers, masks, alternate stacks, children that die of one. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static sigjmp_buf back;
static volatile sig_atomic_t ticks, users;
static volatile int signal_seen, code_seen;
static void *volatile address_seen;

static void on_fault(int number, siginfo_t *info, void *context)
{
    (void)context;
    signal_seen = number;
    code_seen = info->si_code;
    address_seen = info->si_addr;
    siglongjmp(back, 1);
}

static void on_tick(int number)
{
    (void)number;
    ticks++;
}

static void on_user(int number)
{
    (void)number;
    users++;
}

static volatile int zero, lowest = INT32_MIN, minus_one = -1;
static volatile int sink;
static char *page;

static void read_null(void) { sink = *(volatile int *)(uintptr_t)(16 + zero); }
static void write_read_only(void) { page[100] = 1; }
static void read_not_canonical(void) { sink = *(volatile int *)0x8000000000000000u; }
static void divide_by_zero(void) { sink = 7 / zero; }
static void divide_too_far(void) { sink = lowest / minus_one; }
static void not_an_instruction(void) { __asm__ volatile("ud2"); }
static void privileged(void) { __asm__ volatile("hlt"); }
static void execute_data(void) { ((void (*)(void))page)(); }
static int recurse(int depth)
{
    volatile char room[4096];
    room[0] = (char)depth;
    return recurse(depth + 1) + room[0];
}
static void overflow_stack(void) { sink = recurse(0); }

static void fault(const char *name, void (*cause)(void), void *expected)
{
    signal_seen = 0;
    if (!sigsetjmp(back, 1)) {
        cause();
        printf("%s: no signal\n", name);
        return;
    }
    printf("%s: %s, code %d%s\n", name, sigabbrev_np(signal_seen), code_seen,
           expected && address_seen != expected ? ", at another address" : "");
}

static void child(const char *name, void (*cause)(void))
{
    fflush(stdout);
    pid_t pid = fork();
    if (!pid) {
        signal(SIGSEGV, SIG_DFL);
        signal(SIGFPE, SIG_DFL);
        cause();
        _exit(42);
    }
    int status;
    waitpid(pid, &status, 0);
    if (WIFSIGNALED(status))
        printf("child %s: killed by %s\n", name, sigabbrev_np(WTERMSIG(status)));
    else
        printf("child %s: status %d\n", name, WEXITSTATUS(status));
}

static void nothing(void) {}
static void terminate(void) { kill(getpid(), SIGTERM); pause(); }

int main(void)
{
    static char stack[65536];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    sigaltstack(&alternate, NULL);
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    int faults[] = {SIGSEGV, SIGFPE, SIGILL, SIGBUS};
    for (int i = 0; i < 4; i++)
        sigaction(faults[i], &action, NULL);
    page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fault("null", read_null, (void *)16);
    fault("read-only", write_read_only, page + 100);
    fault("not canonical", read_not_canonical, NULL);
    fault("division by zero", divide_by_zero, (void *)0);
    fault("quotient too large", divide_too_far, NULL);
    fault("undefined", not_an_instruction, (void *)not_an_instruction);
    fault("privileged", privileged, NULL);
    fault("no execute", execute_data, page);
    fault("stack overflow", overflow_stack, NULL);
    for (int i = 0; i < 1000; i++) {
        if (!sigsetjmp(back, 1))
            page[i] = 1;
    }
    printf("a thousand faults later: %s\n", sigabbrev_np(signal_seen));

    signal(SIGALRM, on_tick);
    struct itimerval every = {{0, 10000}, {0, 10000}};
    sigset_t none, user, waiting;
    sigemptyset(&none);
    setitimer(ITIMER_REAL, &every, NULL);
    while (ticks < 10)
        sigsuspend(&none);
    while (ticks < 20)
        sink++;
    memset(&every, 0, sizeof every);
    setitimer(ITIMER_REAL, &every, NULL);
    printf("ticks: at least %d\n", ticks >= 20 ? 20 : ticks);

    signal(SIGUSR1, on_user);
    sigemptyset(&user);
    sigaddset(&user, SIGUSR1);
    sigprocmask(SIG_BLOCK, &user, NULL);
    raise(SIGUSR1);
    raise(SIGUSR1);
    sigpending(&waiting);
    printf("blocked: %d, pending %d\n", users, sigismember(&waiting, SIGUSR1));
    sigprocmask(SIG_UNBLOCK, &user, NULL);
    printf("unblocked: %d\n", users);

    child("that ends", nothing);
    child("without memory", read_null);
    child("that divides", divide_by_zero);
    child("that terminates", terminate);
    child("that aborts", abort);
    return 0;
}
