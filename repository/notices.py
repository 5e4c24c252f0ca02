"""Where long work tells about single files."""

from typing import Protocol


class Notices(Protocol):
    """Told from several threads."""

    def problem(self, path: bytes, why: str) -> None:
        """A file could not be stored or restored as it is; the command will end with exit code 3."""
        ...

    def note(self, sentence: str) -> None:
        """Something worth a line that is not a failure."""
        ...
