"""Reading records in a forked process, which sees the packs as they were, and opens files of its own."""

from collections.abc import Sequence

from repository.errors import MissingRecordError
from repository.format.record import Record
from repository.ids import RecordId
from repository.index.index import Index
from repository.packs.reader import PackReader, runs_of


class StillReader:
    """Reads each record from the place where it was known last: what cannot be read there is for the parent, which may
    look for other copies, and at packs that came since. Never lets go of anything that was inherited."""

    def __init__(self, reader: PackReader, index: Index) -> None:
        self._reader = reader
        self._index = index

    def read_many(self, ids: Sequence[RecordId]) -> list[Record]:
        """The records of `ids`, in their order. Raises MissingRecordError, DamagedError, VolumeError."""
        places = self._index.find(ids, to_share=False)
        records: dict[int, Record] = {}
        for run in runs_of(places):
            wanted = [place for item in run if (place := places[item]) is not None]
            records.update(zip(run, self._reader.read_run(wanted, [ids[item] for item in run]), strict=True))
        if len(records) < len(ids):
            raise MissingRecordError("A record is in no pack.")
        return [records[item] for item in range(len(ids))]
