"""The server over its socket: what each packet does, who runs and who rests, and debuggers that behave badly."""

import contextlib
import re
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyhyve.debug.gdb.framing import PACKET_SIZE
from pyhyve.debug.gdb.server import listen
from pyhyve.errors import BackendError
from pyhyve.vmm.api import Capability
from pyhyve.vmm.registers import Reg
from tests.debug.gdb.client import Client
from tests.debug.gdb.fakes import END, MOST_POINTS, PORT, START, STORE, UNMAPPED, WATCHED, SimpleMachine

RIP = 16


@pytest.fixture
def machine():
    with SimpleMachine() as running:
        yield running


@pytest.fixture
def two():
    with SimpleMachine(2) as running:
        yield running


@pytest.fixture
def gdb(machine):
    with Client(machine.gdb.port) as client:
        yield client


def attach(machine):
    return Client(machine.gdb.port)


def runs_again(cpu):
    """Wait until ``cpu`` enters the guest."""
    cpu.entered.clear()
    return cpu.entered.wait(20) or cpu.inside


def rip_of(reply):
    return int.from_bytes(bytes.fromhex(re.search(r";10:([0-9a-f]{16});", reply)[1]), "little")


# -- arriving and leaving --


def test_a_debugger_finds_the_machine_stopped(machine, gdb):
    assert gdb("?").startswith("T05thread:1;10:")
    assert not machine.cpus[0].inside


def test_a_debugger_that_is_waited_for_sees_the_first_instruction():
    with SimpleMachine(2, wait=True) as machine, attach(machine) as gdb:
        assert rip_of(gdb("?")) == START
        assert not any(cpu.entered.is_set() for cpu in machine.cpus)
        gdb.send(b"c")
        assert all(cpu.entered.wait(20) for cpu in machine.cpus)


def test_a_machine_that_waits_can_be_ended():
    with SimpleMachine(wait=True) as machine:
        machine.vcpus.end(130)
        assert machine.ended() == 130


def test_detach_takes_the_points_out_and_lets_the_guest_run(machine, gdb):
    assert gdb(f"Z0,{STORE:x},1") == "OK"
    assert gdb("D") == "OK"
    assert gdb.hung_up()
    assert runs_again(machine.cpus[0])
    assert not machine.cpus[0].points


def test_a_debugger_may_come_again(machine):
    for _ in range(5):
        with attach(machine) as gdb:
            assert gdb("?")[:3] == "T05"
            gdb("D")


@pytest.mark.parametrize("state", ["stopped", "running", "stepping"])
def test_a_debugger_that_vanishes_leaves_no_trace(two, state):
    gdb = attach(two)
    gdb(f"Z0,{STORE:x},1")
    if state == "running":
        gdb(f"z0,{STORE:x},1")
        gdb(f"Z0,{UNMAPPED:x},1")
        gdb.send(b"c")
    elif state == "stepping":
        gdb.send(f"vCont;r{START:x},{END + 1:x}:1".encode())
    gdb.close()
    with attach(two) as another:
        assert another("?")[:3] == "T05"
        for cpu in two.cpus:
            assert not cpu.points
            assert not cpu.capabilities.get(Capability.MTRAP_EXIT)
        another("D")
    assert all(runs_again(cpu) for cpu in two.cpus)


def test_a_second_debugger_is_shown_out(machine, gdb):
    assert gdb("?")
    with attach(machine) as second:
        assert second.hung_up()
    assert gdb("?"), "and the first stays"


def test_k_ends_the_machine_as_a_power_off(machine, gdb):
    gdb.send(b"k")
    assert gdb.hung_up()
    assert machine.ended() == 1


def test_vkill_is_answered(machine, gdb):
    assert gdb("vKill;1") == "OK"
    assert machine.ended() == 1


def test_a_debugger_that_waits_hears_of_the_end(machine, gdb):
    gdb.send(b"c")
    assert runs_again(machine.cpus[0])
    machine.vcpus.end(3)
    machine.ended()
    machine.gdb.close()
    assert gdb.packet() == b"W03"


def test_a_port_that_is_taken_is_one_line(machine):
    with pytest.raises(BackendError, match=f"cannot listen for a debugger on 127.0.0.1:{machine.gdb.port}: Address"):
        listen("127.0.0.1", machine.gdb.port)


