"""What a volume can do, as letters, and what that means to whoever keeps a repository there. Pure.

The class of a volume: `A` everything; `B` no punching of holes; `C` no allocation of room; `BC` neither.
"""

from typing import Final

NO_ALLOCATION: Final = "allocation of room"
NO_PUNCHING: Final = "punching of holes"
NO_PERMISSIONS: Final = "permission bits"
"""Things that a volume may lack. The last changes no class."""
_LETTERS: Final = {NO_PUNCHING: "B", NO_ALLOCATION: "C"}
_MEANS: Final = {
    NO_PUNCHING: "room comes back in whole packs",
    NO_ALLOCATION: "room is allocated by writing it, so that copying in writes everything twice",
    NO_PERMISSIONS: "whoever can read the disk can read the repository",
}


def class_of(lacks: tuple[str, ...]) -> str:
    """The class of a volume that lacks these things."""
    return "".join(letter for what, letter in _LETTERS.items() if what in lacks) or "A"


def lacks_of(volume_class: str) -> tuple[str, ...]:
    """What a volume of this class lacks."""
    return tuple(what for what, letter in _LETTERS.items() if letter in volume_class)


def not_promised(volume_class: str, *, private: bool) -> str | None:
    """One sentence on what is not promised on a volume of this class; None where everything is.

    `private`: whether files there keep their permission bits.
    """
    lacks = [*lacks_of(volume_class), *([] if private else [NO_PERMISSIONS])]
    if not lacks:
        return None
    what = ", ".join(lacks[:-1]) + (" and " if lacks[1:] else "") + lacks[-1]
    return f"This volume lacks {what}: {'; '.join(_MEANS[one] for one in lacks)}."


def described(volume_class: str) -> str:
    """The class for people: its letters and what it lacks."""
    lacks = lacks_of(volume_class)
    return f"class {volume_class}" + (f" (no {', no '.join(lacks)})" if lacks else "")
