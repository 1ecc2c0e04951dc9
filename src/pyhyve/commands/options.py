"""bhyve's options: the letter, the argument, the line of help and what it writes, each said once, in ``OPTIONS``.

An option writes variables of the configuration tree (bhyve_config(5)) and does nothing else; what a value means, and
whether there is a device for it, is the machine's business. ``usage`` prints the table. Nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Callable

from pyhyve.commands.getopt import Takes
from pyhyve.config import MAX_CPUSET, Config, parse_cpuset, parse_memsize, parse_number
from pyhyve.errors import ConfigError, UsageError

Action = Callable[[Config, str], None]

MAX_DOMAINS = 8


class Usage(Exception):
    """Print the usage text and end with ``status``."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status


class Help(Exception):
    """Print ``text`` on standard output and end with status 0."""


class Option:
    """One letter. ``argument`` is how usage shows its argument, empty if it takes none."""

    __slots__ = ("act", "argument", "help", "letter", "takes")

    def __init__(self, letter: str, argument: str, text: str, act: Action, takes: Takes | None = None) -> None:
        self.letter = letter
        self.argument = argument
        self.help = text
        self.act = act
        self.takes: Takes = bool(argument) if takes is None else takes


# -- values --


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


# -- what options write --


def _set(name: str, value: str = "true") -> Action:
    return lambda config, _text: config.set(name, value)


def _nothing(_config: Config, _text: str) -> None:
    """Accepted, and without effect."""


def _help(_config: Config, _text: str) -> None:
    raise Usage(0)


def set_cpus(config: Config, text: str) -> None:
    """``N`` or ``[cpus=]N,sockets=N,cores=N,threads=N``; an empty text is one of each, as in bhyve."""
    for part in text.split(",") if text else ("cpus=1", "sockets=1", "cores=1", "threads=1"):
        name, equals, value = part.partition("=")
        if not equals:
            name, value = "cpus", part
        try:
            if name not in ("cpus", "sockets", "cores", "threads"):
                raise ValueError(name)
            parse_number(value, 1, 0xFFFF)
        except ValueError:
            raise UsageError(f"invalid cpu topology '{text}'") from None
        config.set(name, value)


def settle_cpus(config: Config) -> None:
    """After all options: ``cpus`` follows from the topology, or must agree with it."""
    parts = [name for name in ("sockets", "cores", "threads") if name in config]
    if not parts:
        return
    product = 1
    for name in parts:
        product *= config.get_int(name, minimum=1, maximum=0xFFFF)
    if "cpus" not in config:
        config.set("cpus", str(product))
    cpus = config.get_int("cpus", minimum=1, maximum=0xFFFF)
    # without a number of sockets there are as many as it takes
    if cpus != product and ("sockets" in parts or cpus % product):
        given = ",".join(f"{name}={config.get(name)}" for name in ("cpus", *parts))
        raise UsageError(f"invalid cpu topology '{given}': sockets * cores * threads is {product}, not {cpus}")


def set_firmware_item(config: Config, text: str) -> None:
    """``[name=]NAME,string=TEXT`` or ``[name=]NAME,file=PATH``: the next of the nodes ``fwcfg.0``, ``fwcfg.1`` ..."""
    name, _, data = text.removeprefix("name=").partition(",")
    kind, equals, value = data.partition("=")
    if not name or kind not in ("string", "file") or not equals:
        raise UsageError(f"invalid firmware configuration item '{text}': it must be NAME,string=TEXT or NAME,file=PATH")
    node = f"fwcfg.{len(config.children('fwcfg'))}"
    config.set(f"{node}.name", name)
    config.set(f"{node}.{kind}", value)


def set_debug_port(config: Config, text: str) -> None:
    """``[ADDR:]PORT``."""
    config.set("dbgport", _check_port(text, text, "debug port", "[ADDR:]PORT"))


def set_gdb(config: Config, text: str) -> None:
    """``[w][ADDR:]PORT``."""
    rest = text.removeprefix("w")
    _check_port(rest, text, "gdb server", "[w][ADDR:]PORT")
    address, colon, port = rest.rpartition(":")
    if rest != text:
        config.set("gdb.wait", "true")
    if colon:
        config.set("gdb.address", address)
    config.set("gdb.port", port)


def _check_port(where: str, text: str, what: str, form: str) -> str:
    try:
        parse_number(where.rpartition(":")[2], 1, 0xFFFF)
    except ValueError:
        raise UsageError(f"invalid {what} '{text}': it must be {form}") from None
    return where


def set_keyboard(config: Config, text: str) -> None:
    """The name of a keyboard layout: a word, since bhyve makes a file name of it."""
    if not text.isascii() or not text.replace("_", "").replace("-", "").isalnum():
        raise UsageError(f"invalid keyboard layout '{text}'")
    config.set("keyboard.layout", text)


