"""Every exit through a whole machine, on both backends: what the guest gets, what is said and counted, the status."""

from __future__ import annotations

import pytest

from pyhyve import Config, Machine, Status
from tests import kernels
from tests.conftest import find_backend


@pytest.fixture(params=["kvm", "soft"])
def backend(request):
    return find_backend(request.param)


class Run:
    """A kernel run to its end: the status, the counters of the vCPU, and the memory at 0x90000."""

    def __init__(self, kernel, backend, *, end_after_ns=None, **variables):
        config = Config.of(
            {
                "name": "test",
                "memory.size": "16M",
                "vmm.backend": backend.name,
                "pci.0.0.0.device": "hostbridge",
                "pci.0.31.0.device": "lpc",
                "acpi_tables": True,
                "boot.kernel": kernels.build(kernel),
                **variables,
            }
        )
        with Machine(config) as machine:
            if end_after_ns is not None:
                machine.loop.timer(machine.power_off).arm_in(end_after_ns)
            machine.start()
            self.status = machine.wait()
            self.stats = {name.removeprefix("vcpu0."): count for name, count in machine.stats().items()}
            self.words = machine.memory.unpack(0x90000, "<4I")


# INOUT

STRINGS = """
    mov $0x1234, %dx
    mov $text, %esi
    mov $3, %ecx
    rep outsw
    mov $0x90000, %edi
    mov $2, %ecx
    rep insl
    insb
    mov %edi, 0x9000c
    power_off
text: .ascii "abcdef"
"""


def test_string_instructions_reach_a_port_element_by_element(backend):
    run = Run(STRINGS, backend)
    assert run.status == Status.POWER_OFF
    assert run.words == (0xFFFFFFFF, 0xFFFFFFFF, 0xFF, 0x90009)
    assert run.stats["inout"] == 3 + 2 + 1 + 1


@pytest.mark.parametrize(
    ("kernel", "line"),
    [
        (STRINGS, "Unhandled outw 0x1234"),
        ("mov $0x1234, %dx\n mov $0x90000, %edi\n mov $2, %ecx\n rep insb\n", "Unhandled inb 0x1234"),
        ("mov $0x1234, %dx\n outl %eax, %dx\n", "Unhandled outl 0x1234"),
        ("inb $0xea, %al\n", "Unhandled inb 0x00ea"),
    ],
    ids=["outs", "ins", "out", "in"],
)
def test_with_strict_io_the_first_of_them_ends_the_machine(backend, kernel, line, capfd):
    assert Run(kernel, backend, **{"x86.strictio": True}).status == Status.ERROR
    assert capfd.readouterr().err.splitlines() == [line]


def test_strict_io_lets_every_port_of_the_board_through(backend):
    """Linux touches these; none of them is nobody's."""
    ports = (0x20, 0x21, 0x40, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0x84, 0x92, 0xA0, 0xB2, 0x400, 0x404, 0x408,
             0x4D0, 0x4D1, 0xCF8, 0xCF9, 0xCFC)  # fmt: skip
    kernel = "".join(f"mov ${port:#x}, %dx\n inb %dx, %al\n" for port in ports) + "power_off\n"
    assert Run(kernel, backend, **{"x86.strictio": True}).status == Status.POWER_OFF


READ_ELCR = """
.macro read_elcr to
    mov $0x4d1, %dx
    inb %dx, %al
    mov %al, %ah
    mov $0x4d0, %dx
    inb %dx, %al
    mov %eax, \\to
.endm
"""


def test_the_sci_is_level_triggered_in_the_elcr_and_a_guest_may_set_more(backend):
    kernel = """
    read_elcr 0x90000
    out8 0x4d0, 0xff
    out8 0x4d1, 0xff
    read_elcr 0x90004
    power_off
    """
    before, after = (word & 0xFFFF for word in Run(READ_ELCR + kernel, backend).words[:2])
    assert before == 1 << 9
    assert after == 0xDEF8, "timer, keyboard, cascade, clock and FPU stay edge triggered"


def test_a_legacy_slot_has_its_interrupt_in_configuration_space_and_in_the_elcr(backend):
    kernel = """
    mov $0xcf8, %dx
    mov $0x8000183c, %eax
    outl %eax, %dx
    mov $0xcfc, %dx
    inl %dx, %eax
    mov %eax, 0x90000
    read_elcr 0x90004
    power_off
    """
    variables = {"pci.0.3.0.device": "hostbridge", "pci.0.3.0.legacy": "true"}
    line, level = (word & 0xFFFF for word in Run(READ_ELCR + kernel, backend, **variables).words[:2])
    assert line == 1 << 8 | 5, "INTA, interrupt 5"
    assert level == 1 << 9 | 1 << 5


@pytest.mark.parametrize(
    "write", ["out8 0x64, 0xfe", "out16 0x64, 0x12fe", "out8 0xcf9, 6", "out8 0xcf9, 0xe", "out8 0x92, 1"]
)
def test_a_reset_by_a_port_is_a_reset_and_counted(backend, write):
    run = Run(f"{write}\n", backend)
    assert (run.status, run.stats["io-reset"]) == (Status.RESET, 1)


