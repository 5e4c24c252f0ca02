"""What stores the records of one tree."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from repository.format.inode import Inode, NodeKind
from repository.format.record import RecordKind, Stored
from repository.format.xattrs import INLINE_XATTRS_MAX_BYTES, encode_xattrs
from repository.ids import RecordId
from repository.leases import Lease
from repository.ledger import Claim


class RecordSink(Protocol):
    """What the writer asks of the store."""

    def put(
        self, kind: RecordKind, payloads: Sequence[bytes], lease: Lease, claim: Claim | None = None
    ) -> list[Stored]: ...


class Pen(NamedTuple):
    """Stores records of one tree."""

    store: RecordSink
    lease: Lease
    claim: Claim | None

    def put(self, kind: RecordKind, payloads: Sequence[bytes]) -> list[RecordId]:
        return [one.id for one in self.store.put(kind, payloads, self.lease, self.claim)] if payloads else []

    def put_xattrs(self, inodes: Sequence[Inode]) -> tuple[list[bytes | None], list[RecordId]]:
        """Encoded xattrs of each inode, None for those that went into records of their own; and these."""
        if not any(inode.xattrs for inode in inodes):
            return [b""] * len(inodes), []
        inline: list[bytes | None] = []
        long: list[bytes] = []
        for inode in inodes:
            encoded = encode_xattrs(inode.xattrs) if inode.xattrs and inode.kind is not NodeKind.LINK else b""
            if len(encoded) > INLINE_XATTRS_MAX_BYTES:
                long.append(encoded)
                inline.append(None)
            else:
                inline.append(encoded)
        return inline, self.put(RecordKind.XATTRS, long)
