"""What each of bhyve's options does to the machine, seen by the guest, in its memory, or from the host."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from uuid import UUID

import pytest

from pyhyve import Machine
from pyhyve.commands.bhyve import parse
from pyhyve.errors import LoaderError
from pyhyve.hw.pci.bus import PciAddress
from pyhyve.memory import CORE_FILTER
from pyhyve.vmm.api import Capability
from tests import kernels
from tests.conftest import find_backend
from tests.guests import Mode, assemble

COMMAND = [sys.executable, "-m", "pyhyve.commands.bhyve"]
SLOTS = ["-s", "0,hostbridge", "-s", "31,lpc"]

# Ends the machine with what is in EAX.
LEAVE = """
    mov $0xf4, %dx
    out %eax, %dx
"""
APIC_BASE = (
    """
    mov $0x1b, %ecx
    rdmsr
    shr $10, %eax
    and $3, %eax
"""
    + LEAVE
)
READ_CMOS = (
    """
    mov $NUMBER, %al
    out %al, $0x70
    xor %eax, %eax
    in $0x71, %al
"""
    + LEAVE
)
# Halts five times, each time until the timer's interrupt comes, and powers off.
HALT = """
    lgdt gdtr
    ljmp $8, $0f
0:  mov $0x10, %ax
    mov %ax, %ds
    mov %ax, %ss
    lidt idtr
    mov $handler, %eax
    mov %ax, gate
    shr $16, %eax
    mov %ax, gate + 6
    out8 0x20, 0x11
    out8 0x21, 0x20
    out8 0x21, 0x04
    out8 0x21, 0x01
    out8 0x21, 0xfe
    out8 0x43, 0x34
    out8 0x40, 0x00
    out8 0x40, 0x04
    mov $5, %ecx
    sti
0:  hlt
    loop 0b
    cli
    power_off
handler:
    push %eax
    mov $0x20, %al
    out %al, $0x20
    pop %eax
    iret
.align 8
gdt: .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdtr: .word 23
    .long gdt
idt: .skip 32 * 8
gate: .word 0, 8, 0x8e00, 0
idtr: .word 33 * 8 - 1
    .long idt
"""
PAUSES = """
    mov $7, %ecx
0:  pause
    loop 0b
    power_off
"""
# Says the signature of a bvm port, then gives back what comes in, until q.
ECHO_AT = """
    mov $PORT, %dx
    in %dx, %ax
    movzbl %ah, %ebx
    movzbl %al, %eax
    out %eax, %dx
    mov %ebx, %eax
    out %eax, %dx
0:  in %dx, %eax
    cmp $-1, %eax
    je 0b
    out %eax, %dx
    cmp $'q', %al
    jne 0b
    power_off
"""
TEST_DEVICE = """
    mov $0x11223344, %eax
    out %eax, $0xe0
    in $0xe2, %al
    movzbl %al, %ebx
    mov $0x5a, %al
    mov %al, 0xff000010
    movzbl 0xff000010, %eax
    add %ebx, %eax
    out %eax, $0xf4
"""
FIRMWARE_ITEM = (
    """
    mov $0x510, %dx
    mov $0x20, %ax
    out %ax, %dx
    inc %dx
    xor %eax, %eax
    in %dx, %al
