"""What a drill found out: each figure is printed together with what it has to be, and ends the drill if it isn't."""

import time
from typing import Final

from repository.units import format_size


class DrillError(AssertionError):
    """A figure is not what is promised."""


class Report:
    """Prints as it goes, so that a drill that hangs shows where."""

    def __init__(self) -> None:
        self._begun_s: Final = time.monotonic()
        self.figures = 0

    def say(self, text: str) -> None:
        """What is being done; nothing is claimed by it."""
        print(f"{self._seconds()}  {text}", flush=True)

    def holds(self, what: str, found: object, ok: bool, wanted: str = "") -> None:
        """A figure or fact `found`, and whether it is as `wanted`. Raises DrillError where not."""
        self.figures += 1
        text = f"{what}: {found}" + (f" ({wanted})" if wanted else "")
        print(f"{self._seconds()}    {'ok' if ok else 'FAILED'}  {text}", flush=True)
        if not ok:
            raise DrillError(text)

    def equals(self, what: str, found: object, wanted: object) -> None:
        """`found` has to be `wanted`."""
        self.holds(what, found, found == wanted, "" if found == wanted else f"must be {wanted}")

    def at_least(self, what: str, nbytes: int, wanted_bytes: int) -> None:
        """A size that must reach `wanted_bytes`."""
        self.holds(what, size(nbytes), nbytes >= wanted_bytes, f"at least {size(wanted_bytes)}")

    def at_most(self, what: str, nbytes: int, wanted_bytes: int) -> None:
        """A size that must not exceed `wanted_bytes`."""
        self.holds(what, size(nbytes), nbytes <= wanted_bytes, f"at most {size(wanted_bytes)}")

    def _seconds(self) -> str:
        return f"{time.monotonic() - self._begun_s:6.1f} s"


def size(nbytes: int) -> str:
    """Bytes for people and to the byte."""
    return f"{format_size(nbytes)} = {nbytes:,} bytes" if abs(nbytes) >= 10_000 else f"{nbytes:,} bytes"
