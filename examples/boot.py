"""Boots a kernel on this terminal from a script, and tells how it ended.

    python examples/boot.py vmlinuz initrd
"""

import sys

from pyhyve import Config, Machine, PyhyveError, Status


def main() -> int:
    if len(sys.argv) != 3:
        print("usage: boot.py KERNEL INITRD", file=sys.stderr)
        return Status.USAGE
    config = Config.of(
        {
            "name": "example",
            "memory.size": "512M",
            "acpi_tables": True,
            "pci.0.0.0.device": "hostbridge",
            "pci.0.31.0.device": "lpc",
            "lpc.com1.path": "stdio",
            "boot.kernel": sys.argv[1],
            "boot.initrd": sys.argv[2],
            "boot.cmdline": "console=ttyS0",
        }
    )
    try:
        with Machine(config) as machine:
            print(f"running on {machine.backend_reason}", file=sys.stderr)
            machine.start()
            status = machine.wait()
            exits = machine.stats()["vcpu0.inout"]
    except PyhyveError as error:
        print(error, file=sys.stderr)
        return error.status
    print(f"ended with {Status(status).name}, after {exits:.0f} port accesses", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