"""
    + LEAVE
)


@pytest.fixture
def soft():
    return find_backend("soft").name


def arguments(kernel, backend, *options):
    return [*SLOTS, "-m", "16M", "-o", f"boot.kernel={kernels.build(kernel)}", "-o", f"vmm.backend={backend}", *options]


def run(kernel, backend, *options, **kwargs):
    kwargs.setdefault("input", "")
    argv = [*COMMAND, *arguments(kernel, backend, *options), "vm0"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, **kwargs)


def leave_with(kernel, backend, *options, **kwargs):
    """The value that the guest writes to the debug-exit port."""
    done = run(kernel, backend, "-l", "debug-exit", *options, **kwargs)
    assert done.returncode & 1, done
    return done.returncode >> 1


def machine(*options, kernel=kernels.POWER_OFF, backend="auto"):
    return Machine(parse([*arguments(kernel, backend, *options), "vm0"]))


def stats(kernel, backend, *options):
    with machine(*options, kernel=kernel, backend=backend) as built:
        built.start()
        assert built.wait() == 1
        return built.stats()


def low_memory(*options):
    """Where firmware tables are."""
    with machine(*options) as built:
        return built.memory.read(0xE0000, 0x20000)


@pytest.mark.parametrize(
    ("options", "state"), [([], 3), (["-a"], 2), (["-x"], 3), (["-a", "-x"], 3), (["-x", "-a"], 2)]
)
def test_a_and_x_choose_the_local_apics_mode(options, state, backend):
    assert leave_with(APIC_BASE, backend, *options) == state


def test_A_builds_acpi_tables():
    assert b"RSD PTR " in low_memory("-A")
    assert b"RSD PTR " not in low_memory()


def test_Y_leaves_the_mp_table_out():
    assert b"_MP_" in low_memory()
    assert b"_MP_" not in low_memory("-Y")


def test_U_is_in_smbios():
    uuid = UUID("d1b2f2e6-8f0a-4f0e-9a39-0123456789ab")
    assert uuid.bytes_le in low_memory("-U", str(uuid))


def test_b_is_a_console_on_standard_input_and_output(backend):
    done = run(ECHO_AT.replace("PORT", "0x220"), backend, "-b", input="ab\nq")
    assert (done.stdout, done.returncode) == ("vbab\nq", 1)


def test_two_consoles_do_not_share_standard_input(backend):
    done = run(kernels.POWER_OFF, backend, "-b", "-l", "com1,stdio")
    assert (done.stderr, done.returncode) == ("bhyve: stdio is used by another device already\n", 1)


@pytest.mark.parametrize("options", [["-c", "2"], ["-c", "cpus=2,threads=2"], ["-c", "sockets=2"]])
def test_c_makes_that_many_cpus(options, backend):
    if find_backend(backend).probe().max_cpus < 2:
        pytest.skip(f"backend {backend}: one vCPU only so far")
    with machine(*options, backend=backend) as built:
        assert [vcpu.index for vcpu in built.vcpus.vcpus] == [0, 1]


def mapping_flags(built):
    """``VmFlags`` of the mapping that is guest memory."""
    with open("/proc/self/smaps") as file:
        inside = False
        for line in file:
            head = line.split()[0]
            if "-" in head and not head.endswith(":"):
                start, end = (int(part, 16) for part in head.split("-"))
                inside = start <= built.memory.host_base < end
            elif inside and head == "VmFlags:":
                return line.split()[1:]
    raise AssertionError("guest memory is not mapped")


def test_C_keeps_guest_memory_in_core_dumps():
    with machine() as built:
        assert "dd" in mapping_flags(built)
    with open(CORE_FILTER) as file:
        before = file.read()
    try:
        with machine("-C") as built:
            assert "dd" not in mapping_flags(built)
        with open(CORE_FILTER) as file:
            assert int(file.read(), 16) == int(before, 16) | 0xA
    finally:
        with open(CORE_FILTER, "w") as file:
            file.write("0x" + before)


def test_S_alone_wires_guest_memory():
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if os.geteuid() != 0 and limit != resource.RLIM_INFINITY and limit < 16 << 20:
        pytest.skip("this user may not lock 16 MB of memory (ulimit -l)")
    with machine() as built:
        assert "lo" not in mapping_flags(built)
    with machine("-S") as built:
        assert "lo" in mapping_flags(built)


def test_e_stops_at_a_port_that_nobody_emulates(backend):
    done = run(kernels.READ_NOBODYS_PORT, backend, "-e")
    assert (done.stderr, done.returncode) == ("Unhandled inw 0x1234\n", 4)
    assert run(kernels.READ_NOBODYS_PORT, backend).returncode == 1


def test_f_adds_an_item_that_the_guest_reads(backend):
    options = ["-l", "fwcfg,qemu", "-f", "name=opt/org.example/text,string=9"]
    assert leave_with(FIRMWARE_ITEM, backend, *options) == ord("9")


def test_f_reads_a_file(backend, tmp_path):
    path = tmp_path / "item"
    path.write_bytes(b"\x15")
    assert leave_with(FIRMWARE_ITEM, backend, "-l", "fwcfg,qemu", "-f", f"opt/x,file={path}") == 0x15


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["-f", "a,string=b"], "need QEMU's interface: add -l fwcfg,qemu"),
        (["-l", "fwcfg,qemu", "-f", "a,string=b", "-f", "a,string=c"], "item 'a' is given twice"),
        (["-l", "fwcfg,qemu", "-f", "a,file=/nowhere"], "cannot read /nowhere for the item 'a'"),
        (["-l", "fwcfg,qemu", "-f", "a" * 56 + ",string=b"], "is no name for firmware configuration"),
        (["-l", "fwcfg,qemu", "-o", "fwcfg.0.name=a"], "either a string or a file"),
        (["-o", "lpc.fwcfg=x"], "neither bhyve nor qemu"),
        (["-l", "pc-testdev", "-l", "debug-exit"], "no place for the debug-exit port"),
        (["-l", "debug-exit,port=0x70"], "port 0x70 of debug-exit belongs to"),
        (["-l", "debug-exit,port=0x10000"], "lpc.debug-exit.port: 65536 is above 65532"),
        (["-l", "debug-exit,size=3"], "lpc.debug-exit.size: 3 is not 1, 2 or 4"),
        (["-l", "bootrom,/nowhere"], "goes with no boot.* variable"),
        (["-o", "lpc.bootvars=/vars"], "boot variables (lpc.bootvars) need a boot ROM"),
        (["-l", "tpm,swtpm,/run/swtpm"], "a TPM (-l tpm) is not available"),
        (["-r", "file"], "resuming from a snapshot (-r) is not available"),
        (["-o", "vcpu.0.cpuset=1-"], "vcpu.0.cpuset: '1-' is not a list of host CPUs"),
        (["-o", "x86.strictio=2"], "x86.strictio: '2' is not a truth value"),
    ],
)
def test_what_does_not_go_together_is_one_line(options, line, soft):
    done = run(kernels.POWER_OFF, soft, *options)
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (1, 1, "")
    assert line in done.stderr


def _debug_port(built):
    """The TCP end of the debug port."""
    return next(r for r in built.pio.ranges() if r.name == "bvmdbg").handler._connection


def test_g_bridges_the_debug_port_to_tcp(backend):
    with machine("-o", "dbgport=127.0.0.1:0", kernel=ECHO_AT.replace("PORT", "0x224"), backend=backend) as built:
        port = _debug_port(built).port
        with socket.create_connection(("127.0.0.1", port)) as debugger:
            debugger.sendall(b"+$q")
            built.start()
            assert built.wait() == 1
            seen = b""
            while len(seen) < 5:
                seen += debugger.recv(100)
    assert seen == b"VB+$q"


def test_g_listens_on_this_host_only_unless_told(soft):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(kernels.POWER_OFF, soft, "-g", str(port))
    assert (done.returncode, done.stderr) == (1, f"bhyve: cannot listen on tcp=:{port}: Address already in use\n")
    with machine("-o", "dbgport=0") as built:
        assert _debug_port(built)._listener.getsockname()[0] == "127.0.0.1"


def test_H_makes_an_exit_of_each_hlt(soft):
    assert stats(HALT, soft, "-H")["vcpu0.hlt"] >= 5
    assert stats(HALT, soft)["vcpu0.hlt"] == 0


def test_I_changes_nothing():
    assert low_memory("-I") == low_memory()


def test_k_reads_a_whole_machine_from_a_file(backend, tmp_path):
    path = tmp_path / "vm.conf"
    options = arguments(kernels.POWER_OFF, backend, "-l", "com1,stdio", "vm7")
    path.write_text("".join(f"{name}={value}\n" for name, value in parse(options)))
    argv = [*COMMAND, "-k", str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, input="", check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("hello\n", "", 1)


def test_a_dump_builds_the_same_machine(soft, tmp_path):
    several = find_backend(soft).probe().max_cpus >= 3
    options = "-c 3 -n 0,8M,0 -n 1,16M,1-2" if several else "-n 0,24M,0"
    options += " -A -a -s 3:1,hostbridge -s 3,amd_hostbridge -l pc-testdev -l fwcfg,qemu"
    more = ["-f", "opt/x,string=100%% of %(name)", "-o", "bios.vendor=%(cpus) of us", "-U", str(UUID(int=7))]
    config = parse([*arguments(kernels.POWER_OFF, soft, *options.split(), *more), "vm0"])
    path = tmp_path / "vm.conf"
    path.write_text(config.dump())
    seen = []
    for tree in (config, parse(["-k", str(path)])):
        with Machine(tree) as built:
            ranges = [[(r.port, r.count, r.name) for r in built.pio.ranges()], built.mmio.ranges()[0].name]
            built.pio.write(0x510, 2, 0x20)
            item = bytes(built.pio.read(0x511, 1) for _ in range(12))
            slots = [(str(a), f.read_config(0, 4)) for a, f in built.pci.functions.items()]
            tables = built.memory.read(0xE0000, 0x20000)
            seen.append((built.memory.ram_size, len(built.vcpus.vcpus), ranges, item, slots, tables, set(built.parts)))
    assert seen[0] == seen[1]
    assert item == b"100% of vm0\0"


def test_l_bootrom_starts_at_the_reset_vector(backend, tmp_path):
    rom = assemble(
        """
