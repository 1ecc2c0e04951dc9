"""Debian's stock kernel, booted to a shell and driven through its console as a user would."""

import hashlib
import re
import signal
import sys

import pexpect
import pytest

from pyhyve.images.debian import build_debian
from pyhyve.images.error import ImageError
from pyhyve.vmm.kvm import KvmHypervisor
from tests.conftest import find_backend

PROMPT = "root@debian:~# "
# How the kernel's log shows that something went wrong (lib/bug.c, kernel/panic.c, arch/x86/mm/fault.c).
TROUBLE = re.compile(r"BUG[: ]|WARNING: CPU|Oops|Call Trace|general protection|unchecked MSR|lockup|detected stall")

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def image():
    try:
        return build_debian()
    except ImageError as error:
        pytest.skip(f"no Debian guest: {error}")


@pytest.fixture(params=["kvm", "soft"])
def guest(request, image):
    """A booted guest at its prompt."""
    find_backend(request.param)
    if request.param == "kvm" and not KvmHypervisor().probe().accelerated:
        pytest.skip("backend kvm: no hardware virtualization, Linux would take minutes")
    options = "-A -c 1 -m 512M -H -s 0,hostbridge -s 31,lpc -l com1,stdio"
    argv = ["-m", "pyhyve.commands.bhyve", *options.split(), "-o", f"vmm.backend={request.param}"]
    argv += ["-o", f"boot.kernel={image.kernel}", "-o", f"boot.initrd={image.initrd}"]
    child = pexpect.spawn(
        sys.executable, [*argv, "-o", "boot.cmdline=console=ttyS0", "vm0"], timeout=300, encoding="utf-8"
    )
    child.expect_exact(PROMPT)
    yield child
    child.close(force=True)


def command(guest, text):
    """What ``text`` prints, typed at the prompt."""
    guest.sendline(text)
    guest.expect_exact(text + "\r\n")
    guest.expect_exact(PROMPT)
    return guest.before.replace("\r\n", "\n")


def end(guest):
    guest.expect(pexpect.EOF)
    guest.wait()
    return guest.exitstatus


def test_a_shell_works_and_the_log_is_clean_and_power_off_is_status_1(guest, image):
    assert command(guest, "uname -r") == f"{image.version}\n"
    numbers = "".join(f"{n}\n" for n in range(1, 10001)).encode()
    assert command(guest, "seq 1 10000 | sha256sum") == f"{hashlib.sha256(numbers).hexdigest()}  -\n"
    assert command(guest, "ls /proc/1/exe") == "/proc/1/exe\n"
    log = command(guest, "dmesg")
    assert not TROUBLE.search(log)
    guest.sendline("poweroff -f")
    assert end(guest) == 1


def test_reboot_is_status_0(guest):
    guest.sendline("reboot -f")
    assert end(guest) == 0


def test_sigterm_lets_the_guest_power_itself_off(guest):
    guest.kill(signal.SIGTERM)
    assert end(guest) == 1


def test_the_escape_key_leaves_a_shell(guest):
    guest.send("\x1dq")
    assert end(guest) == 1
