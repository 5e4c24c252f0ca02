"""A record store in memory that counts what is asked of it."""

from collections import Counter
from collections.abc import Sequence

import blake3

from repository.errors import MissingRecordError
from repository.format.record import Place, Record, RecordKind, Stored
from repository.ids import RecordId, RecordNumber
from repository.leases import Lease
from repository.ledger import Claim


class MemoryStore:
    """Deduplicates by id like the real one. `reads` and `puts` count records by kind, `looked_up` ids."""

    def __init__(self) -> None:
        self.records: dict[RecordId, Record] = {}
        self.numbers: dict[RecordId, RecordNumber] = {}
        self.reads: Counter[RecordKind] = Counter()
        self.puts: Counter[RecordKind] = Counter()
        self.looked_up = 0

    def lease(self) -> Lease:
        return Lease(lambda _: None)

    def put(
        self, kind: RecordKind, payloads: Sequence[bytes], lease: Lease, claim: Claim | None = None
    ) -> list[Stored]:
        stored: list[Stored] = []
        for payload in payloads:
            self.puts[kind] += 1
            record_id = RecordId(blake3.blake3(bytes([kind]) + payload).digest())
            new = record_id not in self.records
            if new:
                self.records[record_id] = Record(kind, bytes(payload))
                self.numbers[record_id] = RecordNumber(len(self.numbers))
            stored.append(Stored(record_id, self.numbers[record_id], len(payload), len(payload) + 64, new))
        lease.update(one.number for one in stored)
        return stored

    def read_many(self, ids: Sequence[RecordId]) -> list[Record]:
        missing = [one for one in ids if one not in self.records]
        if missing:
            raise MissingRecordError(f"Record {missing[0].hex()} is nowhere in the packs.")
        found = [self.records[one] for one in ids]
        self.reads.update(record.kind for record in found)
        return found

    def read_located(self, ids: Sequence[RecordId], places: Sequence[Place | None]) -> list[Record]:
        assert places == [Place(self.numbers[one], 0, 0, 0) for one in ids]
        return self.read_many(ids)

    def locate(self, ids: Sequence[RecordId]) -> list[Place | None]:
        self.looked_up += len(ids)
        return [Place(self.numbers[one], 0, 0, 0) if one in self.numbers else None for one in ids]

    def find_numbers(self, ids: Sequence[RecordId]) -> list[RecordNumber | None]:
        self.looked_up += len(ids)
        return [self.numbers.get(one) for one in ids]

    def forget_counts(self) -> None:
        self.reads.clear()
        self.puts.clear()
        self.looked_up = 0


class CountingStore(MemoryStore):
    """Counts calls too: in a mount each is a hop to a worker."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def read_many(self, ids: Sequence[RecordId]) -> list[Record]:
        self.calls += 1
        return super().read_many(ids)
