"""The engine's side: a guest whose ring 3 is the region, in a process of its own, for a crash to be a result too.

As a program (``python -m tests.vmm.soft.native.engine FD``) it is that process: it sends the descriptor of the guest's
memory through socket FD, then serves batches on its standard input and output.
"""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
import subprocess
import sys

from pyhyve.memory import GuestMemory
from pyhyve.vmm import cpuid
from pyhyve.vmm.api import VirtualCpu
from pyhyve.vmm.exits import Bogus, InOut
from pyhyve.vmm.registers import Access, Reg, Segment, SegmentName, Table
from tests import guests
from tests.vmm.soft.native import layout
from tests.vmm.soft.native.process import Runner
from tests.vmm.soft.oracle import end_with_parent, same_modules

# Guest-physical memory: the kernel's own below 2 MiB, which it sees at KERNEL; the region from 4 MiB on
KERNEL = 0xFFFF_8000_0000_0000
GDT, IDT, TSS, CODE, STACK_TOP, TABLES = 0x1000, 0x2000, 0x3000, 0x10000, 0x20000, 0x100000
REGION = 0x400000
MEMORY_SIZE = 16 << 20

_P, _W, _U, _PS, _NX = 1, 2, 4, 1 << 7, 1 << 63
# Linux's selectors and control registers: user code can see them
_USER_CODE, _USER_DATA, _TASK = 0x33, 0x2B, 0x40
_CR0 = 0x80050033
_CR4 = 0x50620
_EFER = 0xD01


