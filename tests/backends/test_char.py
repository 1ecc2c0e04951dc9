from __future__ import annotations

import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyhyve.backends.char import EscapeFilter, TcpBackend, open_char
from pyhyve.errors import DeviceError
from pyhyve.loop import EventLoop

# A guest in one line: echoes its input in upper case, quits at "." or at the escape key.
ECHO = """
import sys
from pyhyve.backends.char import open_char
from pyhyve.loop import EventLoop
loop = EventLoop()
char = open_char("stdio", loop, on_quit=loop.stop)
def on_input(data):
    char.write(data.upper())
    if b"." in data:
        loop.stop()
char.start(on_input)
char.write(b"ready\\n")
loop.run()
char.close()
loop.close()
"""

# Writes a megabyte a byte at a time, from another thread, as a vCPU does, then leaves.
FLOOD = """
import threading
from pyhyve.backends.char import open_char
from pyhyve.loop import EventLoop
loop = EventLoop()
char = open_char("stdio", loop)
char.start(lambda data: None)
def vcpu():
    for n in range(300000):
        char.write(b"%c" % (n % 251))
    loop.stop()
thread = threading.Thread(target=vcpu)
thread.start()
loop.run()
thread.join()
char.close()
loop.close()
"""

# Says how often the loop wakes up within a tenth of a second after the input has ended.
IDLE = """
import os
from pyhyve.backends.char import open_char
from pyhyve.loop import EventLoop
loop = EventLoop()
char = open_char("stdio", loop)
reads = []
os_read = os.read
os.read = lambda fd, n: (reads.append(fd), os_read(fd, n))[1]
char.start(lambda data: None)
loop.timer(loop.stop).arm_in(100_000_000)
loop.run()
char.write(b"%d" % sum(fd == 0 for fd in reads))
char.close()
"""


def start(script: str, **streams: object) -> subprocess.Popen[bytes]:
    source = str(Path(__file__).parents[2] / "src")
    return subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": source}, stderr=subprocess.PIPE, **streams
    )


def read_until(fd: int, end: bytes) -> bytes:
    data = b""
    while end not in data:
        assert select.select([fd], [], [], 20)[0], f"nothing more after {data!r}"
        data += os.read(fd, 4096)
    return data


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    yield loop
    loop.close()


def test_pipe_in_and_out() -> None:
    process = start(ECHO, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.communicate(b"hello.", 20) == (b"ready\nHELLO.", b"")
    assert process.returncode == 0


def test_plain_file_as_input(tmp_path: Path) -> None:
    text = b"0123456789abcdef" * 1000 + b"."
    (tmp_path / "input").write_bytes(text)
    with (tmp_path / "input").open("rb") as file:
        process = start(ECHO, stdin=file, stdout=subprocess.PIPE)
        assert process.communicate(timeout=20) == (b"ready\n" + text.upper(), b"")


@pytest.mark.parametrize("how", ["null", "closed", "ended pipe"])
def test_no_input_is_read_once_and_does_not_spin(how: str) -> None:
    if how == "null":
        process = start(IDLE, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    elif how == "closed":
        process = start(IDLE, stdout=subprocess.PIPE, preexec_fn=lambda: os.close(0))
    else:
        process = start(IDLE, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    out, error = process.communicate(timeout=20)
    assert error == b""
    assert int(out) == (0 if how == "closed" else 1)


@pytest.mark.parametrize("nonblocking", [False, True])
def test_output_to_a_slow_pipe_is_complete(nonblocking: bool) -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, not nonblocking)
    process = start(FLOOD, stdin=subprocess.DEVNULL, stdout=write_end)
    os.close(write_end)
    got = b""
    while chunk := os.read(read_end, 1000):
        got += chunk
    os.close(read_end)
    assert process.wait(20) == 0
    assert got == bytes(n % 251 for n in range(300_000))


def test_output_to_a_socket_is_complete() -> None:
    ours, theirs = socket.socketpair()
    process = start(FLOOD, stdin=subprocess.DEVNULL, stdout=theirs)
    theirs.close()
    got = b""
    while chunk := ours.recv(65536):
        got += chunk
    ours.close()
    assert process.wait(20) == 0
    assert got == bytes(n % 251 for n in range(300_000))


def test_broken_pipe_is_no_error() -> None:
    read_end, write_end = os.pipe()
    process = start(FLOOD, stdin=subprocess.DEVNULL, stdout=write_end)
    os.close(write_end)
    os.read(read_end, 100)
    os.close(read_end)
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error) == (0, b"")


def test_closed_output_is_no_error() -> None:
    process = start(FLOOD, stdin=subprocess.DEVNULL, preexec_fn=lambda: os.close(1))
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error) == (0, b"")


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, script: str) -> None:
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.process = start(script, stdin=slave, stdout=slave, start_new_session=True)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self.slave)
        os.close(self.master)

    @property
    def raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal(ECHO)
    yield terminal
    terminal.close()


def test_terminal_is_raw_while_it_runs_and_restored_after_the_escape_key(terminal: Terminal) -> None:
    read_until(terminal.master, b"ready")
    assert terminal.raw
    os.write(terminal.master, b"a\x03\r\x1d\x1db")
    assert read_until(terminal.master, b"B").endswith(b"A\x03\r\x1dB")
    os.write(terminal.master, b"\x1dq")
    assert terminal.process.wait(20) == 0
    assert termios.tcgetattr(terminal.slave) == terminal.before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_terminal_is_restored_after_a_signal(terminal: Terminal, number: int) -> None:
    read_until(terminal.master, b"ready")
    assert terminal.raw
    terminal.process.send_signal(number)
    assert terminal.process.wait(20) != 0
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_terminal_is_restored_after_an_exception() -> None:
    terminal = Terminal(ECHO.replace("loop.run()", "raise SystemExit(3)"))
    assert terminal.process.wait(20) == 3
    assert termios.tcgetattr(terminal.slave) == terminal.before
    terminal.close()


