"""The host's CPU as the oracle of the engine: random user-level instructions run natively and in the engine.

``forms`` reads the engine's opcode table; ``generate`` makes *blobs*, a few instructions with a jump to the end, and
states to start them from; a *case* is a blob with a state. A batch of cases is one memory image (``layout``). It runs
in two processes: in a static program made for it (``host``, ``host.S``) at full speed, and as a ring-3 program in a
guest of the engine (``engine``, ``kernel.S``), at the same virtual addresses and around the same bytes of
``harness.S``. Registers, flags, x87, SSE and AVX state, memory and the fault that ended a case, if one did, are
compared bit for bit (``compare``). What differs is run again alone, made smaller (``shrink``) and shown (``report``).

    python -m tests.vmm.soft.native --cases 1000000 --seed 7
"""
