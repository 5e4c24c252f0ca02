"""What a reader asks of the crew, and is answered, as bytes: names of files; attributes, chunks, packed payloads.

Request: number of directories, how many names each has (all u32), the names with a NUL between. The directories
themselves travel as descriptors. Reply: `_HEAD`, a `_FILE` for each name, a `_CHUNK` for each chunk in the order of the
files, for each file its encoded xattrs and what is wrong with it, and the payloads of those chunks that come with one.
Both ends are the same program: nothing here is stored anywhere.
"""

import struct
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final, NamedTuple

from repository.codec import Packed, Payload
from repository.create.events import FileTask
from repository.create.reading import Answer, Attributes, Unread, Whole
from repository.create.source import Directory
from repository.format.record import Buffer
from repository.format.xattrs import decode_xattrs, encode_xattrs
from repository.ids import NO_ID, RecordId

_COUNT: Final = struct.Struct("<I")
_HEAD: Final = struct.Struct("<III")
"""How many files, chunks, and bytes of xattrs and problems."""
_FILE: Final = struct.Struct("<BxHIHxxIIIIQqqq")
_CHUNK: Final = struct.Struct("<I32sIIBQ")
_WHOLE, _UNREAD, _LARGE = range(3)
_NOT_SENT: Final = (1 << 32) - 1
_NOTHING: Final = Attributes(0, 0, 0, 0, 0, 0, 0, 0)
_directory_of = attrgetter("directory")


class Request(NamedTuple):
    """The parts of a request, and the descriptors that go with it."""

    parts: list[bytes]
    descriptors: list[int]


def encode_request(tasks: Sequence[FileTask]) -> Request:
    """Ask for all of `tasks`; whose directories are held while it is under way."""
    counts: list[bytes] = []
    descriptors: list[int] = []
    for directory, group in groupby(tasks, _directory_of):
        descriptors.append(directory.fd)
        counts.append(_COUNT.pack(sum(1 for _ in group)))
    names = b"\0".join([task.name for task in tasks])
    return Request([_COUNT.pack(len(counts)), *counts, names], descriptors)


def decode_request(request: memoryview, descriptors: Sequence[int]) -> Iterator[tuple[Directory, bytes]]:
    """What is to be read, in order. The directories belong to whoever sent the descriptors."""
    (runs,) = _COUNT.unpack_from(request)
    counts = struct.unpack_from(f"<{runs}I", request, _COUNT.size)
    names = iter(bytes(request[_COUNT.size * (runs + 1) :]).split(b"\0"))
    for descriptor, count in zip(descriptors, counts, strict=True):
        directory = Directory(descriptor, b"")
        for _ in range(count):
            yield directory, next(names)


def encode_reply(answers: Sequence[Answer], packed: Sequence[Packed]) -> list[Buffer]:
    """The parts of a reply; `packed`: the chunks of all that were read whole, in order."""
    files: list[bytes] = []
    chunks: list[bytes] = []
    texts: list[bytes] = []
    payloads: list[Buffer] = []
    chunk = iter(packed)
    for answer in answers:
        if isinstance(answer, Whole):
            status, found, offsets = _WHOLE, answer.attributes, answer.offsets
            xattrs = encode_xattrs(answer.xattrs) if answer.xattrs else b""
            problem = answer.problem.encode("utf-8", "surrogateescape") if answer.problem else b""
        else:
            status, found, offsets = _LARGE if answer is None else _UNREAD, _NOTHING, []
            xattrs = b""
            problem = b"" if answer is None else answer.problem.encode("utf-8", "surrogateescape")
        if xattrs or problem:
            texts += (xattrs, problem)
        files.append(_FILE.pack(status, len(offsets), len(xattrs), len(problem), *found))
        for offset in offsets:
            one = next(chunk)
            payload = one.payload
            if payload is None:
                chunks.append(_CHUNK.pack(offset, one.id, one.raw_length, _NOT_SENT, 0, 0))
            else:
                flags, buffer, xxh3 = payload
                payloads.append(buffer)
                chunks.append(_CHUNK.pack(offset, one.id, one.raw_length, len(buffer), flags, xxh3))
    head = _HEAD.pack(len(files), len(chunks), sum(map(len, texts)))
    return [head, *files, *chunks, *texts, *payloads]


class Reply(NamedTuple):
    """Answers without their bytes (`pieces` are empty), and all chunks in order. Payloads are views of the reply."""

    answers: list[Answer]
    packed: list[Packed]


def decode_reply(reply: memoryview) -> Reply:
    """The inverse of `encode_reply`."""
    file_count, chunk_count, text_bytes = _HEAD.unpack_from(reply)
    chunks_at = _HEAD.size + file_count * _FILE.size
    texts_at = chunks_at + chunk_count * _CHUNK.size
    at = texts_at + text_bytes
    packed: list[Packed] = []
    offsets: list[int] = []
    for offset, record_id, raw_length, length, flags, xxh3 in _CHUNK.iter_unpack(reply[chunks_at:texts_at]):
        offsets.append(offset)
        if length == _NOT_SENT:
            packed.append(Packed(RecordId(record_id), raw_length, None))
        else:
            packed.append(Packed(RecordId(record_id), raw_length, Payload(flags, reply[at : at + length], xxh3)))
            at += length
    answers: list[Answer] = []
    first = 0
    for status, count, xattr_bytes, problem_bytes, *found in _FILE.iter_unpack(reply[_HEAD.size : chunks_at]):
        problem = ""
        xattrs: tuple[tuple[bytes, bytes], ...] = ()
        if xattr_bytes:
            xattrs = decode_xattrs(bytes(reply[texts_at : texts_at + xattr_bytes]), NO_ID)
            texts_at += xattr_bytes
        if problem_bytes:
            problem = str(reply[texts_at : texts_at + problem_bytes], "utf-8", "surrogateescape")
            texts_at += problem_bytes
        if status == _WHOLE:
            answers.append(Whole(Attributes._make(found), xattrs, problem, offsets[first : first + count], []))
            first += count
        else:
            answers.append(None if status == _LARGE else Unread(problem))
    return Reply(answers, packed)
