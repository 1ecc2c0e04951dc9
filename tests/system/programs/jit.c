/* Code that is written while the program runs: in place, through a second mapping, by a child, with pages that change. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

typedef int (*function)(int);

/* lea (rdi + value), eax; ret */
static void emit(uint8_t *at, int32_t value)
{
    at[0] = 0x8D;
    at[1] = 0x87;
    memcpy(at + 2, &value, 4);
    at[6] = 0xC3;
}

int main(void)
{
    long sum = 0;
    uint8_t *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 20000; i++) {
        emit(page, i);
        sum += ((function)page)(1);
    }
    printf("in place: %ld\n", sum);
    for (int i = 0; i < 2000; i++) {
        emit(page + 4096 - 3, i);
        sum += ((function)(page + 4096 - 3))(2);
    }
    printf("across pages: %ld\n", sum);

    for (int i = 0; i < 500; i++) {
        mprotect(page, 4096, PROT_READ | PROT_WRITE);
        emit(page + 64, i * 3);
        mprotect(page, 4096, PROT_READ | PROT_EXEC);
        sum += ((function)(page + 64))(3);
    }
    printf("made executable: %ld\n", sum);

    int fd = memfd_create("code", 0);
    if (ftruncate(fd, 4096))
        return 1;
    uint8_t *writable = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    uint8_t *executable = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    for (int i = 0; i < 2000; i++) {
        emit(writable + i % 8 * 16, i);
        sum += ((function)(executable + i % 8 * 16))(4);
    }
    printf("two mappings: %ld\n", sum);

    fflush(stdout);
    emit(writable, 1000);
    sum += ((function)executable)(0);
    if (!fork()) {
        emit(writable, 2000);
        _exit(0);
    }
    wait(NULL);
    sum += ((function)executable)(0);
    printf("written by a child: %ld\n", sum);

    uint8_t code[4096];
    for (int i = 0; i < 200; i++) {
        emit(code, i);
        lseek(fd, 0, SEEK_SET);
        if (write(fd, code, 16) != 16)
            return 1;
        sum += ((function)executable)(5);
    }
    printf("written by the kernel: %ld\n", sum);
    for (int i = 0; i < 200; i++) {
        munmap(page, 8192);
        page = mmap(page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        emit(page, -i);
        sum += ((function)page)(6);
    }
    printf("mapped anew: %ld\n", sum);
    return 0;
}