.code16
start:
    mov $0xf4, %dx
    mov %cs:value, %al
    movb $1, %cs:value
    cmp %cs:value, %al
    jne 0f
    out %al, %dx
0:  hlt
value: .byte 0x2a
.org 0xfff0
    jmp start
.org 0x10000
""",
        0,
        Mode.REAL,
    )
    path = tmp_path / "rom"
    path.write_bytes(rom)
    options = [*SLOTS, "-m", "16M", "-o", f"vmm.backend={backend}", "-l", f"bootrom,{path}", "-l", "debug-exit", "vm0"]
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0x2A << 1 | 1, "")


@pytest.mark.parametrize(("size", "line"), [(0, "is empty"), (100, "must be whole pages"), (17 << 20, "16 MB at most")])
def test_a_bad_boot_rom_is_one_line(size, line, soft, tmp_path):
    path = tmp_path / "rom"
    with path.open("wb") as file:
        file.truncate(size)
    argv = [*COMMAND, "-o", f"vmm.backend={soft}", "-l", f"bootrom,{path}", "vm0"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert line in done.stderr


# Programs a byte of the variables in several rounds, reading it many times before and behind, and leaves with it.
WRITE_VARIABLE = """
.code16
start:
    lgdtl %cs:gdtr
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $8, $0xffff0000 + 0f
.code32
0:  mov $0x10, %ax
    mov %ax, %ds
    mov $0xffff0000 - 4096 + 5, %esi
    mov $0x27, %bl
    mov $0, %bh             # what the byte is
