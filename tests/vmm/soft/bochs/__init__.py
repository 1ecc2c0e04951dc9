"""System-level comparison of the CPU engine with Bochs's CPU, which is written from the manuals independently.

``scenarios`` makes a whole machine state and one instruction from a seed; ``subject`` sets it in the engine through the
contract of ``vmm.api`` and steps once, ``server`` does the same with Bochs in a process of its own (it crashes when its
interpreter ends); ``compare`` holds what must be equal, and what Bochs is known to do differently from the manual.
"""
