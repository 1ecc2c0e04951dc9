from __future__ import annotations

import os
import threading
import time

import pytest

from pyhyve.loop import EventLoop


@pytest.fixture
def loop():
    loop = EventLoop()
    yield loop
    loop.close()


def test_stop_before_run_makes_run_return(loop: EventLoop) -> None:
    loop.stop()
    loop.run()


def test_timers_fire_in_order_and_not_early(loop: EventLoop) -> None:
    fired: list[tuple[str, int]] = []
    start = loop.now_ns()
    late = loop.timer(lambda: (fired.append(("late", loop.now_ns())), loop.stop()))
    early = loop.timer(lambda: fired.append(("early", loop.now_ns())))
    late.arm_at(start + 4_000_000)
    early.arm_at(start + 1_000_000)
    loop.run()
    assert [name for name, _ in fired] == ["early", "late"]
    assert fired[0][1] >= start + 1_000_000
    assert fired[1][1] >= start + 4_000_000


def test_cancelled_and_rearmed_timers(loop: EventLoop) -> None:
    fired: list[str] = []
    cancelled = loop.timer(lambda: fired.append("cancelled"))
    moved = loop.timer(lambda: fired.append("moved"))
    end = loop.timer(loop.stop)
    cancelled.arm_in(100_000)
    cancelled.cancel()
    moved.arm_in(100_000)
    moved.arm_in(1_000_000_000_000)
    end.arm_in(3_000_000)
    loop.run()
    assert fired == []


def test_deadline_in_the_past_fires_at_once(loop: EventLoop) -> None:
    loop.timer(loop.stop).arm_at(1)
    loop.run()


def test_timer_armed_by_another_thread_fires_in_the_loop(loop: EventLoop) -> None:
    threads: list[int] = []
    timer = loop.timer(lambda: (threads.append(threading.get_ident()), loop.stop()))
    helper = threading.Thread(target=lambda: timer.arm_in(500_000))
    loop.call_soon_threadsafe(helper.start)
    loop.run()
    helper.join()
    assert threads == [threading.get_ident()]


def test_periodic_rearming_from_the_callback_keeps_time(loop: EventLoop) -> None:
    start, ticks = loop.now_ns(), []

    def tick() -> None:
        ticks.append(time.monotonic_ns())
        if len(ticks) == 20:
            loop.stop()
        else:
            timer.arm_at(start + (len(ticks) + 1) * 500_000)

    timer = loop.timer(tick)
    timer.arm_at(start + 500_000)
    loop.run()
    assert all(at >= start + (n + 1) * 500_000 for n, at in enumerate(ticks))


def test_reader_and_writer_from_another_thread(loop: EventLoop) -> None:
    read_end, write_end = os.pipe()
    got: list[bytes] = []

    def readable() -> None:
        got.append(os.read(read_end, 10))
        loop.remove_reader(read_end)
        loop.stop()

    def writable() -> None:
        loop.remove_writer(write_end)
        os.write(write_end, b"hello")

    def other_thread() -> None:
        loop.add_reader(read_end, readable)
        loop.add_writer(write_end, writable)

    helper = threading.Thread(target=other_thread)
    loop.call_soon_threadsafe(helper.start)
    loop.run()
    helper.join()
    os.close(read_end)
    os.close(write_end)
    assert got == [b"hello"]


def test_closed_loop_takes_calls_and_does_nothing() -> None:
    loop = EventLoop()
    loop.close()
    loop.close()
    loop.call_soon_threadsafe(print)
    loop.add_reader(0, print)
    loop.timer(print).arm_in(1)
