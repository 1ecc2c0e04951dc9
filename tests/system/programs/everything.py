"""A Python program for the guest: arithmetic, text, containers, threads, processes, signals, memory maps, packing."""

import bisect
import collections
import decimal
import fractions
import heapq
import io
import itertools
import json
import math
import mmap
import os
import random
import re
import signal
import struct
import threading
import zlib


def primes(limit):
    sieve = bytearray([1]) * (limit + 1)
    sieve[:2] = b"\0\0"
    for n in range(2, math.isqrt(limit) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, limit + 1, n)))
    return [n for n in range(limit + 1) if sieve[n]]


def numbers():
    found = primes(20000)
    print("primes", len(found), found[-1], sum(found))
    print("power", pow(3, 5000, 10**40 + 7), math.factorial(200) % (2**89 - 1))
    print("floats", math.fsum(1 / n for n in range(1, 5000)), math.pi.hex(), repr(0.1 + 0.2), float("1e-320"))
    print("fraction", sum(fractions.Fraction(1, n) for n in range(1, 40)))
    decimal.getcontext().prec = 60
    print("decimal", decimal.Decimal(2).sqrt(), decimal.Decimal(1).exp())
    random.seed(42)
    print("random", [random.randrange(10**9) for _ in range(4)], f"{random.gauss(0, 1):.12f}")


def texts():
    words = re.findall(r"[a-z]+", "The quick brown fox; the lazy dog, the end.".lower())
    print("words", sorted(collections.Counter(words).items()))
    value = {"list": list(range(20)), "text": "naïve ✓ 漢字", "nested": {"pi": 3.14159, "none": None}}
    text = json.dumps(value, sort_keys=True)
    print("json", json.loads(text) == value, zlib.crc32(text.encode()), zlib.adler32(text.encode()))
    data = "".join(f"{n}:{n * n};" for n in range(3000)).encode()
    packed = zlib.compress(data, 9)
    print("zlib", zlib.decompress(packed) == data, len(packed) < len(data) // 2)
    print("struct", struct.pack("<hIqfd", -2, 3_000_000_000, -(2**62), 1.5, -0.1).hex())
    print("unicode", "ÄÖÜß".lower(), "straße".upper(), f"{'ab':<8}|{math.e:08.3f}")
    stream = io.StringIO()
    print(*itertools.islice(itertools.permutations("abcd"), 3), file=stream)
    print("stream", repr(stream.getvalue()))


def containers():
    heap = [n * 7919 % 10007 for n in range(5000)]
    heapq.heapify(heap)
    print("heap", [heapq.heappop(heap) for _ in range(5)])
    keys = sorted({n * 31 % 4099 for n in range(3000)})
    print("bisect", bisect.bisect(keys, 2000), len(keys))
    deep = []
    for _ in range(1000):
        deep = [deep]
    print("garbage", str(len(repr({n: str(n) for n in range(5000)}))), len(deep))


def fail(depth):
    try:
        return fail(depth - 1) if depth else 1 // 0
    except ZeroDivisionError as error:
        raise ValueError(f"{depth}") from error


def errors():
    caught = 0
    for _ in range(200):
        try:
            fail(5)
        except ValueError:
            caught += 1
    try:
        eval("recurse(0)", {"recurse": (recurse := lambda n: recurse(n + 1))})
    except RecursionError:
        caught += 1000
    print("errors", caught)


def threads():
    lock, total, barrier = threading.Lock(), collections.Counter(), threading.Barrier(4)

    def work(number):
        for n in range(2000):
            with lock:
                total[number % 2] += n
        barrier.wait()

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print("threads", sorted(total.items()))


def processes():
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        os.write(writing, b"from the child")
        os._exit(7)
    _, status = os.waitpid(pid, 0)
    print("process", os.read(reading, 100), os.waitstatus_to_exitcode(status))
    if not (pid := os.fork()):
        signal.pause()
    os.kill(pid, signal.SIGKILL)
    print("killed", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    ticks = []
    signal.signal(signal.SIGALRM, lambda number, frame: ticks.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    while len(ticks) < 5:
        signal.pause()
    signal.setitimer(signal.ITIMER_REAL, 0)
    print("ticks", len(ticks) >= 5)
    with mmap.mmap(-1, 1 << 20) as memory:
        memory[1000:1005] = b"hello"
        print("mmap", memory.find(b"hello"), zlib.crc32(memory))


for part in (numbers, texts, containers, errors, threads, processes):
    part()