def test_it_listens_on_ipv6_where_asked():
    try:
        listener = listen("[::1]", 0)
    except BackendError as error:
        pytest.skip(f"no IPv6 on this host: {error}")
    assert listener.family == socket.AF_INET6
    listener.close()


# -- packets --


def test_what_the_server_can(gdb):
    reply = set(gdb("qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+").split(";"))
    assert {f"PacketSize={PACKET_SIZE:x}", "qXfer:features:read+", "QStartNoAckMode+", "swbreak+"} <= reply
    assert set(gdb("vCont?").split(";")) >= {"vCont", "c", "C", "s", "S"}
    assert (gdb("qAttached"), gdb("qSymbol::"), gdb("qC")) == ("1", "OK", "QC1")
    assert gdb("vMustReplyEmpty") == gdb("qOffsets") == gdb("!") == gdb("") == ""


def test_the_description_comes_in_pieces(gdb):
    text, at = "", 0
    while True:
        piece = gdb(f"qXfer:features:read:target.xml:{at:x},100")
        text += piece[1:]
        at += len(piece) - 1
        if piece[0] == "l":
            break
    assert text.startswith("<?xml")
    assert text.endswith("</target>\n")
    assert gdb("qXfer:features:read:other.xml:0,100") == "E00"


def test_after_no_ack_mode_nothing_is_acknowledged(gdb):
    gdb.send(b"QStartNoAckMode")
    assert gdb.packet() == b"OK"
    gdb.write(b"$qC#b4")
    assert gdb.byte() == b"$"


def test_packets_are_acknowledged_and_repeated(gdb):
    gdb.write(b"$qC#b4")
    assert b"".join(gdb.byte() for _ in range(8)) == b"+$QC1#c5"
    gdb.write(b"-")
    assert gdb.packet() == b"QC1"
    gdb.write(b"$qC#b5")
    assert gdb.byte() == b"-"


def test_registers_are_read_and_written(machine, gdb):
    assert gdb(f"P{RIP:x}=2010000000000000") == "OK"
    assert gdb.register(RIP) == 0x1020 == machine.cpus[0].registers[Reg.RIP]
    everything = bytearray(bytes.fromhex(gdb("g")))
    everything[0:8] = bytes(range(8))
    assert gdb("G" + everything.hex()) == "OK"
    assert machine.cpus[0].registers[Reg.RAX] == 0x0706050403020100
    assert gdb("pfff") == gdb("P10=00") == gdb("p-1") == gdb("Pzz=00") == "E16"


def test_memory_is_read_and_written(machine, gdb):
    assert gdb(f"m{START:x},4") == "00010203"
    assert gdb("M3000,3:aabbcc") == "OK"
    assert machine.memory.read(0x3000, 3) == b"\xaa\xbb\xcc"
    gdb.send(b"X3000,4:" + b"}\x03}\x04}]x")
    assert gdb.packet() == b"OK"
    assert machine.memory.read(0x3000, 4) == b"#$}x"
    gdb.send(b"x3000,4")
    assert gdb.packet() == b"b}\x03}\x04}]x"


def test_writes_are_told_to_whoever_caches_code(machine, gdb):
    seen = []
    machine.memory.on_write.append(lambda gpa, length: seen.append((gpa, length)))
    assert gdb("M1ffe,4:01020304") == "OK"
    assert seen == [(0x1FFE, 2), (0x2000, 2)], "a page at a time, as each may lie elsewhere"


def test_what_is_not_mapped_is_an_error(machine, gdb):
    end = machine.memory.size
    assert gdb(f"m{UNMAPPED:x},4") == gdb(f"m{end:x},4") == "E0e"
    assert gdb(f"m{end - 2:x},4") == "0000", "as much as there is"
    assert gdb(f"M{end - 2:x},4:01020304") == "E0e"
    assert machine.memory.read(end - 2, 2) == bytes(2), "a write is whole or nothing"
    assert gdb("mffffffffffffffff,2") == "E0e"
    assert gdb("m1000") == gdb("M3000,4:00") == gdb("m,") == gdb("m-1,4") == "E16"


