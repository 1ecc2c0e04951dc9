"""``bhyve``: a virtual machine from bhyve's command line (bhyve(8)).

The options (``options.py``) are read as getopt(3) reads them and do nothing but write variables of the configuration
tree. Only ``-h``, lists and broken command lines are answered here, so nothing heavy is imported before the tree is
complete.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pyhyve.commands import getopt
from pyhyve.commands.options import LETTERS, OPTIONS, Help, Usage, settle_cpus, usage
from pyhyve.config import Config, check_vm_name
from pyhyve.errors import ConfigError, PyhyveError, Status


def parse(argv: Sequence[str]) -> Config:
    """The configuration that a command line describes, not yet frozen.

    Raises ``Usage``, ``Help``, or a ``PyhyveError`` with the message and status that bhyve gives.
    """
    config = Config()
    try:
        positional = getopt.read(argv, LETTERS, lambda letter, text: OPTIONS[letter].act(config, text))
    except getopt.BadOption as error:
        print(f"bhyve: {error}", file=sys.stderr)
        raise Usage(Status.POWER_OFF) from None
    if len(positional) > 1:
        raise Usage(Status.POWER_OFF)
    if positional:
        config.set("name", positional[0])
    if not config.get("name"):
        raise Usage(Status.POWER_OFF)
    check_vm_name(config.require("name"))
    settle_cpus(config)
    return config


def dump(config: Config) -> int:
    """``config.dump=1``: print the tree, but for that variable, so that ``-k`` runs what was printed."""
    config.unset("config.dump")
    sys.stdout.flush()
    data = os.fsencode(config.dump())
    try:
        while data:
            data = data[os.write(1, data) :]
    except OSError as error:
        raise ConfigError(f"cannot print the configuration: {error.strerror}") from None
    return Status.POWER_OFF


def run(argv: Sequence[str]) -> int:
    """Run one machine to its end; the status is that of bhyve(8)."""
    try:
        config = parse(argv)
        if config.get_bool("config.dump", False):
            return dump(config)
        from pyhyve.runner import run_machine

        return run_machine(config)
    except Usage as wanted:
        sys.stderr.write(usage())
        return wanted.status
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
