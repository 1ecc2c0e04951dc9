// A debugger and its program: hardware watchpoints and breakpoints and a single step, by ptrace. 77: there are none.
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile int32_t words[4];
void called(void);
__asm__("called: nop\n ret\n");

static pid_t child;

static void set(int number, unsigned long value) {
    if (ptrace(PTRACE_POKEUSER, child, offsetof(struct user, u_debugreg[number]), value)) {
        printf("debug register %d: %s\n", number, strerror(errno));
        exit(77);
    }
}

static unsigned long get(int number) { return ptrace(PTRACE_PEEKUSER, child, offsetof(struct user, u_debugreg[number]), 0); }

static unsigned long rip(void) { return ptrace(PTRACE_PEEKUSER, child, offsetof(struct user, regs.rip), 0); }

static int go(int how) {
    int status;
    ptrace(how, child, 0, 0);
    waitpid(child, &status, 0);
    return WIFSTOPPED(status) ? WSTOPSIG(status) : -1;
}

static void tell(const char *what) {
    unsigned long dr6 = get(6);
    printf("%s: dr6 %lx word %d %s\n", what, dr6 & 0xF, (int32_t)ptrace(PTRACE_PEEKDATA, child, &words[1], 0),
           rip() == (unsigned long)called ? "called" : "elsewhere");
    set(6, 0);
}

int main(void) {
    child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        for (int i = 1; i <= 3; i++) {
            words[0] = words[2] = 100;
            words[1] = i;
        }
        memset((char *)words, 9, sizeof words);
        int sum = words[3];
        called();
        called();
        ((volatile char *)words)[14] = sum;
        _exit(words[1] != 0x09090909);
    }
    int status;
    waitpid(child, &status, 0);
    set(0, (unsigned long)&words[1]);
    set(1, (unsigned long)called);
    set(2, (unsigned long)&words[3] + 2);
    set(7, 0x050D0015);  // DR0: 4 bytes, writes; DR1: execution; DR2: 2 bytes, writes
    for (int i = 0; i < 4; i++)
        if (go(PTRACE_CONT) == SIGTRAP)
            tell("write");
    while (go(PTRACE_CONT) == SIGTRAP && rip() != (unsigned long)called)
        set(6, 0);
    tell("execute");
    go(PTRACE_SINGLESTEP);
    printf("step %ld\n", (long)(rip() - (unsigned long)called));
    go(PTRACE_CONT);
    tell("execute");
    go(PTRACE_CONT);
    tell("bytes");
    printf("end %d\n", go(PTRACE_CONT));
    return 0;
}
