"""Disk controllers."""
