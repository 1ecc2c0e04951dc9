"""The life of everything that has state: reset it, save it, restore it.

A saved state is a dictionary of plain values (numbers, strings, bytes, lists and dictionaries of them) with a
``version``. Times are saved as distances from the moment of saving, since clocks of two hosts do not agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from pyhyve.errors import DeviceError

State = dict[str, object]


class Stateful(Protocol):
    """A part of the machine with state."""

    def reset(self) -> None:
        """Go to the state after power-on."""

    def save(self) -> State:
        """The state, as plain values with a ``version``."""

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over a saved state. Raises ``DeviceError`` if it is not one of this part."""


def save_fields(part: object, names: Iterable[str], version: int = 1) -> State:
    """The named attributes of ``part``. Lists are copied."""
    state: State = {"version": version}
    for name in names:
        state[name] = _plain(getattr(part, name))
    return state


def restore_fields(part: object, names: Iterable[str], state: Mapping[str, object], version: int = 1) -> None:
    """Set the named attributes of ``part``, each of the type it has. Raises ``DeviceError`` before it changes any."""
    check_version(part, state, version)
    values = {}
    for name in names:
        value = _plain(state.get(name))
        if type(value) is not type(_plain(getattr(part, name))):
            raise DeviceError(f"saved state of {type(part).__name__} has no valid {name}")
        values[name] = value
    for name, value in values.items():
        setattr(part, name, value)


def check_version(part: object, state: Mapping[str, object], version: int = 1) -> None:
    """Raise ``DeviceError`` unless ``state`` has ``version``."""
    if state.get("version") != version:
        raise DeviceError(f"saved state of {type(part).__name__} has version {state.get('version')}, not {version}")


def saved_int(state: Mapping[str, object], name: str) -> int:
    """An integer of a saved state. Raises ``DeviceError`` if it is missing or another type."""
    value = state.get(name)
    if not isinstance(value, int):
        raise DeviceError(f"saved state has no valid {name}")
    return value


def saved_bytes(state: Mapping[str, object], name: str) -> bytes:
    """Bytes of a saved state. Raises ``DeviceError`` if they are missing or another type."""
    value = state.get(name)
    if not isinstance(value, bytes):
        raise DeviceError(f"saved state has no valid {name}")
    return value


def saved_list(state: Mapping[str, object], name: str, length: int | None = None) -> list[object]:
    """A list (of ``length``) of a saved state. Raises ``DeviceError`` if it is missing or another size."""
    value = state.get(name)
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise DeviceError(f"saved state has no valid {name}")
    return value


def saved_dict(value: object, name: str) -> Mapping[str, object]:
    """A nested state. Raises ``DeviceError`` if it is none."""
    if not isinstance(value, dict):
        raise DeviceError(f"saved state has no valid {name}")
    return value


def _plain(value: object) -> object:
    """The value without what must not go into a saved state: flags become numbers, lists are copied."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return value
