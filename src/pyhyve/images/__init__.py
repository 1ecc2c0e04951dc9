"""Builds small bootable guests from a distribution's packages."""

from __future__ import annotations

from pyhyve.images.cache import default_cache_dir
from pyhyve.images.debian import GuestImage, build_debian
from pyhyve.images.debian_disk import DiskImage, build_debian_disk
from pyhyve.images.error import ImageError

__all__ = ["DiskImage", "GuestImage", "ImageError", "build_debian", "build_debian_disk", "default_cache_dir"]
