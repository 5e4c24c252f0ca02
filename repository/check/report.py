"""What a check found, as values."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from repository.check.affected import AFFECTED_MAX, Affected
from repository.units import format_size

NAMED_MAX: Final = 3
"""Snapshots named for an affected file; the rest are counted."""


class Severity(StrEnum):
    """`WARNING`: nothing is lost (a cache, one of two copies). `ERROR`: something cannot be read."""

    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be. `place` names the file, and where in it; `what` says what is wrong."""

    severity: Severity
    place: str
    what: str

    def text(self) -> str:
        return f"{self.severity.value}: {self.place}: {self.what}"


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All findings, and how much was looked at. `read_bytes`: payloads whose ids were verified."""

    findings: tuple[Finding, ...]
    packs: int
    records: int
    snapshots: int
    read_bytes: int
    affected: tuple[Affected, ...] = ()
    """What of the files is lost with what was found; looked for only where something is damaged."""

    @property
    def is_sound(self) -> bool:
        """No errors; warnings may be there."""
        return not any(finding.severity is Severity.ERROR for finding in self.findings)

    def text(self) -> str:
        """The report for people."""
        lines = [finding.text() for finding in self.findings]
        lines += [_affected(one) for one in self.affected]
        if len(self.affected) >= AFFECTED_MAX:
            lines.append(f"affected: more than {AFFECTED_MAX:,} files; these are the first")
        data = f", {format_size(self.read_bytes)} of data read" if self.read_bytes else ""
        verdict = "no errors" if self.is_sound else "there is damage"
        lines.append(f"{self.packs} packs, {self.records} records, {self.snapshots} snapshots{data}: {verdict}")
        return "\n".join(lines)


def _affected(one: Affected) -> str:
    names = ", ".join(one.snapshots[:NAMED_MAX])
    more = len(one.snapshots) - NAMED_MAX
    text = one.path.decode("utf-8", "backslashreplace")
    path = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
    return f"affected: {path} in {names}{f' and {more} more' if more > 0 else ''}: {one.what}"
