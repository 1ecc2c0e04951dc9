"""The control socket: what it answers, and what it survives."""

import contextlib
import json
import os
import socket
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyhyve.control.client import Connection, NotRunning, Refused
from pyhyve.control.folder import Folder, NoSuchVm, VmError
from pyhyve.control.server import CLIENTS_MAX, LINE_MAX, ControlServer, Requests
from pyhyve.loop import EventLoop
from pyhyve.machine import Machine
from tests import kernels
from tests.conftest import find_backend
from tests.test_machine import config_for


class Fake:
    """Requests of a machine that is not there."""

    def __init__(self):
        self.go = threading.Event()
        self.quick = {"echo": dict, "large": lambda _: {"text": "x" * (1 << 20)}, "fail": lambda _: 1 / 0}
        self.slow = {"wait": self._wait}

    def _wait(self, arguments):
        assert self.go.wait(20)
        return {"thread": threading.current_thread().name, **arguments}


class Served:
    """A server on a loop of its own thread."""

    def __init__(self, name="vm0", **options):
        self.folder = Folder(name).claim(create=True)
        self.requests = Fake()
        self.loop = EventLoop()
        self.server = ControlServer(self.folder.socket_path, **options)
        self.server.serve(self.loop, self.requests)
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def connect(self):
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(20)
        plain.connect(str(self.folder.socket_path))
        return plain

    def close(self):
        self.requests.go.set()
        self.loop.stop()
        self.thread.join()
        self.server.close()
        self.loop.close()
        self.folder.remove()


@pytest.fixture
def served():
    server = Served()
    yield server
    server.close()


@pytest.fixture(scope="module")
def endless():
    """One for the many examples of a property test."""
    server = Served("endless")
    yield server
    server.close()


def answers(data):
    return [json.loads(line) for line in data.splitlines()]


def read_all(plain):
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := plain.recv(1 << 16):
            found += data
    return found


def test_a_request_is_a_line_and_so_is_its_answer(served):
    with served.connect() as plain:
        plain.sendall(b'{"do": "echo", "a": [1]}\n')
        assert answers(plain.recv(1000)) == [{"ok": True, "result": {"do": "echo", "a": [1]}}]


def test_the_client_gets_the_result(served):
    with Connection("vm0") as vm:
        assert vm.call("echo", a=1) == {"do": "echo", "a": 1}
        assert vm.call("echo")["do"] == "echo"


def test_what_is_unknown_is_refused_and_the_line_stays(served):
    with Connection("vm0") as vm:
        with pytest.raises(Refused, match="vm0: there is no 'dance'"):
            vm.call("dance")
        assert vm.call("echo", a=1)["a"] == 1


def test_a_fault_of_ours_is_an_answer_too(served):
    with Connection("vm0") as vm:
        with pytest.raises(Refused, match="ZeroDivisionError"):
            vm.call("fail")
        vm.call("echo")


def test_what_waits_does_not_hold_the_loop(served):
    with Connection("vm0") as first, Connection("vm0") as second:
        first._socket.sendall(b'{"do": "wait"}\n')
        assert second.call("echo")  # the loop is free
        served.requests.go.set()
        assert json.loads(first._line())["result"]["thread"] == "control"


def test_answers_come_in_order(served):
    with served.connect() as plain:
        plain.sendall(b'{"do": "wait", "n": 1}\n{"do": "echo", "n": 2}\n{"do": "wait", "n": 3}\n')
        served.requests.go.set()
        plain.shutdown(socket.SHUT_WR)  # what came is answered all the same
        assert [a["result"]["n"] for a in answers(read_all(plain))] == [1, 2, 3]


def test_a_large_answer_arrives_whole(served):
    with Connection("vm0") as vm:
        assert len(vm.call("large")["text"]) == 1 << 20
        assert len(vm.call("large")["text"]) == 1 << 20


def test_a_client_that_never_reads_fills_nobody_up(served):
    with served.connect() as plain, Connection("vm0") as other:
        plain.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                plain.send(b'{"do": "large"}\n' * 100)
        assert other.call("echo")
        (client, *_) = served.server._clients.values()
        assert len(client.to_send) <= (1 << 20) + 100


@pytest.mark.parametrize(
    "garbage", [b"\n", b"hello\n", b"[]\n", b"{}\n", b'{"do": 1}\n', b"\xff\xfe\n", b"[" * 60000 + b"\n", b"nul\0\n"]
)
def test_garbage_gets_an_answer_and_the_end(served, garbage):
    with served.connect() as plain:
        plain.sendall(garbage)
        (answer,) = answers(read_all(plain))
        assert not answer["ok"]
    with Connection("vm0") as vm:
        vm.call("echo")


def test_a_line_without_end_is_cut_off(served):
    with served.connect() as plain:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            plain.sendall(b"x" * (4 * LINE_MAX))
        found = read_all(plain)
        assert not found or "at most" in answers(found)[0]["error"]


def test_half_a_request_waits_for_its_rest(served):
    with served.connect() as plain, Connection("vm0") as other:
        plain.sendall(b'{"do": "ec')
        assert other.call("echo")
        plain.sendall(b'ho"}\n')
        assert answers(plain.recv(1000))[0]["ok"]


def test_clients_that_vanish_are_forgotten(served):
    for data in (b"", b'{"do": "ec', b'{"do": "wait"}\n', b'{"do": "large"}\n'):
        served.connect().close()
        plain = served.connect()
        plain.sendall(data)
        plain.close()
    served.requests.go.set()
    with Connection("vm0") as vm:
        for _ in range(3):
            vm.call("wait")  # behind theirs in the queue
        assert len(served.server._clients) == 1


