"""``bhyve``: a virtual machine from bhyve's command line (bhyve(8)).

The options are read as getopt(3) reads them and do nothing but write variables of the configuration tree; what a
value means, and whether there is a device for it, is the machine's business. Only ``-h`` and broken command lines are
answered here, so nothing heavy is imported before the tree is complete.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from pyhyve.config import Config, parse_memsize
from pyhyve.errors import ConfigError, PyhyveError, Status, UsageError

USAGE = """\
usage: bhyve [-aAbCDeHIPSuwWxY] [-c [cpus=]N[,sockets=N][,cores=N][,threads=N]]
             [-f name,string|file=DATA] [-g PORT] [-G [w][ADDR:]PORT] [-k FILE]
             [-K LAYOUT] [-l lpcdev,conf] [-m SIZE] [-n id,size,cpus] [-o NAME=VALUE]
             [-p [VCPU:]HOSTCPU] [-r FILE] [-s slot,driver,conf] [-S slot,driver,conf]
             [-U UUID] vmname
       bhyve -k FILE
       bhyve -l help | -s help | -h

  -a  local APICs start in xAPIC mode          -A  build ACPI tables
  -b  attach the bvm console                   -c  number of virtual CPUs, default 1
  -C  keep guest memory in core dumps          -D  destroy the machine at power-off
  -e  stop at a port that nobody emulates      -f  add an item to the firmware configuration
  -g  bridge the guest's debug port to TCP     -G  gdb server; w: wait for the debugger
  -h  this text                                -H  give the host CPU back when the guest idles
  -I  accepted; an I/O APIC is always there    -k  read a configuration file
  -K  keyboard layout                          -l  LPC device: com1,stdio  com2,/dev/pts/3 ...
  -m  guest memory, default 256M               -n  memory domain
  -o  set a configuration variable             -p  pin virtual CPUs to host CPUs
  -P  exit on PAUSE                            -r  resume from a snapshot
  -s  PCI device: 0,hostbridge  31,lpc ...     -S  a legacy PCI device; alone: wire guest memory
  -u  the real-time clock keeps UTC            -U  UUID of the machine
  -w  ignore unknown MSRs                      -W  virtio signals with MSI, not MSI-X
  -x  local APICs start in x2APIC mode         -Y  no MP table

Linux guests: -o boot.kernel=FILE -o boot.initrd=FILE -o boot.cmdline=TEXT
CPU backend:  -o vmm.backend=auto|kvm|soft
"""

# getopt(3) notation; -S is told apart by what follows it.
OPTIONS = "aAbc:CDef:g:G:hHIk:K:l:m:n:o:p:Pr:s:S:uU:wWxY"
COM_PORTS = ("com1", "com2", "com3", "com4")
LPC_DEVICES = (*COM_PORTS, "bootrom", "tpm", "fwcfg", "pc-testdev")


class Usage(Exception):
    """Print the usage text and end with ``status``."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status


class Help(Exception):
    """Print ``text`` on standard output and end with status 0."""


