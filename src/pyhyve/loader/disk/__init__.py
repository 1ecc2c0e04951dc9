"""Finds and reads a guest's own kernel: in a directory of the host, or on a disk image that nobody has to mount.

``tree`` is what a file system is to its reader; ``host``, ``ext`` and ``fat`` are three of them, read only.
``partitions`` says where on a disk a file system may begin. ``grub``, ``entries`` and ``bootconfig`` read what names
the kernel.
"""
