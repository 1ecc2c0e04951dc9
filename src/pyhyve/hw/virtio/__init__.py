"""Devices that a guest drives through queues in its own memory (Virtual I/O Device, OASIS, version 1.2)."""
