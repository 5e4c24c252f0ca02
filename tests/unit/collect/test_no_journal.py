"""Whoever never mounted a repository has no journal: what it needs is known without reading a pack's directory."""

from dataclasses import replace
from typing import cast

import pytest

from repository.format.catalog import Head
from repository.format.journal import JournalMark
from repository.roots import journal_numbers
from repository.store import RecordStore


class Untouchable:
    """A store that nothing may be asked of."""

    def packs(self) -> list[object]:
        raise AssertionError("the packs were asked for")


def test_without_a_mount_no_pack_is_looked_at() -> None:
    assert not journal_numbers(cast(RecordStore, Untouchable()), Head())


@pytest.mark.parametrize(
    "head",
    [replace(Head(), clean=False), replace(Head(), mounted_ns=1), replace(Head(), journal=JournalMark(0, 7))],
    ids=["made anew by rebuild", "mounted once", "a journal begun"],
)
def test_with_any_sign_of_one_they_are(head: Head) -> None:
    with pytest.raises(AssertionError, match="packs"):
        journal_numbers(cast(RecordStore, Untouchable()), head)