def test_physical_memory_by_qemus_packet(machine, gdb):
    machine.cpus[0].translate = lambda gva: None
    assert gdb("m1000,1") == "E0e"
    assert (gdb("qqemu.PhyMemMode"), gdb("Qqemu.PhyMemMode:1"), gdb("m1001,1")) == ("0", "OK", "01")
    assert gdb("Qqemu.PhyMemMode:x") == "E16"


# -- running and stopping --


def test_a_step_is_one_instruction(gdb):
    gdb(f"P{RIP:x}=0010000000000000")
    assert [rip_of(gdb("s")) for _ in range(3)] == [START + 1, START + 2, START + 3]
    assert rip_of(gdb("vCont;s:1")) == START + 4
    assert rip_of(gdb("vCont;s:1;c")) == START + 5


def test_the_plain_forms_take_a_signal_and_an_address(gdb):
    assert rip_of(gdb(f"s{START + 3:x}")) == START + 4
    assert rip_of(gdb(f"S05;{START + 7:x}")) == START + 8
    gdb(f"Z0,{STORE:x},1")
    assert rip_of(gdb(f"c{STORE - 2:x}")) == STORE
    assert rip_of(gdb("C05")) == STORE
    assert gdb("Cx") == gdb("sx") == "E16"


def test_a_step_over_an_instruction_that_exits_is_one_instruction(gdb):
    gdb(f"P{RIP:x}={PORT.to_bytes(8, 'little').hex()}")
    assert rip_of(gdb("s")) == PORT + 1
    assert rip_of(gdb("s")) == PORT + 2


def test_a_range_is_stepped_through_at_once(gdb):
    gdb(f"P{RIP:x}=0010000000000000")
    assert rip_of(gdb(f"vCont;r{START:x},{START + 9:x}:1")) == START + 9


def test_a_breakpoint_stops_before_its_instruction(gdb):
    gdb("qSupported:swbreak+;hwbreak+")
    gdb(f"Z0,{STORE:x},1")
    reply = gdb("c")
    assert reply.startswith("T05thread:1;swbreak:;")
    assert rip_of(reply) == STORE
    assert rip_of(gdb("c")) == STORE, "once around"
    gdb(f"z0,{STORE:x},1")
    gdb(f"Z1,{STORE + 1:x},1")
    reply = gdb("c")
    assert "hwbreak:;" in reply
    assert rip_of(reply) == STORE + 1


@pytest.mark.parametrize(("kind", "name"), [(2, "watch"), (3, "rwatch"), (4, "awatch")])
def test_a_watchpoint_tells_its_address(gdb, kind, name):
    assert gdb(f"Z{kind},{WATCHED:x},8") == "OK"
    reply = gdb("c")
    assert reply.startswith(f"T05thread:1;{name}:{WATCHED:x};")
    assert rip_of(reply) == STORE + 1


def test_points_that_cannot_be_set_are_refused(machine, gdb):
    for number in range(MOST_POINTS):
        assert gdb(f"Z0,{0x5000 + number:x},1") == "OK"
    assert gdb("Z0,6000,1") == "E16"
    assert gdb("z0,5000,1") == "OK"
    assert gdb("Z0,6000,1") == "OK"
    assert gdb("Z5,1000,1") == ""
    assert gdb("Z0,1000") == gdb("Z0,x,1") == gdb("Z2,1000,0") == "E16"


def test_taking_points_out_and_putting_them_back_costs_nothing(machine, gdb):
    gdb(f"Z0,{STORE:x},1")
    gdb("c")
    calls = machine.cpus[0].point_calls
    gdb(f"z0,{STORE:x},1")
    gdb(f"Z0,{STORE:x},1")
    gdb("c")
    assert machine.cpus[0].point_calls == calls


def test_ctrl_c_stops_a_running_guest(machine, gdb):
    gdb.send(b"c")
    assert runs_again(machine.cpus[0])
    gdb.write(b"\x03")
    assert gdb.packet().startswith(b"T02thread:1;")
    assert not machine.cpus[0].inside


def test_packets_that_come_while_the_guest_runs_wait_for_the_stop(machine, gdb):
    gdb.send(b"c")
    gdb.send(b"qC")
    gdb.write(b"\x03")
    assert gdb.packet()[:3] == b"T02"
    assert gdb.packet() == b"QC1"


