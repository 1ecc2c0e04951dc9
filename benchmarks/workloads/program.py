"""What an interpreter does: a bit of everything that ordinary scripts are made of. Prints a checksum."""

import json
import re
import sys


class Account:
    def __init__(self, number: int) -> None:
        self.number = number
        self.total = 0

    def add(self, amount: int) -> "Account":
        self.total += amount
        return self


def main(rounds: int) -> None:
    checksum = 0
    for k in range(rounds):
        accounts = {i: Account(i) for i in range(500)}
        for i in range(20000):
            accounts[i * 7919 % 500].add(i ^ k)
        words = [f"w{i * 31 % 977}" for i in range(5000)]
        counts: dict[str, int] = {}
        for word in words:
            counts[word] = counts.get(word, 0) + 1
        ordered = sorted(accounts.values(), key=lambda a: (a.total, a.number))
        text = json.dumps([(a.number, a.total) for a in ordered])
        found = sum(map(int, re.findall(r"\[(\d+),", text)))
        primes = [n for n in range(2, 2000) if all(n % d for d in range(2, int(n**0.5) + 1))]
        parts = (found, len(json.loads(text)), sum(primes), len(counts), ordered[0].total)
        checksum = (checksum * 31 + sum(parts)) % 2**61
        checksum += sum(x * 0.5 for x in range(10000)) > 0
    print(checksum)


main(int(sys.argv[1]))