def start() -> Runner:
    """Start the engine in a process of its own."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env=same_modules(),
                bufsize=0,
            )
        _, rights, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
    if not rights:
        raise AssertionError(f"the engine's process does not start: exit {process.wait()}")
    fd = array.array("i", rights[0][2])[0]
    try:
        image = mmap.mmap(fd, layout.REGION, offset=REGION)
    finally:
        os.close(fd)
    return Runner("engine", process, image)


def _access(kind: int, *bits: Access, dpl: int = 0) -> int:
    word = kind | dpl << 5 | Access.PRESENT
    for bit in bits:
        word |= bit
    return int(word)


_FLAT = 0xFFFFFFFF
_USER_CS = Segment(_USER_CODE, 0, _FLAT, _access(0xB, Access.S, Access.LONG, Access.GRANULARITY, dpl=3))
_USER_SS = Segment(_USER_DATA, 0, _FLAT, _access(3, Access.S, Access.DB, Access.GRANULARITY, dpl=3))


def _write_kernel(memory: GuestMemory) -> None:
    """GDT, IDT, TSS and the code of ``kernel.S``."""
    kernel_code, kernel_data = 0x00AF9B000000FFFF, 0x00CF93000000FFFF
    user_data, user_code = 0x00CFF3000000FFFF, 0x00AFFB000000FFFF
    memory.write(GDT, struct.pack("<8Q", 0, 0, kernel_code, kernel_data, 0, user_data, user_code, 0))
    entry = KERNEL + CODE
    for vector in (*range(32), layout.GATE):
        handler = entry + 16 * min(vector, 32)
        dpl = 3 if vector in (3, 4, layout.GATE) else 0
        gate = (handler & 0xFFFF, 0x10, 0, 0x8E | dpl << 5, handler >> 16 & 0xFFFF, handler >> 32, 0)
        memory.write(IDT + 16 * vector, struct.pack("<HHBBHII", *gate))
    memory.write_uint(TSS + 4, KERNEL + STACK_TOP, 8)
    memory.write_uint(TSS + 0x66, 0x68, 2)
    memory.write(CODE, layout.build("kernel.S", entry))


def _write_tables(memory: GuestMemory) -> None:
    """Page tables: the first 2 MiB for the kernel, and the region with its slots for everybody."""
    pml4, low, high, directory, kernel, pages = (TABLES + 0x1000 * n for n in range(6))
    memory.write_uint(pml4, low | _P | _W | _U, 8)
    memory.write_uint(pml4 + 8 * 256, high | _P | _W, 8)
    memory.write_uint(high, kernel | _P | _W, 8)
    memory.write_uint(kernel, _P | _W | _PS, 8)
    memory.write_uint(low + 8 * (layout.BASE >> 30), directory | _P | _W | _U, 8)
    for offset in range(0, layout.REGION, 4096):
        va = layout.BASE + offset
        table = pages + 0x1000 * ((va >> 21) - (layout.BASE >> 21))
        memory.write_uint(directory + 8 * (va >> 21 & 511), table | _P | _W | _U, 8)
        entry = REGION + offset | _P | _W | _U
        if va >= layout.IN:
            entry |= _NX
        if va >= layout.SLOTS:
            page = (va - layout.SLOTS) % layout.SLOT >> 12
            entry = 0 if page == 0 else entry & ~_W if page == 3 else entry
        memory.write_uint(table + 8 * (va >> 12 & 511), entry, 8)


def _enter(vcpu: VirtualCpu) -> None:
    """Put the vCPU in front of the harness."""
    vcpu.set_registers({Reg.CR0: _CR0, Reg.CR3: TABLES, Reg.CR4: _CR4, Reg.EFER: _EFER, Reg.XCR0: layout.XSTATE_MASK})
    vcpu.set_registers({Reg.RIP: layout.HARNESS, Reg.RSP: layout.STACK, Reg.RFLAGS: 0x202})
    vcpu.set_segment(SegmentName.CS, _USER_CS)
    vcpu.set_segment(SegmentName.SS, _USER_SS)
    for name in (SegmentName.DS, SegmentName.ES, SegmentName.FS, SegmentName.GS):
        vcpu.set_segment(name, Segment(0, 0, _FLAT, _access(3, Access.S, Access.DB, Access.GRANULARITY, dpl=3)))
    vcpu.set_segment(SegmentName.TR, Segment(_TASK, KERNEL + TSS, 0x67, _access(0xB)))
    vcpu.set_segment(SegmentName.LDTR, Segment(0, 0, 0, int(Access.UNUSABLE)))
    vcpu.set_table("gdtr", Table(KERNEL + GDT, 0x3F))
    vcpu.set_table("idtr", Table(KERNEL + IDT, 0xFFF))


def serve(answer: socket.socket) -> None:
    """Run batches until standard input ends."""
    end_with_parent()
    memory = GuestMemory(MEMORY_SIZE)
    hypervisor = guests.find_backend("soft")
    vm = hypervisor.create("native", memory, 1)
    vm.set_cpuid(cpuid.shape(vm.supported_cpuid(), cpuid.Topology(cores=1)))
    vcpu = vm.create_vcpu(0)
    _write_kernel(memory)
    _write_tables(memory)
    memory.write(REGION, layout.build("harness.S", layout.HARNESS))
    vm.memory_written(0, MEMORY_SIZE)
    _enter(vcpu)
    socket.send_fds(answer, [b"\x01"], [memory.fd])
    code, batches = REGION + layout.CODE - layout.BASE, 0
    while os.read(0, 1):
        vm.memory_written(code, layout.CODE_SIZE)
        memory.write_uint(REGION + layout.FINISH - layout.BASE, layout.GUEST_FINISH, 8)
        batches += 1
        if batches % 4 == 0:
            vcpu.set_registers({})  # flushes the TLB: without that, accesses would find their pages there for ever
        while isinstance(result := vcpu.run(), Bogus):
            pass
        if isinstance(result, InOut) and result.port == guests.END:
            os.write(1, b"\x01")
            continue
        state = vcpu.get_registers((Reg.RIP, Reg.RFLAGS, Reg.CR2, Reg.RAX, Reg.RCX))
        text = " ".join(f"{name}={value:#x}" for name, value in state.items())
        if isinstance(result, InOut):
            text = f"a fault in the harness, vector rax, at rcx: {text}"
        os.write(1, f"engine: {result} {text}".encode()[:190])
        return
    vm.close()


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        serve(sock)