2:  mov $2000, %ecx
3:  cmp %bh, (%esi)
    jne 1f
    loop 3b
    inc %bl
    mov %bl, %bh
    movb $0x40, (%esi)
    mov %bl, (%esi)
    movb $0xff, (%esi)
    cmp $0x2a, %bl
    jne 2b
    mov (%esi), %al
    out %al, $0xf4
1:  hlt
.align 8
gdt: .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdtr: .word 23
    .long 0xffff0000 + gdt
.org 0xfff0
.code16
    jmp start
.org 0x10000
"""


def test_boot_variables_stay_in_their_file(backend, tmp_path):
    if not find_backend(backend).probe().accelerated:
        pytest.skip("this host's software KVM does not get from a ROM's real mode to protected mode")
    rom, variables = tmp_path / "rom", tmp_path / "vars"
    rom.write_bytes(assemble(WRITE_VARIABLE, 0, Mode.REAL))
    variables.write_bytes(bytes(4096))
    options = ["-m", "16M", "-o", f"vmm.backend={backend}", "-l", f"bootrom,{rom},{variables}", "-l", "debug-exit"]
    done = subprocess.run([*COMMAND, *options, "vm0"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0x2A << 1 | 1, "")
    assert variables.read_bytes() == bytes(5) + b"\x2a" + bytes(4090)


def test_boot_variables_are_one_machines(soft, tmp_path):
    rom, variables = tmp_path / "rom", tmp_path / "vars"
    rom.write_bytes(bytes(4096))
    variables.write_bytes(bytes(4096))
    options = ["-o", f"vmm.backend={soft}", "-l", f"bootrom,{rom},{variables}", "vm0"]
    with Machine(parse(options)):
        done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, f"bhyve: boot variables {variables} are in use by another machine\n")
    with Machine(parse(options)) as built:
        assert "bootvars" in built.parts


@pytest.mark.parametrize(
    ("size", "line"), [(None, "No such file"), (0, "whole pages"), (100, "whole pages"), (16 << 20, "16 MB at most")]
)
def test_bad_boot_variables_are_one_line(size, line, soft, tmp_path):
    rom, variables = tmp_path / "rom", tmp_path / "vars"
    rom.write_bytes(bytes(4096))
    if size is not None:
        with variables.open("wb") as file:
            file.truncate(size)
    with pytest.raises(LoaderError, match=line) as caught:
        Machine(parse(["-o", f"vmm.backend={soft}", "-l", f"bootrom,{rom},{variables}", "vm0"]))
    assert "\n" not in str(caught.value)


def test_a_boot_rom_may_ask_bhyves_firmware_interface(soft, tmp_path):
    path = tmp_path / "rom"
    path.write_bytes(bytes(4096))
    boot = ["-o", f"vmm.backend={soft}", "-l", f"bootrom,{path}", "vm0"]
    with Machine(parse(boot)) as built:
        assert built.pio.read(0x511, 1) == ord("B")
    with Machine(parse(["-l", "fwcfg,qemu", *boot])) as built:
        assert built.pio.read(0x511, 1) == ord("Q")
    with machine() as built:
        assert built.pio.read(0x511, 1) is None


def test_l_pc_testdev_has_a_latch_memory_and_an_exit(backend):
    done = run(TEST_DEVICE, backend, "-l", "pc-testdev")
    assert (done.returncode, done.stderr) == ((0x22 + 0x5A) << 1 & 0xFF | 1, "")


@pytest.mark.parametrize("options", [["-l", "debug-exit,port=0xf4,size=4"], ["-l", "debug-exit"]])
def test_l_debug_exit_ends_with_an_odd_status(options, backend):
    kernel = "\n    mov $21, %eax\n" + LEAVE
    assert run(kernel, backend, *options).returncode == 43


@pytest.mark.parametrize(("option", "size"), [("-m32", 32), ("-m24M", 24), ("-m20480k", 20)])
def test_m_is_the_size_of_memory(option, size):
    with machine(option) as built:
        assert built.memory.ram_size == size << 20


def vcpu_affinity(pid):
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/comm") as file:
            if file.read() == "vcpu 0\n":
                return os.sched_getaffinity(int(task))
    raise AssertionError("there is no thread called vcpu 0")


@pytest.mark.parametrize("form", ["{1}", "0:{1}", "0:{0} -p 0:{1}"])
def test_p_pins_the_thread_of_a_vcpu(form, backend):
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("this host has one CPU only")
    options = ["-p", *form.format(*allowed).split()]
    argv = [*COMMAND, *arguments(kernels.SPIN, backend, *options, "-l", "com1,stdio"), "vm0"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "spinning\n"
        assert vcpu_affinity(process.pid) == set(allowed[:2] if "{0}" in form else allowed[1:2])
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def test_P_makes_an_exit_of_each_pause(soft):
    assert stats(PAUSES, soft, "-P")["vcpu0.pause"] == 7
    assert stats(PAUSES, soft)["vcpu0.pause"] == 0


def test_P_is_refused_where_there_are_no_such_exits():
    kvm = find_backend("kvm")
    with machine(backend=kvm.name) as built:
        if built.vm.capability(Capability.PAUSE_EXIT):
            pytest.skip("this KVM has exits on PAUSE")
    done = run(kernels.POWER_OFF, kvm.name, "-P")
    assert (done.returncode, "VM exit on PAUSE (-P) is not supported" in done.stderr) == (1, True)


def test_S_makes_a_legacy_device():
    with machine("-S", "9,hostbridge") as built:
        assert built.pci.functions[PciAddress(0, 9, 0)].options == {"legacy": "true"}
        assert built.pci.functions[PciAddress(0, 0, 0)].options == {}


def test_s_puts_a_device_in_a_slot():
    with machine("-s", "7,amd_hostbridge", "-s", "7:3,hostbridge", "-S", "2:9:0,hostbridge") as built:
        found = [str(address) for address in built.pci.functions]
        built.pio.write(0xCF8, 4, 1 << 31 | 7 << 11)
        assert built.pio.read(0xCFC, 4) == 0x74321022
    assert found == ["0:0:0", "0:7:0", "0:7:3", "0:31:0", "2:9:0"]


def test_pcireg_variables_show_another_identity(backend):
    options = ["-o", "pci.0.0.0.pcireg.vendor=0x1234", "-o", "lpc.pcireg.revid=7", "-o", "lpc.pcireg.subdevice=0xabcd"]
    with machine(*options, backend=backend) as built:
        bridge, lpc = (built.pci.functions[address] for address in sorted(built.pci.functions))
        built.pci.reset()
        assert bridge.read_config(0, 4) == 0x12751234
        assert (lpc.read_config(0, 4), lpc.read_config(8, 1), lpc.read_config(0x2E, 2)) == (0x70008086, 7, 0xABCD)


@pytest.mark.parametrize(
    ("variable", "line"),
    [
        ("lpc.pcireg.vendor=host", "lpc.pcireg.vendor: 'host' is not a number"),
        ("lpc.pcireg.revid=256", "lpc.pcireg.revid: 256 is above 255"),
        ("pci.0.0.0.pcireg.bar=1", "the registers to set are vendor, device, revid, subvendor, subdevice"),
    ],
)
def test_a_bad_pcireg_variable_is_one_line(variable, line, soft):
    done = run(kernels.POWER_OFF, soft, "-o", variable)
    assert (done.returncode, done.stderr.count("\n"), line in done.stderr) == (1, 1, True)


def test_n_tells_the_guest_of_memory_domains():
    assert b"SRAT" in low_memory("-A", "-n", "0,16M,0,prefer:0")
    assert b"SRAT" not in low_memory("-A")


def test_K_takes_the_name_of_a_layout():
    with machine("-K", "de_noacc") as built:
        assert built.config.get("keyboard.layout") == "de_noacc"


def test_fwcfg_is_named_in_the_dsdt():
    assert b"QEMU0002" in low_memory("-A", "-l", "fwcfg,qemu")
    assert b"QEMU0002" not in low_memory("-A")


def hours(zone, backend, *options):
    """The hours that the guest's clock shows."""
    bcd = leave_with(READ_CMOS.replace("NUMBER", "4"), backend, *options, env={**os.environ, "TZ": zone})
    return (bcd >> 4) * 10 + (bcd & 15)


def test_u_keeps_utc_in_the_clock(backend):
    before = time.time()
    utc, local = hours("XXX-7", backend, "-u"), hours("XXX-7", backend)
    possible = {time.gmtime(moment).tm_hour for moment in (before, time.time())}
    assert utc in possible
    assert (local - 7) % 24 in possible


def test_w_ignores_unknown_msrs(backend):
    done = run(kernels.READ_UNKNOWN_MSR, backend, "-w")
    assert (done.returncode, done.stderr) == (1, "rdmsr to register 0x12345 on vcpu 0\n")
    assert run(kernels.READ_UNKNOWN_MSR, backend).returncode == 3
