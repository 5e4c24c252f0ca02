"""Full packs wait for a sync to seal them; but what their records take in memory meanwhile is bounded."""

from pathlib import Path

import pytest

from repository.format.record import RecordKind
from repository.packs import writer
from tests.support.stores import new_volume, open_store

RECORDS = 120_000
"""Three packs of CONFIG and a little, of the smallest records."""
AT_ONCE = 4096


@pytest.mark.slow
@pytest.mark.parametrize(("retired_records", "at_most"), [(1, 2), (RECORDS, 4)])
def test_packs_full_of_tiny_records_are_sealed_by_the_put_that_filled_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retired_records: int, at_most: int
) -> None:
    """A million tiny files fill packs by their number: four of them waited, with 260,000 entries in memory."""
    monkeypatch.setattr(writer, "RETIRED_RECORDS", retired_records)
    store = open_store(new_volume(tmp_path / "repo"))
    most = 0
    with store.lease() as lease:
        for first in range(0, RECORDS, AT_ONCE):
            store.put(RecordKind.CHUNK, [b"%d" % number for number in range(first, first + AT_ONCE)], lease)
            waiting = sum(bool(pack.records) and not pack.sealed for pack in store.packs())
            most = max(most, waiting)
    store.close()
    assert most == at_most
