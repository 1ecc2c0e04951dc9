"""Several vCPUs of one guest at work on one thing, on every backend (tests/guests/smp.S).

On a backend that tells of start-up IPIs a vCPU's thread begins there, as in ``VcpuSet``; else it waits in ``run``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pyhyve.vmm.api import ApicMode, Capability, Chip, Hypervisor, VirtualCpu
from pyhyve.vmm.exits import Bogus, Exit, SpindownCpu, SpinupAp, Suspended, SuspendReason
from tests.guests import DATA, Guest, assemble, boot_guest, is_end

LOCKS, INTERRUPTS, SHOOTDOWN, CROSS_CODE, LIVE_PATCH, FRESH_CODE, RESTART, ORDER, NEW_CODE = range(1, 10)
ORG = 0x10000


class Party:
    """A guest on several vCPUs, each in a thread of its own but the first."""

    def __init__(self, hypervisor: Hypervisor, test: int, cpus: int, rounds: int, apic: ApicMode) -> None:
        # The software KVM of some hosts emulates each of these instructions by itself.
        slow = hypervisor.name == "kvm" and not hypervisor.probe().accelerated
        image = assemble("smp", ORG, TEST=test, CPUS=cpus, ROUNDS=max(3, rounds // 200) if slow else rounds)
        self.guest: Guest = boot_guest(hypervisor, image, cpus=cpus, apic=apic)
        self.vcpus: list[VirtualCpu] = [self.guest.vcpu]
        self.unexpected: list[Exit] = []
        self.ended = False
        self.spindowns = 0
        self._threads: dict[int, threading.Thread] = {}
        for index in range(1, cpus):
            vcpu = self.guest.vm.create_vcpu(index)
            vcpu.set_apic_mode(apic)
            self.vcpus.append(vcpu)
        if Chip.IOAPIC in self.guest.vm.provides:
            for index in range(1, cpus):
                self._start(index)

    def _start(self, index: int) -> None:
        self._threads[index] = threading.Thread(target=self._work, args=(self.vcpus[index],))
        self._threads[index].start()

    def _work(self, vcpu: VirtualCpu) -> None:
        while not self.ended:
            found = vcpu.run()
            if isinstance(found, SpindownCpu):
                self.spindowns += 1
                return
            if not isinstance(found, Bogus):
                self.unexpected.append(found)
                return

    def run(self) -> list[int]:
        """Run the guest to its end; its first four results."""
        try:
            while not is_end(found := self.guest.next()):
                assert isinstance(found, SpinupAp), found
                if found.vcpu in self._threads:
                    self._threads[found.vcpu].join(10)
                self.vcpus[found.vcpu].start(found.vector)
                self._start(found.vcpu)
        finally:
            self.ended = True
            for index, thread in self._threads.items():
                while thread.is_alive():
                    self.vcpus[index].kick()
                    thread.join(0.05)
        assert self.unexpected == []
        return self.guest.words(4, 4)


@pytest.fixture(params=[2, 4])
def party(request: pytest.FixtureRequest, hypervisor: Hypervisor) -> Iterator[type]:
    parties: list[Party] = []

    class Start(Party):
        def __init__(self, test: int, rounds: int, apic: ApicMode = ApicMode.XAPIC) -> None:
            super().__init__(hypervisor, test, request.param, rounds, apic)
            self.cpus: int = request.param
            self.rounds = max(3, rounds // 200) if self.guest.software_kvm else rounds
            parties.append(self)

    yield Start
    for one in parties:
        one.guest.close()


def test_locked_instructions_are_atomic_also_across_lines_and_pages(party: type) -> None:
    work = party(LOCKS, 20_000)
    work.run()
    total = work.cpus * work.rounds
    memory = work.guest.memory
    assert [memory.read_uint(DATA + at, 8) for at in (0, 8, 16, 24, 0x7C)] == [total, total, 3 * total, 8, total]
    if not work.guest.software_kvm:  # whose emulator does not lock what crosses a page
        assert memory.read_uint(0x600FFD, 8) == total


def test_interrupts_between_processors_all_arrive(party: type) -> None:
    work = party(INTERRUPTS, 2_000)
    work.run()
    assert work.guest.memory.read_uint(0x30080, 4) == work.rounds * (work.cpus - 1)


def test_no_processor_sees_a_page_that_it_has_given_up(party: type) -> None:
    assert party(SHOOTDOWN, 1_000).run()[3] == 0


def test_code_that_another_processor_wrote_is_run_as_written(party: type) -> None:
    assert party(CROSS_CODE, 5_000).run()[3] == 0


def test_code_that_changes_under_a_running_processor_is_never_a_mixture(party: type) -> None:
    assert party(LIVE_PATCH, 20_000).run()[3] == 0


def test_fresh_pages_of_code_are_seen_by_all(party: type) -> None:
    assert party(FRESH_CODE, 500).run()[3] == 0


def test_code_that_begins_to_run_while_it_is_written_is_run_as_written_in_the_end(party: type) -> None:
    assert party(NEW_CODE, 500).run()[3] == 0


def test_a_processor_can_be_stopped_by_init_and_started_again(party: type) -> None:
    work = party(RESTART, 50)
    work.run()
    assert work.guest.memory.read_uint(DATA, 4) >= work.rounds
    if Chip.IOAPIC not in work.guest.vm.provides:
        assert work.spindowns >= work.rounds


def test_stores_are_seen_in_their_order(party: type) -> None:
    assert party(ORDER, 200_000).run()[3] == 0


def test_a_machine_whose_processors_have_all_halted_for_good_says_so(hypervisor: Hypervisor) -> None:
    guest = boot_guest(hypervisor, assemble("    cli\n    hlt\n", ORG))
    if not guest.vm.capability(Capability.HLT_EXIT):
        guest.close()
        pytest.skip("the backend has no capability HLT_EXIT")
    guest.vcpu.set_capability(Capability.HLT_EXIT, True)
    guest.next()
    assert guest.next() == Suspended(SuspendReason.HALT)
    guest.close()