@pytest.mark.parametrize("write", ["out8 0xcf9, 2", "out8 0x64, 0xff", "out8 0x92, 2", "out16 0x404, 0x2400"])
def test_what_is_no_reset_and_no_power_off_lets_the_guest_go_on(backend, write):
    run = Run(f"{write}\n movl $0x600d, 0x90000\n power_off\n", backend)
    assert (run.status, run.words[0], run.stats["io-reset"]) == (Status.POWER_OFF, 0x600D, 0)


# RDMSR, WRMSR

WRITE_MSR = """
    mov $0x12345, %ecx
    mov $0x55667788, %eax
    mov $0x11223344, %edx
    wrmsr
    rdmsr
    mov %eax, 0x90000
    mov %edx, 0x90004
    power_off
"""


def test_an_unknown_msr_is_named_and_faults(backend, capfd):
    assert Run(WRITE_MSR, backend).status == Status.TRIPLE_FAULT
    assert capfd.readouterr().err.splitlines() == ["wrmsr to register 0x12345(0x1122334455667788) on vcpu 0"]


def test_with_w_it_is_named_reads_zero_and_takes_the_write(backend, capfd):
    run = Run(WRITE_MSR, backend, **{"x86.strictmsr": False})
    assert run.status == Status.POWER_OFF
    assert run.words[:2] == (0, 0)
    assert (run.stats["rdmsr"], run.stats["wrmsr"]) == (1, 1)
    assert capfd.readouterr().err.splitlines() == [
        "wrmsr to register 0x12345(0x1122334455667788) on vcpu 0",
        "rdmsr to register 0x12345 on vcpu 0",
    ]


# INST_EMUL

HPET = """
    mov 0xfed00000, %eax
    mov %eax, 0x90000
    movzwl 0xfed00002, %eax
    mov %eax, 0x90004
    movl $1, 0xfed00010
    orl $2, 0xfed00010
    mov 0xfed00010, %eax
    mov %eax, 0x90008
    power_off
"""


def test_instructions_reach_a_chip_in_memory(backend):
    run = Run(HPET, backend)
    assert run.words[:3] == (0x8086A201, 0x8086, 3)
    assert run.stats["inst-emul"] == 6


@pytest.mark.parametrize(
    "access", ["mov 0x90000000, %eax", "movl $1, 0x90000000", "orb $1, 0x90000000", "movl $1, 0xb0000000"]
)
def test_memory_that_is_nobodys_ends_the_machine(backend, access, capfd):
    assert Run(f"{access}\n power_off\n", backend).status == Status.ERROR
    assert capfd.readouterr().err.startswith("Unhandled memory access to 0x")


def test_an_instruction_that_cannot_be_decoded_is_named(backend, capfd):
    """The engine decodes everything; KVM without hardware virtualization does not know the x87's FLD1."""
    if backend.probe().accelerated:
        pytest.skip(f"backend {backend.name} executes every instruction of this test")
    assert Run("nop\n fld1\n", backend).status == Status.ERROR
    assert capfd.readouterr().err.startswith("Failed to emulate instruction at 0x100012: bytes d9 e8")


# HLT, PAUSE


def test_halts_are_counted_if_they_exit(backend):
    run = Run("sti\n hlt\n", backend, end_after_ns=50_000_000, **{"x86.vmexit_on_hlt": True})
    assert run.status == Status.POWER_OFF
    if backend.name != "kvm":  # a vCPU that halts sleeps inside KVM
        assert run.stats["hlt"] == 1


def test_halts_do_not_exit_unasked(backend):
    assert Run("sti\n hlt\n", backend, end_after_ns=50_000_000).stats["hlt"] == 0


@pytest.mark.parametrize("asked", [False, True])
def test_pauses_are_counted_if_they_exit(asked):
    backend = find_backend("soft")
    run = Run("pause\n pause\n pause\n power_off\n", backend, **{"x86.vmexit_on_pause": asked})
    assert run.stats["pause"] == (3 if asked else 0)


# SPINDOWN_CPU


def test_an_init_message_to_the_only_cpu_takes_it_out_and_that_is_a_reset():
    """KVM keeps such a CPU to itself; on the engine it leaves, and nobody is left."""
    kernel = """
    movl $0x1ff, 0xfee000f0
    movl $0, 0xfee00310
    movl $0x4500, 0xfee00300
0:  jmp 0b
    """
    run = Run(kernel, find_backend("soft"), end_after_ns=5_000_000_000, **{"x86.x2apic": False})
    assert run.status == Status.RESET


def test_every_counter_of_bhyve_is_there(backend):
    names = "bogus bogus-switch hlt pause mtrap inst-emul cpu-switch-rotate cpu-switch-direct io-reset"
    assert set(names.split()) <= set(Run("power_off\n", backend).stats)