def set_memory(config: Config, text: str) -> None:
    """``512``, ``512M``, ``2g`` ..."""
    try:
        parse_memsize(text)
    except ValueError:
        raise UsageError(f"invalid memsize '{text}'") from None
    config.set("memory.size", text)


def set_domain(config: Config, text: str) -> None:
    """``ID,SIZE,CPUS[,POLICY]``: a NUMA domain. Domains with sizes together are the machine's memory."""
    fields = text.split(",")
    form = "it must be ID,SIZE,CPUS[,POLICY], with an ID from 0 to 7"
    try:
        ident = parse_number(fields[0], 0, MAX_DOMAINS - 1)
        size, cpus = fields[1], []
        if size:
            parse_memsize(size)
        policy = ""
        for at, field in enumerate(fields[2:], 2):
            if not field[:1].isdigit():  # a policy, such as prefer:0, may have commas of its own
                policy = ",".join(fields[at:])
                break
            cpus.append(field)
        parse_cpuset(",".join(cpus))
    except (IndexError, ValueError):
        raise UsageError(f"invalid memory domain '{text}': {form}") from None
    node = f"domains.{ident}"
    if node in config:
        raise ConfigError(f"memory domain {ident} is given twice")
    if size:
        config.set(f"{node}.size", size)
    config.set(f"{node}.cpus", ",".join(cpus))
    if policy:
        config.set(f"{node}.domain_policy", policy)


def set_pin(config: Config, text: str) -> None:
    """``N`` pins vCPU i to host CPU N+i; ``vcpu:hostcpu`` adds a host CPU to those that one vCPU may run on."""
    vcpu, colon, host = text.rpartition(":")
    try:
        parse_number(host, 0, MAX_CPUSET - 1)
        if colon:
            parse_number(vcpu, 0, 0xFFFF)
    except ValueError:
        raise UsageError(f"invalid pinning '{text}': it must be HOSTCPU or VCPU:HOSTCPU") from None
    if not colon:
        config.set("vcpu.first_cpu", host)
        return
    name = f"vcpu.{int(vcpu)}.cpuset"
    before = config.raw(name)
    config.set(name, f"{before},{host}" if before else host)


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


def set_legacy_or_wired(config: Config, text: str) -> None:
    """``-S slot,driver,conf``, or ``-S`` alone."""
    if text:
        set_pci_device(config, text, legacy=True)
    else:
        config.set("memory.wired", "true")


def is_legacy_slot(text: str) -> bool:
    """Whether what follows ``-S`` is ``slot,driver`` and not another option or the machine's name."""
    return "," in text and text.split(",", 1)[0].replace(":", "").isdigit()


def set_uuid(config: Config, text: str) -> None:
    """Eight, four, four, four and twelve hexadecimal digits."""
    digits = text.replace("-", "")
    if [len(p) for p in text.split("-")] != [8, 4, 4, 4, 12] or not all(c in "0123456789abcdefABCDEF" for c in digits):
        raise UsageError(f"invalid UUID '{text}'")
    config.set("uuid", text)


# -- devices on the LPC bridge --


def _pairs(config: Config, node: str, texts: list[str], known: tuple[str, ...]) -> None:
    """``name=value`` texts below ``node``. Raises ``ValueError`` for a name that is not known."""
    for text in texts:
        name, _, value = text.partition("=")
        if name not in known or not value:
            raise ValueError(text)
        config.set(f"{node}.{name}", value)


def _com(name: str) -> Action:
    def act(config: Config, conf: str) -> None:
        config.set(f"lpc.{name}.path", conf)

    return act


def _bootrom(config: Config, conf: str) -> None:
    rom, *more = conf.split(",")
    if more and "=" not in more[0]:
        config.set("lpc.bootvars", more.pop(0))
    config.set("lpc.bootrom", rom)
    _pairs(config, "lpc", more, ("fwcfg",))


def _debug_exit(config: Config, conf: str) -> None:
    config.set("lpc.debug-exit.port", "0xf4")
    _pairs(config, "lpc.debug-exit", conf.split(",") if conf else [], ("port", "size"))


def _fwcfg(config: Config, conf: str) -> None:
    if conf not in ("bhyve", "qemu"):
        raise ValueError(conf)
    config.set("lpc.fwcfg", conf)


def _tpm(config: Config, conf: str) -> None:
    kind, path, *more = conf.split(",")
    config.set("tpm.type", kind)
    config.set("tpm.path", path)
    _pairs(config, "tpm", more, ("version",))


LPC_DEVICES: dict[str, tuple[str, Action]] = {
    "bootrom": ("needs", _bootrom),
    "com1": ("needs", _com("com1")),
    "com2": ("needs", _com("com2")),
    "com3": ("needs", _com("com3")),
    "com4": ("needs", _com("com4")),
    "debug-exit": ("may have", _debug_exit),
    "fwcfg": ("needs", _fwcfg),
    "pc-testdev": ("has no", _set("lpc.pc-testdev")),
    "tpm": ("needs", _tpm),
}
"""Name: whether it needs a configuration behind the comma, and what writes its variables."""


