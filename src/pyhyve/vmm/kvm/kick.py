"""Getting a thread out of KVM_RUN, without any Python code in the signal's path.

KVM leaves the guest when its thread has a signal to handle, and only then (KVM API documentation §5,
``immediate_exit``). A handler installed through ``signal.signal`` would wake the main thread and run Python there for
every kick. So the handler is a libc function that takes an int and does nothing with it but arithmetic, ``abs``: the
signal interrupts KVM_RUN and is gone. It is sent to a kernel thread id; should that thread have ended, the call fails,
and should another of ours have its number, the signal does nothing there and its system call is restarted.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading

KICK_SIGNAL = signal.SIGRTMIN
_SYS_TGKILL = 234  # x86-64

_libc = ctypes.CDLL(None)
_lock = threading.Lock()
_installed = False


def install() -> None:
    """Give the kick signal its empty handler, once for the process."""
    global _installed
    with _lock:
        if not _installed:
            _libc.signal.restype = ctypes.c_void_p
            _libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
            _libc.signal(int(KICK_SIGNAL), ctypes.cast(_libc.abs, ctypes.c_void_p))
            _libc.syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long)
            _installed = True


def unblock() -> None:
    """Let the calling thread receive the kick signal."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {KICK_SIGNAL})


def send(thread: int) -> None:
    """Interrupt the system call that kernel thread ``thread`` of this process is in."""
    _libc.syscall(_SYS_TGKILL, os.getpid(), thread, int(KICK_SIGNAL))
