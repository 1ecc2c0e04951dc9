"""``virtio-9p``: a folder of the host's, shared with the guest (9P2000.L over virtio).

``device`` is the virtio device: rings, threads, flushes. ``wire`` is the form of the messages; ``server`` hands each to
what does it, in ``session``, ``content``, ``attributes`` and ``names``. ``fids`` are the client's handles, ``files`` is
the shared folder and why nothing leads out of it, ``locks`` are record locks, ``calls`` what of Linux Python has no
words for.
"""