def set_lpc_device(config: Config, text: str) -> None:
    """``-l com1,stdio``, ``-l bootrom,FILE`` and so on; names in either case."""
    if text == "help":
        raise Help("\n".join(LPC_DEVICES))
    name, comma, conf = text.partition(",")
    wants, act = LPC_DEVICES.get(name.lower(), ("", _nothing))
    try:
        if not wants or (wants == "needs" and not conf) or (wants == "has no" and comma):
            raise ValueError(text)
        act(config, conf)
    except ValueError:
        raise UsageError(f"invalid lpc device configuration '{text}'") from None


# -- the table --

OPTIONS: dict[str, Option] = {
    option.letter: option
    for option in (
        Option("a", "", "local APICs start in xAPIC mode", _set("x86.x2apic", "false")),
        Option("A", "", "build ACPI tables", _set("acpi_tables")),
        Option("b", "", "attach the bvm console to standard input and output", _set("bvmcons")),
        Option("c", "[cpus=]N[,sockets=N][,cores=N][,threads=N]", "virtual CPUs, default 1", set_cpus),
        Option("C", "", "keep guest memory in core dumps", _set("memory.guest_in_core")),
        Option("D", "", "destroy the machine at power-off", _set("destroy_on_poweroff")),
        Option("e", "", "stop at an I/O port that nobody emulates", _set("x86.strictio")),
        Option("f", "NAME,string|file=DATA", "add an item to the firmware configuration", set_firmware_item),
        Option("g", "[ADDR:]PORT", "bridge the guest's debug port to TCP", set_debug_port),
        Option("G", "[w][ADDR:]PORT", "gdb server; w: wait for the debugger", set_gdb),
        Option("h", "", "this text", _help),
        Option("H", "", "give the host CPU back when the guest idles", _set("x86.vmexit_on_hlt")),
        Option("I", "", "accepted; an I/O APIC is always there", _nothing),
        Option("k", "FILE", "read a configuration file", Config.load_file),
        Option("K", "LAYOUT", "keyboard layout", set_keyboard),
        Option("l", "help|DEVICE[,CONF]", "device on the LPC bridge: com1,stdio  com2,/dev/pts/3 ...", set_lpc_device),
        Option("m", "SIZE[K|M|G|T]", "guest memory, default 256M", set_memory),
        Option("n", "ID,SIZE,CPUS[,POLICY]", "NUMA domain", set_domain),
        Option("o", "NAME=VALUE", "set a configuration variable", Config.assign),
        Option("p", "[VCPU:]HOSTCPU", "pin virtual CPUs to host CPUs", set_pin),
        Option("P", "", "exit on PAUSE", _set("x86.vmexit_on_pause")),
        Option("r", "FILE", "resume from a snapshot", lambda config, text: config.set("restore", text)),
        Option("s", "help|SLOT,DRIVER[,CONF]", "PCI device: 0,hostbridge  31,lpc ...", set_pci_device),
        Option(
            "S", "[SLOT,DRIVER[,CONF]]", "legacy PCI device; alone: wire memory", set_legacy_or_wired, is_legacy_slot
        ),
        Option("u", "", "the real-time clock keeps UTC", _set("rtc.use_localtime", "false")),
        Option("U", "UUID", "UUID of the machine", set_uuid),
        Option("w", "", "ignore unknown MSRs", _set("x86.strictmsr", "false")),
        Option("W", "", "virtio signals with MSI, not MSI-X", _set("virtio_msix", "false")),
        Option("x", "", "local APICs start in x2APIC mode", _set("x86.x2apic", "true")),
        Option("Y", "", "no MP table", _set("x86.mptable", "false")),
    )
}
"""Every option by its letter."""

LETTERS = {letter: option.takes for letter, option in OPTIONS.items()}

_HELP_COLUMN = 20


def usage() -> str:
    """What ``-h`` prints."""
    flags = "".join(letter for letter, option in OPTIONS.items() if not option.argument)
    lines = [f"usage: bhyve [-{flags}] [OPTION ARGUMENT ...] vmname", "       bhyve -k FILE", ""]
    for option in OPTIONS.values():
        name = f"  -{option.letter} {option.argument}".rstrip()
        if len(name) >= _HELP_COLUMN:
            lines.append(name)
            name = ""
        lines.append(f"{name.ljust(_HELP_COLUMN)}  {option.help}")
    lines += [
        "",
        "Linux guests: -o boot.kernel=FILE -o boot.initrd=FILE -o boot.cmdline=TEXT",
        "CPU backend:  -o vmm.backend=auto|kvm|soft",
        "",
    ]
    return "\n".join(lines)
