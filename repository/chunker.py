"""Content-defined cuts (FastCDC), through pyfastcdc's compiled module."""

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from repository.errors import UsageError
from repository.format.config import ChunkerParameters
from repository.format.record import Buffer

if TYPE_CHECKING:
    import pyfastcdc

_COMPILED_MODULE: Final = "pyfastcdc.cy"


class Chunker:
    """Cuts streams at places that depend on their content only. Thread safe; frees the GIL while it scans."""

    def __init__(self, parameters: ChunkerParameters) -> None:
        from pyfastcdc import FastCDC  # late: most short commands cut nothing

        if not FastCDC.__module__.startswith(_COMPILED_MODULE):
            raise UsageError(
                "pyfastcdc was installed without its compiled part, which is a hundred times slower; "
                "install a wheel of pyfastcdc, or a C compiler and reinstall it."
            )
        self.parameters: Final = parameters
        self._new: Final = FastCDC
        self._local: Final = threading.local()

    def lengths(self, buffer: Buffer, *, final: bool) -> list[int]:
        """Lengths in bytes of the chunks of `buffer`, in order.

        A cut before the buffer's end never moves when more bytes follow; so without `final` the last piece, whose
        end may only be the buffer's, is left out. All pieces together are the whole buffer when `final`.
        """
        if not len(buffer):
            return []
        lengths = [chunk.length for chunk in self._cuts(buffer)]
        if not final:
            lengths.pop()
        return lengths

    def _cuts(self, buffer: Buffer) -> "Iterator[pyfastcdc.Chunk]":
        fastcdc: pyfastcdc.FastCDC | None = getattr(self._local, "fastcdc", None)
        if fastcdc is None:  # one instance is not safe in several threads
            small, middle, large = self.parameters
            fastcdc = self._new(avg_size=middle, min_size=small, max_size=large)
            self._local.fastcdc = fastcdc
        return fastcdc.cut_buf(buffer)


def is_zero(buffer: Buffer) -> bool:
    """Whether every byte is zero. Looks at eight bytes first, which settles most."""
    if any(buffer[:8]):
        return False
    return not np.frombuffer(buffer, np.uint8).any()
