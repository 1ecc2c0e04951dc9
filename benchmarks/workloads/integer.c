// Integer loops and branches: what stays in registers.
#include "workload.h"

// Additions, shifts, multiplications and a division now and then.
static uint64_t loops(unsigned long n)
{
    uint64_t a = 1, b = 2, c = 3;
    for (unsigned long i = 0; i < n * 1000; i++) {
        a += b ^ (c << 3);
        b = b * 0x9E3779B1u + (a >> 7);
        c = (c ^ i) + (b & 0xFF);
        if ((i & 63) == 0)
            a %= (c | 1);
    }
    return mix(mix(a, b), c);
}

// Collatz sequences: branches that no predictor knows.
static uint64_t branches(unsigned long n)
{
    uint64_t sum = 0;
    for (uint64_t start = 1; start < n * 10; start++) {
        uint64_t x = start, steps = 0;
        while (x != 1) {
            if (x & 1)
                x += (x >> 1) + 1, steps += 2;
            else
                x >>= 1, steps++;
        }
        sum = mix(sum, steps);
    }
    return sum;
}

// A byte-wise state machine as of a lexer, over data in the first cache level.
static uint64_t automaton(unsigned long n)
{
    static unsigned char text[16384];
    uint64_t seed = 5, words = 0, numbers = 0, other = 0;
    for (size_t i = 0; i < sizeof text; i++) {
        uint64_t r = next_random(&seed) >> 40;
        text[i] = r % 7 == 0 ? ' ' : r % 5 == 0 ? '0' + r % 10 : 'a' + r % 26;
    }
    for (unsigned long k = 0; k < n; k++) {
        int state = 0;
        for (size_t i = 0; i < sizeof text; i++) {
            unsigned char c = text[i];
            switch (state) {
            case 0:
                if (c >= 'a' && c <= 'z')
                    state = 1, words++;
                else if (c >= '0' && c <= '9')
                    state = 2, numbers++;
                break;
            case 1:
                if (c == ' ')
                    state = 0;
                else if (c < 'a')
                    state = 3, other++;
                break;
            case 2:
                if (c == ' ')
                    state = 0;
                else if (c >= 'a')
                    state = 1, words++;
                break;
            default:
                if (c == ' ')
                    state = 0;
            }
        }
    }
    return mix(mix(words, numbers), other);
}

int main(int argc, char **argv)
{
    static const struct workload table[] = {
        {"loops", loops}, {"branches", branches}, {"automaton", automaton}, {0, 0}};
    return run_workload(table, argc, argv);
}
