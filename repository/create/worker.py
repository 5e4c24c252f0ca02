"""What a worker of the crew does: it reads small files, cuts, hashes and compresses. It knows what the repository had
when it was forked, and leaves out the payloads of that.
"""

import resource
from collections.abc import Callable, Sequence
from typing import Final

from repository.chunker import Chunker
from repository.codec import Codec, Packed, Payload
from repository.create.errand import decode_request, encode_reply
from repository.create.reading import TOGETHER_MAX_BYTES, Answer, Whole, all_pieces, read_whole
from repository.create.recent import Recent
from repository.create.source import Directory
from repository.format.record import Buffer, RecordKind
from repository.ids import RecordId

KnownIds = Callable[[Sequence[RecordId]], Sequence[bool]]
"""Which of these records a put would find."""


def disk_reads() -> int:
    """How often this process has had to wait for a disk, in a unit of the kernel's."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_inblock


class ReadingWork:
    """The work of `crew.hire`, for requests of `errand`."""

    def __init__(self, chunker: Chunker, codec: Codec, known: KnownIds, recent: Recent) -> None:
        self._chunker: Final = chunker
        self._codec: Final = codec
        self._known: Final = known
        self._recent: Final = recent
        self._fetched = disk_reads()

    def __call__(self, request: memoryview, descriptors: Sequence[int]) -> list[Buffer]:
        answers: list[Answer] = []
        left_bytes = TOGETHER_MAX_BYTES
        wanted = list(decode_request(request, descriptors))
        self._fetch(wanted)
        for directory, name in wanted:
            answer = read_whole(self._chunker, directory, name) if left_bytes > 0 else None
            if isinstance(answer, Whole):
                left_bytes -= answer.attributes.size
            answers.append(answer)
        return encode_reply(answers, self._pack(all_pieces(answers)))

    def _fetch(self, wanted: Sequence[tuple[Directory, bytes]]) -> None:
        """Where the files of before had to come from a disk, ask for all of these at once: they wait together then."""
        before, self._fetched = self._fetched, disk_reads()
        if self._fetched != before:
            for directory, name in wanted:
                directory.will_need(name)

    def _pack(self, pieces: list[Buffer]) -> list[Packed]:
        id_of = self._codec.id_of
        ids = [id_of(RecordKind.CHUNK, piece) for piece in pieces]
        fresh: dict[RecordId, int] = {}
        if ids:
            for item, (record_id, known, recent) in enumerate(
                zip(ids, self._known(ids), self._recent.which(ids), strict=True)
            ):
                if not (known or recent):
                    fresh.setdefault(record_id, item)
        payloads: list[Payload | None] = [None] * len(pieces)
        for item in fresh.values():  # one by one: nobody waits for this interpreter, and one buffer for all is 6 MB
            payloads[item] = self._codec.compress(pieces[item])
        return [
            Packed(record_id, len(piece), payload)
            for record_id, piece, payload in zip(ids, pieces, payloads, strict=True)
        ]
