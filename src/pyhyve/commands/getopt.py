"""Command lines as getopt(3) of FreeBSD reads them: bundled letters, ``-m512M`` and ``-m 512M``, ``--`` as the end.

An option is a letter that takes no argument, one, or one only if what follows looks like one (bhyve's ``-S``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Takes = bool | Callable[[str], bool]
"""Whether a letter takes an argument; a function is asked about the text that follows."""


class BadOption(Exception):
    """A letter that does not exist, or one without its argument; the text says which."""


def read(argv: Sequence[str], letters: Mapping[str, Takes], act: Callable[[str, str], None]) -> list[str]:
    """Call ``act(letter, argument)`` for each option, in order, and return the positional arguments.

    Reading stops behind ``--`` or at the first word that is no option. Raises ``BadOption``, after it has acted on the
    options before: so ``-h`` is answered although nonsense follows.
    """
    at = 0
    while at < len(argv):
        word = argv[at]
        if word == "--":
            at += 1
            break
        if len(word) < 2 or word[0] != "-":
            break
        at += 1
        rest = word[1:]
        while rest:
            letter, rest = rest[0], rest[1:]
            takes = letters.get(letter)
            if takes is None:
                raise BadOption(f"unknown option -- {letter}")
            following = rest or (argv[at] if at < len(argv) else None)
            if not (takes(following or "") if callable(takes) else takes):
                act(letter, "")
                continue
            if following is None:
                raise BadOption(f"option requires an argument -- {letter}")
            if not rest:
                at += 1
            rest = ""
            act(letter, following)
    return list(argv[at:])