def split_options(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """``(letter, argument)`` pairs and the positional arguments, as getopt(3) finds them.

    Reading stops at ``--`` or at the first word that is no option. Raises ``Usage``.
    """
    found: list[tuple[str, str]] = []
    words = list(argv)
    at = 0
    while at < len(words):
        word = words[at]
        if word == "--":
            at += 1
            break
        if len(word) < 2 or word[0] != "-":
            break
        at += 1
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            place = OPTIONS.find(letter)
            if place < 0 or letter == ":":
                print(f"bhyve: unknown option -- {letter}", file=sys.stderr)
                raise Usage(Status.POWER_OFF)
            if OPTIONS[place + 1 : place + 2] != ":":
                found.append((letter, ""))
                continue
            following = letters or (words[at] if at < len(words) else None)
            if letter == "S" and not _is_legacy_slot(following):
                found.append(("S", ""))
                continue
            if following is None:
                print(f"bhyve: option requires an argument -- {letter}", file=sys.stderr)
                raise Usage(Status.POWER_OFF)
            if not letters:
                at += 1
            letters = ""
            found.append((letter, following))
    return found, words[at:]


def _is_legacy_slot(text: str | None) -> bool:
    """Whether what follows ``-S`` is ``slot,driver`` and not another option or the machine's name."""
    return text is not None and "," in text and text.split(",", 1)[0].replace(":", "").isdigit()


def set_cpus(config: Config, text: str) -> None:
    """``N`` or ``[cpus=]N,sockets=N,cores=N,threads=N``; the product must agree."""
    values: dict[str, int] = {}
    for number, part in enumerate(text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            if number:
                raise UsageError(f"invalid cpu topology '{text}'")
            name, value = "cpus", part
        if name not in ("cpus", "sockets", "cores", "threads") or not value.isdigit() or int(value) < 1:
            raise UsageError(f"invalid cpu topology '{text}'")
        values[name] = int(value)
    product = values.get("sockets", 1) * values.get("cores", 1) * values.get("threads", 1)
    if len(values) > ("cpus" in values) and values.setdefault("cpus", product) != product:
        raise UsageError(f"invalid cpu topology '{text}': sockets * cores * threads is {product}, not {values['cpus']}")
    for name, count in values.items():
        config.set(name, str(count))


def set_lpc_device(config: Config, text: str) -> None:
    """``-l com1,stdio``, ``-l bootrom,FILE[,VARS]`` and so on."""
    if text == "help":
        raise Help("\n".join(LPC_DEVICES))
    name, comma, conf = text.partition(",")
    if name not in LPC_DEVICES or (name != "pc-testdev" and not conf) or (name == "pc-testdev" and comma):
        raise UsageError(f"invalid lpc device configuration '{text}'")
    if name in COM_PORTS:
        config.set(f"lpc.{name}.path", conf)
    elif name == "bootrom":
        rom, comma, variables = conf.partition(",")
        config.set("lpc.bootrom", rom)
        if comma:
            config.set("lpc.bootvars", variables)
    elif name == "tpm":
        kind, _, path = conf.partition(",")
        config.set("lpc.tpm.type", kind)
        config.set("lpc.tpm.path", path)
    elif name == "fwcfg":
        config.set("lpc.fwcfg", conf)
    else:
        config.set("lpc.pc-testdev", "true")


def parse_slot(text: str) -> tuple[int, int, int]:
    """``S``, ``S:F`` or ``B:S:F`` as (bus, slot, function). Raises ``ValueError``."""
    fields = text.split(":")
    if not 1 <= len(fields) <= 3 or not all(f.isascii() and f.isdigit() for f in fields):
        raise ValueError(text)
    numbers = [int(f) for f in fields]
    if len(numbers) == 1:
        numbers = [0, numbers[0], 0]
    elif len(numbers) == 2:
        numbers = [0, *numbers]
    bus, slot, function = numbers
    if bus > 255 or slot > 31 or function > 7:
        raise ValueError(text)
    return bus, slot, function


def set_pci_device(config: Config, text: str, *, legacy: bool = False) -> None:
    """``-s slot,driver,conf``; ``-S`` gives a device that signals with INTx."""
    if text == "help":
        from pyhyve.hw.registry import names

        raise Help("\n".join(names()))
    slot_text, comma, rest = text.partition(",")
    driver, _, conf = rest.partition(",")
    try:
        bus, slot, function = parse_slot(slot_text)
    except ValueError:
        comma = ""
    if not comma or not driver:
        raise ConfigError(
            f"invalid PCI slot info '{text}': it must be slot,driver[,conf] with slot S, S:F or B:S:F (0-255:0-31:0-7)"
        )
    node = f"pci.{bus}.{slot}.{function}"
    if f"{node}.device" in config:
        taken = config.raw(f"{node}.device")
        raise ConfigError(f"PCI slot {bus}:{slot}:{function} is already occupied by {taken}, not free for {driver}")
    config.set(f"{node}.device", driver)
    if legacy:
        config.set(f"{node}.legacy", "true")
    if conf:
        from pyhyve.hw.registry import find

        for name, value in find(driver).parse_options(conf).items():
            config.set(f"{node}.{name}", value)


def set_gdb(config: Config, text: str) -> None:
    """``[w][addr:]PORT``."""
    rest = text
    if rest.startswith("w"):
        config.set("gdb.wait", "true")
        rest = rest[1:]
    address, colon, port = rest.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"invalid gdb server '{text}': it must be [w][ADDR:]PORT")
    if colon:
        config.set("gdb.address", address)
    config.set("gdb.port", port)


def set_memory(config: Config, text: str) -> None:
    try:
        parse_memsize(text)
    except ValueError:
        raise UsageError(f"invalid memsize '{text}'") from None
    config.set("memory.size", text)


def set_pin(config: Config, text: str) -> None:
    """``N`` pins vCPU i to host CPU N+i; ``vcpu:hostcpu`` pins one."""
    vcpu, colon, host = text.rpartition(":")
    if not host.isdigit() or (colon and not vcpu.isdigit()):
        raise UsageError(f"invalid pinning '{text}': it must be HOSTCPU or VCPU:HOSTCPU")
    config.set(f"vcpu.{vcpu}.cpuset" if colon else "vcpu.first_cpu", host)


def set_port(config: Config, text: str) -> None:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise UsageError(f"invalid debug port '{text}'")
    config.set("dbgport", text)


def set_uuid(config: Config, text: str) -> None:
    digits = text.replace("-", "")
    if [len(p) for p in text.split("-")] != [8, 4, 4, 4, 12] or not all(c in "0123456789abcdefABCDEF" for c in digits):
        raise UsageError(f"invalid UUID '{text}'")
    config.set("uuid", text)


def _setter(name: str, value: str = "true") -> Callable[[Config, str], None]:
    return lambda config, _text: config.set(name, value)


def _value(name: str) -> Callable[[Config, str], None]:
    return lambda config, text: config.set(name, text)


def _usage(_config: Config, _text: str) -> None:
    raise Usage(0)


def _legacy_or_wired(config: Config, text: str) -> None:
    if text:
        set_pci_device(config, text, legacy=True)
    else:
        config.set("memory.wired", "true")


ACTIONS: dict[str, Callable[[Config, str], None]] = {
    "a": _setter("x86.x2apic", "false"),
    "A": _setter("acpi_tables"),
    "b": _setter("bvmcons"),
    "c": set_cpus,
    "C": _setter("memory.guest_in_core"),
    "D": _setter("destroy_on_poweroff"),
    "e": _setter("x86.strictio"),
    "f": _value("fwcfg.item"),
    "g": set_port,
    "G": set_gdb,
    "h": _usage,
    "H": _setter("x86.vmexit_on_hlt"),
    "I": lambda _config, _text: None,
    "k": Config.load_file,
    "K": _value("keyboard.layout"),
    "l": set_lpc_device,
    "m": set_memory,
    "n": _value("domains.item"),
    "o": Config.assign,
    "p": set_pin,
    "P": _setter("x86.vmexit_on_pause"),
    "r": _value("restore"),
    "s": set_pci_device,
    "S": _legacy_or_wired,
    "u": _setter("rtc.use_localtime", "false"),
    "U": set_uuid,
    "w": _setter("x86.strictmsr", "false"),
    "W": _setter("virtio_msix", "false"),
    "x": _setter("x86.x2apic", "true"),
    "Y": _setter("x86.mptable", "false"),
}


def parse(argv: Sequence[str]) -> Config:
    """The configuration that a command line describes, not yet frozen.

    Raises ``Usage``, ``Help``, or a ``PyhyveError`` with the message and status that bhyve gives.
    """
    config = Config()
    found, positional = split_options(argv)
    for letter, text in found:
        ACTIONS[letter](config, text)
    if len(positional) > 1:
        raise Usage(Status.POWER_OFF)
    if positional:
        config.set("name", positional[0])
    if not config.get("name"):
        raise Usage(Status.POWER_OFF)
    return config


def run(argv: Sequence[str]) -> int:
    """Run one machine to its end; the status is that of bhyve(8)."""
    try:
        config = parse(argv)
        if config.get_bool("config.dump", False):
            sys.stdout.write(config.dump())
            sys.stdout.flush()
            return Status.POWER_OFF
        from pyhyve.runner import run_machine

        return run_machine(config)
    except Usage as usage:
        sys.stderr.write(USAGE)
        return usage.status
    except Help as text:
        print(text)
        return 0
    except PyhyveError as error:
        print(f"bhyve: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return 128 + 2


def main() -> int:
    """The console script."""
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
