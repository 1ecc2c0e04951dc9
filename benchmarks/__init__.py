"""What pyhyve takes, side by side with ``qemu-system-x86_64 -accel tcg`` on the same guests, in one run.

    python -m benchmarks [--quick] [--runs N] [NAME...]

Every benchmark alternates between the two, so that a slow minute of the host hits both; a figure is the median of the
runs, a ratio is a ratio of medians. ``measure`` is a result and how it is told, ``machines`` how the two are started,
``console`` talks to them, ``counters`` asks ours for its counters; ``probe`` is a machine of ours that tells about
itself, in a process of its own. One module a benchmark: ``startup``, ``boot``, ``exits``, ``work``, ``control``,
``idle``, ``smp``, ``debian_disk``, ``debugger``, ``table``, ``costs``, ``growth``, ``disk``, ``network``.
"""
