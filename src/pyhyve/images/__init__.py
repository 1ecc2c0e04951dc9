"""Builds small bootable guests from a distribution's packages."""

from __future__ import annotations

from pyhyve.images.cache import default_cache_dir
from pyhyve.images.debian import GuestImage, build_debian
from pyhyve.images.error import ImageError

__all__ = ["GuestImage", "ImageError", "build_debian", "default_cache_dir"]
