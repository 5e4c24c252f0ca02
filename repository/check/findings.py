"""What is gathered while a repository is verified."""

from typing import Final

from repository.check.report import Finding, Severity

FINDINGS_MAX: Final = 10_000
"""Findings kept: who has more needs the first ones, and memory has a bound."""


class Findings:
    """Gathers findings up to FINDINGS_MAX."""

    def __init__(self) -> None:
        self.kept: list[Finding] = []
        self.more = 0
        """How many are not kept, and the worst of them."""
        self.worst = Severity.WARNING

    def error(self, place: str, what: str) -> None:
        """Something cannot be read."""
        self._add(Finding(Severity.ERROR, place, what))

    def warning(self, place: str, what: str) -> None:
        """Something is not as it should be, and nothing is lost."""
        self._add(Finding(Severity.WARNING, place, what))

    def _add(self, finding: Finding) -> None:
        if len(self.kept) < FINDINGS_MAX:
            self.kept.append(finding)
        else:
            self._leave_out(1, finding.severity)

    def _leave_out(self, count: int, severity: Severity) -> None:
        self.more += count
        if severity is Severity.ERROR:
            self.worst = severity

    def take(self, others: "Findings") -> None:
        """Add all that `others` gathered."""
        for finding in others.kept:
            self._add(finding)
        self._leave_out(others.more, others.worst)

    def all(self) -> tuple[Finding, ...]:
        """What was found, and how many more there are."""
        if not self.more:
            return tuple(self.kept)
        rest = Finding(self.worst, "check", f"{self.more} further findings are not listed")
        return (*self.kept, rest)
