// What the kernel does at a program's request: system calls, signals, switches between processes.
#include "workload.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t syscalls(unsigned long n)
{
    uint64_t sum = 0;
    for (unsigned long i = 0; i < n * 1000; i++)
        sum += syscall(SYS_getppid) > 0;
    return sum;
}

// read, write, lseek and fstat of small pieces.
static uint64_t files(unsigned long n)
{
    char buffer[64] = "some bytes";
    struct stat about;
    uint64_t sum = 0;
    int in = open("/dev/zero", O_RDONLY), out = open("/dev/null", O_WRONLY);
    check(in >= 0 && out >= 0);
    for (unsigned long i = 0; i < n * 100; i++) {
        sum += read(in, buffer, sizeof buffer) + write(out, buffer, 1 + i % 64);
        check(lseek(in, 0, SEEK_SET) == 0 && fstat(out, &about) == 0);
        sum += S_ISCHR(about.st_mode);
    }
    close(in);
    close(out);
    return sum;
}

static volatile sig_atomic_t caught;

static void on_signal(int number)
{
    caught += number;
}

static uint64_t signals(unsigned long n)
{
    struct sigaction action = {.sa_handler = on_signal};
    check(sigaction(SIGUSR1, &action, 0) == 0);
    for (unsigned long i = 0; i < n * 100; i++)
        check(raise(SIGUSR1) == 0);
    return caught;
}

// Two processes and two pipes: each byte there and back is two switches.
static uint64_t pipes(unsigned long n)
{
    int there[2], back[2];
    unsigned char byte = 0;
    uint64_t sum = 0;
    check(pipe(there) == 0 && pipe(back) == 0);
    pid_t child = fork();
    check(child >= 0);
    if (child == 0) {
        close(there[1]);
        while (read(there[0], &byte, 1) == 1) {
            byte += 3;
            if (write(back[1], &byte, 1) != 1)
                break;
        }
        _exit(0);
    }
    for (unsigned long i = 0; i < n * 100; i++) {
        check(write(there[1], &byte, 1) == 1 && read(back[0], &byte, 1) == 1);
        sum += byte;
    }
    close(there[1]);
    waitpid(child, 0, 0);
    return sum;
}

int main(int argc, char **argv)
{
    static const struct workload table[] = {
        {"syscalls", syscalls}, {"files", files}, {"signals", signals}, {"pipes", pipes}, {0, 0}};
    return run_workload(table, argc, argv);
}