def test_a_suspended_machine_can_be_debugged(machine):
    machine.vcpus.pause()
    with attach(machine) as gdb:
        assert gdb("?")[:3] == "T05"
        gdb("D")
    machine.vcpus.resume()
    assert runs_again(machine.cpus[0])


# -- several vCPUs --


def test_vcpus_are_threads(two):
    with attach(two) as gdb:
        assert gdb("qfThreadInfo") == "m1,2"
        assert gdb("qsThreadInfo") == "l"
        assert bytes.fromhex(gdb("qThreadExtraInfo,2")) == b"vcpu 1 [stopped]"
        assert '<thread id="2" core="1" name="vcpu 1">' in gdb("qXfer:threads:read::0,1000")
        assert (gdb("T2"), gdb("T3"), gdb("Hg2"), gdb("Hg3"), gdb("Hx1")) == ("OK", "E16", "OK", "E16", "E16")
        two.cpus[1].registers[Reg.RAX] = 0x77
        assert gdb.register(0) == 0x77
        assert gdb("Hg1") == "OK"
        assert gdb.register(0) == 0


def test_when_one_stops_all_do(two):
    with attach(two) as gdb:
        gdb(f"Z0,{STORE:x},1")
        reply = gdb("c")
        assert rip_of(reply) == STORE
        assert not any(cpu.inside for cpu in two.cpus)


def test_a_step_of_one_leaves_the_other_at_rest(two):
    with attach(two) as gdb:
        assert gdb("?")
        before = two.cpus[0].registers[Reg.RIP]
        for _ in range(5):
            assert gdb("vCont;s:2").startswith("T05thread:2;")
        assert two.cpus[0].registers[Reg.RIP] == before


def test_a_step_of_one_while_the_other_runs(two):
    with attach(two) as gdb:
        assert gdb("?")
        before = two.cpus[1].registers[Reg.RIP]
        assert gdb("vCont;s:2;c").startswith("T05thread:2;")
        assert two.cpus[1].registers[Reg.RIP] != before
        two.cpus[0].entered.clear()
        gdb.send(f"vCont;r{START:x},{END:x}:2;c".encode())  # for ever
        assert two.cpus[0].entered.wait(20)
        gdb.write(b"\x03")
        assert gdb.packet()[:3] in (b"T02", b"T05")


def test_a_hit_of_another_vcpu_is_reported_next(two):
    with attach(two) as gdb:
        gdb("qSupported:swbreak+")
        gdb(f"Z0,{STORE:x},1")
        for cpu in two.cpus:  # both are about to hit it
            cpu.registers[Reg.RIP] = STORE
            cpu._over = False
        first = gdb("vCont;c")
        thread = re.match(r"T05thread:(\d);swbreak", first)[1]
        other = {"1": "2", "2": "1"}[thread]
        second = gdb(f"vCont;c:{other}")
        assert second.startswith(f"T05thread:{other};swbreak")
        assert rip_of(first) == rip_of(second) == STORE


def test_a_hit_whose_breakpoint_is_gone_is_not_reported(two):
    with attach(two) as gdb:
        for thread in (1, 2):
            gdb(f"Hg{thread}")
            gdb(f"P{RIP:x}=0010000000000000")
        gdb(f"Z0,{STORE:x},1")
        gdb("vCont;c")
        gdb(f"z0,{STORE:x},1")
        gdb(f"Z0,{STORE + 4:x},1")
        assert rip_of(gdb("vCont;c")) == STORE + 4


def test_a_vcpu_that_starts_while_the_machine_is_stopped_rests():
    machine = SimpleMachine(2)
    machine.vcpus.add(0)
    machine._thread.start()
    try:
        with attach(machine) as gdb:
            assert bytes.fromhex(gdb("qThreadExtraInfo,2")) == b"vcpu 1 [not started]"
            machine.vcpus.add(1)
            assert gdb("vCont;s:1").startswith("T05thread:1;")
            assert not machine.cpus[1].entered.is_set()
            gdb.send(b"vCont;c")
            assert machine.cpus[1].entered.wait(20)
    finally:
        machine.close()