def test_too_many_clients_cost_the_oldest_its_place(served):
    crowd = [served.connect() for _ in range(CLIENTS_MAX)]
    with Connection("vm0") as vm:
        assert vm.call("echo")
        assert read_all(crowd[0]) == b""
    for plain in crowd:
        plain.close()


@pytest.mark.parametrize(("uid", "welcome"), [(0, True), (os.geteuid(), True), (os.geteuid() + 1, False)])
def test_other_users_are_refused(uid, welcome):
    served = Served(peer=lambda _: uid)
    try:
        with served.connect() as plain:
            if welcome:
                plain.sendall(b'{"do": "echo"}\n')
                assert answers(plain.recv(1000))[0]["ok"]
            else:
                (answer,) = answers(read_all(plain))
                assert answer["error"].startswith("refused: this machine belongs to user")
    finally:
        served.close()


def test_a_socket_left_by_a_killed_process_is_replaced():
    with Folder("vm0").claim(create=True) as folder:
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(str(folder.socket_path))
        dead.close()
        with pytest.raises(NotRunning):
            Connection("vm0")
        folder.release()
    served = Served()
    with Connection("vm0") as vm:
        vm.call("echo")
    served.close()


def test_there_is_no_connection_to_nobody():
    with pytest.raises(NoSuchVm, match="there is no virtual machine 'nobody'"):
        Connection("nobody")


def test_a_request_before_the_loop_runs_waits():
    with Folder("early").claim(create=True) as folder:
        server = ControlServer(folder.socket_path)
        with Connection("early", timeout=0.05) as vm, pytest.raises(VmError, match="does not answer"):
            vm.call("info")
        server.close()
        folder.remove()


requests = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b'{"do": "echo"}\n', b'{"do": "echo", "do": 7}\n', b"{", b"\n\n", b'{"do": "large"}\n']),
    st.builds(
        lambda value: json.dumps(value).encode() + b"\n",
        st.recursive(st.none() | st.text() | st.integers(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)),
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(requests, max_size=6), st.booleans())
def test_it_survives_whatever_is_sent(endless, messages, reads):
    with endless.connect() as plain, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for message in messages:
            plain.sendall(message)
        if reads:
            plain.shutdown(socket.SHUT_WR)
            for answer in answers(read_all(plain)):
                assert set(answer) in ({"ok", "result"}, {"ok", "error"})
    with Connection("endless") as vm:
        assert vm.call("echo", a=1)["a"] == 1


# -- with a machine --


@pytest.fixture(params=["kvm", "soft"])
def spinning(request):
    """Requests of a machine whose guest spins, on each backend."""
    backend = find_backend(request.param).name
    with Machine(config_for(kernels.SPIN, backend)) as machine:
        machine.start()
        thread = threading.Thread(target=machine.wait)
        thread.start()
        destroyed = threading.Event()
        yield machine, Requests(machine, destroyed.set), destroyed
        machine.power_off()
        thread.join()


def test_info_and_stats_are_there_at_any_time(spinning):
    machine, requests, _ = spinning
    info = requests.quick["info"]({})
    assert info["name"] == "test"
    assert (info["pid"], info["cpus"], info["memory"]) == (os.getpid(), 1, 16 << 20)
    assert info["backend"] == machine.backend
    assert info["uptime"] >= 0
    assert requests.quick["stats"]({})["vcpu0.inout"] >= 0
    assert requests.quick["cpus"]({}) == {"active": [0], "suspended": []}
    json.dumps([info, requests.quick["stats"]({}), requests.quick["exits"]({})])


def test_registers_of_a_running_guest_can_be_read_and_set(spinning):
    machine, requests, _ = spinning
    found = requests.slow["registers"]({"cpu": 0})
    assert found["registers"]["cr0"] & 1
    requests.slow["set_registers"]({"registers": {"r8" if machine.backend == "soft" else "rbp": 0x1234}})
    after = requests.slow["registers"]({})["registers"]
    assert 0x1234 in (after["r8"], after["rbp"])
    assert not machine.vcpus.paused


def test_a_look_at_registers_leaves_a_suspended_machine_suspended(spinning):
    machine, requests, _ = spinning
    requests.slow["suspend"]({})
    first = requests.slow["registers"]({})["registers"]
    assert requests.quick["cpus"]({})["suspended"] == [0]
    assert requests.quick["info"]({})["suspended"]
    assert requests.slow["registers"]({})["registers"] == first
    requests.quick["resume"]({})
    assert not machine.vcpus.paused


@pytest.mark.parametrize("cpu", [1, -1, "0", None, 0.0, True])
def test_a_vcpu_that_is_not_there_is_an_error(spinning, cpu):
    _, requests, _ = spinning
    for do in ("registers", "set_registers", "set_x2apic"):
        with pytest.raises(Exception, match="there is no vcpu"):
            requests.slow[do]({"cpu": cpu})


def test_destroying_ends_the_machine_with_an_error(spinning):
    machine, requests, destroyed = spinning
    requests.quick["destroy"]({})
    assert destroyed.is_set()
    assert (machine.status, machine.message) == (4, "the virtual machine was destroyed")
    with pytest.raises(Exception, match="the machine has ended"):
        requests.slow["registers"]({})