@pytest.mark.parametrize(
    ("typed", "passed", "quits"),
    [
        ([b"abc"], b"abc", 0),
        ([b"\x1d\x1d"], b"\x1d", 0),
        ([b"\x1d", b"q"], b"", 1),
        ([b"a\x1dqb"], b"ab", 1),
        ([b"\x1dx"], b"\x1dx", 0),
        ([b"\x1d", b"\x1d", b"q"], b"\x1dq", 0),
    ],
)
def test_escape_key(typed: list[bytes], passed: bytes, quits: int) -> None:
    got, pressed = bytearray(), []
    keys = EscapeFilter(0x1D, got.extend, lambda: pressed.append(1))
    for data in typed:
        keys.feed(data)
    assert (bytes(got), len(pressed)) == (passed, quits)


def test_pseudo_terminal_by_path(loop: EventLoop) -> None:
    master, slave = pty.openpty()
    backend = open_char(os.ttyname(slave), loop)
    got = bytearray()

    def on_input(data: bytes) -> None:
        got.extend(data)
        backend.write(b"answer\n")
        loop.stop()

    backend.start(on_input)
    os.write(master, b"q\r")
    loop.run()
    assert got == b"q\r"
    assert read_until(master, b"answer").startswith(b"answer")
    backend.close()
    backend.close()
    os.close(slave)
    os.close(master)


def test_terminal_that_hangs_up_ends_the_input(loop: EventLoop) -> None:
    master, slave = pty.openpty()
    backend = open_char(os.ttyname(slave), loop)
    backend.start(lambda data: None)
    os.close(slave)
    os.close(master)
    loop.timer(loop.stop).arm_in(5_000_000)
    loop.run()
    backend.write(b"into the void")
    backend.close()


@pytest.fixture
def server(loop: EventLoop) -> Iterator[TcpBackend]:
    backend = open_char("tcp=127.0.0.1:0", loop)
    assert isinstance(backend, TcpBackend)
    backend.start(backend.write)
    thread = threading.Thread(target=loop.run)
    thread.start()
    yield backend
    loop.stop()
    thread.join()
    backend.close()


def test_tcp_connection_gets_answers(server: TcpBackend) -> None:
    server.write(b"nobody hears this")
    with socket.create_connection(("127.0.0.1", server.port), 20) as client:
        client.sendall(b"hello")
        assert client.recv(5, socket.MSG_WAITALL) == b"hello"


def test_second_connection_waits_for_the_first_to_leave(server: TcpBackend) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 20) as first:
        first.sendall(b"1")
        assert first.recv(1) == b"1"
        second = socket.create_connection(("127.0.0.1", server.port), 20)
        second.sendall(b"2")
        first.sendall(b"3")
        assert first.recv(1) == b"3"
        assert not select.select([second], [], [], 0)[0]
    with second:
        assert second.recv(1) == b"2"


def test_long_output_to_a_connection_is_complete(server: TcpBackend) -> None:
    text = bytes(range(256)) * 8192
    with socket.create_connection(("127.0.0.1", server.port), 20) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        sender = threading.Thread(target=lambda: [server.write(text[i : i + 999]) for i in range(0, len(text), 999)])
        sender.start()
        got = bytearray()
        while len(got) < len(text):
            got += client.recv(65536)
        sender.join()
    assert got == text


def test_a_connection_that_is_reset_while_it_is_written_to_makes_room_for_the_next(server: TcpBackend) -> None:
    client = socket.create_connection(("127.0.0.1", server.port), 20)
    client.sendall(b"x")
    assert client.recv(1) == b"x"
    sender = threading.Thread(target=lambda: [server.write(bytes(999)) for _ in range(2000)])
    sender.start()
    client.recv(1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()  # with data unread: a reset
    sender.join(20)
    assert not sender.is_alive()
    with socket.create_connection(("127.0.0.1", server.port), 20) as following:
        following.sendall(b"next")
        got = b""
        while not got.endswith(b"next"):  # what was on its way may come first
            got += following.recv(65536)


def test_paused_backend_leaves_input_where_it_is(loop: EventLoop) -> None:
    master, slave = pty.openpty()
    backend = open_char(os.ttyname(slave), loop)
    got = bytearray()
    backend.start(lambda data: (got.extend(data), loop.stop()))
    backend.pause()
    os.write(master, b"late")
    loop.timer(loop.stop).arm_in(2_000_000)
    loop.run()
    assert got == b""
    backend.resume()
    loop.run()
    assert got == b"late"
    backend.close()
    os.close(slave)
    os.close(master)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("/dev/nmdm0A", "FreeBSD"),
        ("/nonexistent/tty", "No such file"),
        ("/dev/null", "not a terminal"),
        ("tcp=nowhere", "tcp=address:port"),
        ("tcp=127.0.0.1:99999", "tcp=address:port"),
        ("tcp=192.0.2.1:1", "cannot listen"),
        ("carrier-pigeon", "unknown character backend"),
        ("", "unknown character backend"),
    ],
)
def test_bad_specification_is_one_clear_line(loop: EventLoop, spec: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message) as caught:
        open_char(spec, loop)
    assert "\n" not in str(caught.value)


def test_stdio_can_be_taken_once(loop: EventLoop) -> None:
    first = open_char("stdio", loop)
    with pytest.raises(DeviceError, match="used"):
        open_char("stdio", loop)
    first.close()
    open_char("stdio", loop).close()