# -- monitor --


def test_monitor_commands(two):
    with attach(two) as gdb:
        assert "registers [CPU|all]" in gdb.monitor("help") == gdb.monitor("")
        assert gdb.monitor("registers all").count("cr3") == 2
        assert gdb.monitor("registers 1").startswith("vcpu 1\n")
        assert "no vCPU 7" in gdb.monitor("registers 7")
        assert gdb.monitor("devices") == "simple    SimplePart\n"
        state = gdb.monitor("device simple")
        for line in ("level: 3\n", "nested:\n  name: x\n", "rows[0]:\n  a: 1\n", "(100 bytes)"):
            assert line in state
        assert gdb.monitor("device teapot") == "no device 'teapot': simple\n"
        assert "not mapped" in gdb.monitor("walk 0x1000")
        assert "no paging" not in gdb.monitor("translate 4096")
        assert "vcpu 1: local APIC" in gdb.monitor("interrupts")
        assert gdb.monitor("exits").split() == ["vcpu0.inout", "3"]
        assert "guest-physical" in gdb.monitor("phys on")
        assert gdb("m1001,1") == "01"
        assert gdb.monitor("walk") == "which address?\n"
        assert gdb.monitor("dance") == "no command 'dance'; try 'monitor help'\n"
        assert "closing quot" in gdb.monitor("'").lower()


@pytest.mark.parametrize(("command", "status"), [("reset", 0), ("power-off", 1)])
def test_monitor_ends_the_machine(machine, gdb, command, status):
    gdb.monitor(command)
    assert machine.ended() == status


# -- bad debuggers --


def flood(gdb, data):
    """Write ``data`` without reading, again and again, until the server hangs up.

    Many at a time: a receiver whose buffer is full of segments of a few bytes drops some, and TCP then waits ever
    longer before it sends them again.
    """
    with contextlib.suppress(ConnectionError):
        while True:
            gdb.write(data * (4096 // len(data)))


def test_a_flood_of_packets_while_the_guest_runs_ends_the_connection(machine, gdb):
    gdb.send(b"c")
    assert runs_again(machine.cpus[0])
    flood(gdb, b"$qC#b4")
    assert runs_again(machine.cpus[0])


def test_a_debugger_that_does_not_read_is_left(machine, gdb):
    assert gdb("?")
    flood(gdb, b"$g#67")
    assert runs_again(machine.cpus[0])


def test_endless_requests_to_repeat_end_too(machine, gdb):
    assert gdb("g")
    flood(gdb, b"-")
    assert runs_again(machine.cpus[0])


BODIES = st.one_of(
    st.binary(max_size=60).filter(lambda body: body[:1] != b"k" and body[:5] != b"vKill"),
    st.builds(
        lambda head, tail: head.encode() + tail,
        st.sampled_from(
            ["m", "M", "X", "x", "Z0,", "Z2,", "z1,", "P", "p", "G", "H", "Hg", "T", "vCont;", "vCont;s:", "vCont;r",
             "qXfer:features:read:", "qXfer:", "qRcmd,", "qThreadExtraInfo,", "qSupported:", "C", "S", "?", "g", "qC"]
        ),
        st.one_of(
            st.binary(max_size=20),
            st.from_regex(rb"\A[0-9a-f]{0,17}[,;:=][0-9a-f]{0,17}[,;:=]?[0-9a-f]{0,17}\Z"),
        ),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def victim():
    with SimpleMachine(2) as running:
        yield running


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bodies=st.lists(BODIES, max_size=12), raw=st.binary(max_size=40), framed=st.booleans())
def test_nonsense_leaves_the_server_whole(victim, bodies, raw, framed):
    with attach(victim) as gdb:
        try:
            for body in bodies:
                if framed:
                    gdb.send(body.replace(b"#", b"").replace(b"$", b""))
                else:
                    gdb.write(b"$" + body)
            gdb.write(raw)
        except OSError:
            pass
    with attach(victim) as gdb:
        gdb.write(b"\x03" * 3)
        assert gdb("?")[:1] == "T", "the next one finds everything in order"
        assert gdb("D") == "OK"
    assert victim.status is None
    assert not victim.vcpus.message
