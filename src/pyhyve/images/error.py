"""The error of this room."""

from __future__ import annotations

from pyhyve.errors import PyhyveError


class ImageError(PyhyveError):
    """A guest image cannot be built on this host."""
