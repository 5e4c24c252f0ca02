"""What a check found, as values."""

from dataclasses import dataclass
from enum import StrEnum

from repository.units import format_size


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

    @property
    def is_sound(self) -> bool:
        """No errors; warnings may be there."""
        return not any(finding.severity is Severity.ERROR for finding in self.findings)

    def text(self) -> str:
        """The report for people."""
        lines = [finding.text() for finding in self.findings]
        data = f", {format_size(self.read_bytes)} of data read" if self.read_bytes else ""
        verdict = "no errors" if self.is_sound else "there is damage"
        lines.append(f"{self.packs} packs, {self.records} records, {self.snapshots} snapshots{data}: {verdict}")
        return "\n".join(lines)
