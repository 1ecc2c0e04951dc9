"""libslirp by ctypes: the structures and functions of ``<slirp/libslirp.h>``, version 4.7 (configuration version 4).

The library is found when a machine first asks for it. Its calls keep Python's global lock (``PyDLL``): each is short,
never blocks, and most call back, so that giving the lock away and fetching it again would cost more than the call.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import re
from enum import IntFlag

from pyhyve.errors import DeviceError

CONFIG_VERSION = 4
PACKAGE = "libslirp0"
_SONAME = "libslirp.so.0"


class Poll(IntFlag):
    IN = 1
    OUT = 2
    PRI = 4
    ERR = 8
    HUP = 16


class InAddr(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_ubyte * 4),)

    @classmethod
    def of(cls, packed: bytes) -> InAddr:
        """From four bytes in network order."""
        return cls.from_buffer_copy(packed)


class In6Addr(ctypes.Structure):
    _fields_ = (("words", ctypes.c_uint32 * 4),)


class Config(ctypes.Structure):
    """``SlirpConfig``."""

    _fields_ = (
        ("version", ctypes.c_uint32),
        ("restricted", ctypes.c_int),
        ("in_enabled", ctypes.c_bool),
        ("vnetwork", ctypes.c_uint32),
        ("vnetmask", ctypes.c_uint32),
        ("vhost", ctypes.c_uint32),
        ("in6_enabled", ctypes.c_bool),
        ("vprefix_addr6", In6Addr),
        ("vprefix_len", ctypes.c_uint8),
        ("vhost6", In6Addr),
        ("vhostname", ctypes.c_char_p),
        ("tftp_server_name", ctypes.c_char_p),
        ("tftp_path", ctypes.c_char_p),
        ("bootfile", ctypes.c_char_p),
        ("vdhcp_start", ctypes.c_uint32),
        ("vnameserver", ctypes.c_uint32),
        ("vnameserver6", In6Addr),
        ("vdnssearch", ctypes.POINTER(ctypes.c_char_p)),
        ("vdomainname", ctypes.c_char_p),
        ("if_mtu", ctypes.c_size_t),
        ("if_mru", ctypes.c_size_t),
        ("disable_host_loopback", ctypes.c_bool),
        ("enable_emu", ctypes.c_bool),
        ("outbound_addr", ctypes.c_void_p),
        ("outbound_addr6", ctypes.c_void_p),
        ("disable_dns", ctypes.c_bool),
        ("disable_dhcp", ctypes.c_bool),
    )


SendPacket = ctypes.PYFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
GuestError = ctypes.PYFUNCTYPE(None, ctypes.c_char_p, ctypes.c_void_p)
ClockGetNs = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)
TimerNew = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
TimerFree = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
TimerMod = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
PollFd = ctypes.PYFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p)
Notify = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
InitCompleted = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
TimerNewOpaque = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
AddPoll = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
GetRevents = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)


class Callbacks(ctypes.Structure):
    """``SlirpCb``."""

    _fields_ = (
        ("send_packet", SendPacket),
        ("guest_error", GuestError),
        ("clock_get_ns", ClockGetNs),
        ("timer_new", TimerNew),
        ("timer_free", TimerFree),
        ("timer_mod", TimerMod),
        ("register_poll_fd", PollFd),
        ("unregister_poll_fd", PollFd),
        ("notify", Notify),
        ("init_completed", InitCompleted),
        ("timer_new_opaque", TimerNewOpaque),
    )


_FUNCTIONS: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "slirp_new": (
        ctypes.c_void_p,
        (ctypes.POINTER(Config), ctypes.POINTER(Callbacks), ctypes.c_void_p),
    ),
    "slirp_cleanup": (None, (ctypes.c_void_p,)),
    "slirp_pollfds_fill": (
        None,
        (ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32), AddPoll, ctypes.c_void_p),
    ),
    "slirp_pollfds_poll": (None, (ctypes.c_void_p, ctypes.c_int, GetRevents, ctypes.c_void_p)),
    "slirp_input": (None, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int)),
    "slirp_handle_timer": (None, (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)),
    "slirp_add_hostfwd": (
        ctypes.c_int,
        (ctypes.c_void_p, ctypes.c_int, InAddr, ctypes.c_int, InAddr, ctypes.c_int),
    ),
}


@functools.cache
def library() -> ctypes.PyDLL:
    """The library. Raises ``DeviceError`` with the package's name where it is missing, or too old."""
    name = ctypes.util.find_library("slirp") or _SONAME
    try:
        slirp = ctypes.PyDLL(name, use_errno=True)
    except OSError:
        raise DeviceError(f"network backend user: libslirp is not installed (Debian: apt install {PACKAGE})") from None
    slirp.slirp_version_string.restype = ctypes.c_char_p
    version = slirp.slirp_version_string().decode()
    if [int(part) for part in re.findall(r"\d+", version)[:2]] < [4, 7]:
        raise DeviceError(f"network backend user: libslirp {version} is too old, it must be 4.7 or newer")
    for function, (result, arguments) in _FUNCTIONS.items():
        getattr(slirp, function).restype = result
        getattr(slirp, function).argtypes = arguments
    return slirp
