"""The layers of a changed file against a plain bytearray."""

from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from repository.format.inode import Extent, Inode, NodeKind
from repository.ids import FileId, RecordId
from repository.live.filedata import FileData, Flight, Piece
from tests.support.amounts import examples

SIZE_MAX = 60


@dataclass
class Store:
    """Chunks by id, so that pieces can be read back."""

    chunks: dict[RecordId, bytes] = field(default_factory=dict)

    def put(self, data: bytes) -> RecordId:
        chunk = RecordId(len(self.chunks).to_bytes(32, "big"))
        self.chunks[chunk] = data
        return chunk

    def pieces(self, flight: Flight, cut: int) -> tuple[Piece, ...]:
        """The flight as two chunks, the second one a hole where it is all zeros."""
        data = bytes(flight.data)
        parts = [part for part in ((0, data[:cut]), (min(cut, len(data)), data[cut:])) if part[1]]
        return tuple(
            Piece(flight.start + at, flight.start + at + len(part), self.put(part) if any(part) else None, 0)
            for at, part in parts
        )


def read(data: FileData, store: Store, size: int) -> bytes:
    out = bytearray()
    for span in data.spans(0, size):
        assert span.start == len(out)
        length = span.end - span.start
        match span.source:
            case Piece(chunk=chunk, chunk_offset=start):
                assert chunk is not None
                out += store.chunks[chunk][start : start + length]
            case Inode() as inode:
                out += _below(inode, store)[span.start : span.end]
            case None:
                out += bytes(length)
            case buffer:
                out += buffer
        assert len(out) == span.end
    return bytes(out)


def _below(inode: Inode, store: Store) -> bytes:
    out = bytearray(inode.size)
    assert isinstance(inode.extents, tuple)
    for extent in inode.extents:
        chunk = store.chunks[extent.chunk][extent.chunk_offset : extent.chunk_offset + extent.length]
        out[extent.offset : extent.offset + extent.length] = chunk
    return bytes(out)


STEP = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 40), st.binary(min_size=1, max_size=12)),
    st.tuples(st.just("truncate"), st.integers(0, SIZE_MAX), st.just(b"")),
    st.tuples(st.just("launch"), st.integers(0, 9), st.just(b"")),
    st.tuples(st.just("land"), st.integers(0, 9), st.just(b"")),
    st.tuples(st.just("freeze"), st.just(0), st.just(b"")),
)


@settings(max_examples=examples(400), deadline=None)
@given(base=st.binary(max_size=30), steps=st.lists(STEP, max_size=30))
def test_reads_what_was_written_last(base: bytes, steps: list[tuple[str, int, bytes]]) -> None:
    store = Store()
    extents = (Extent(0, len(base), store.put(base), 0),) if base else ()
    inode = Inode(NodeKind.FILE, FileId(7), size=len(base), extents=extents, allocated_bytes=len(base))
    data = FileData(inode, len(base))
    shadow = bytearray(base)
    memory = 0
    flying: list[tuple[FileData, Flight]] = []
    for action, at, part in steps:
        match action:
            case "write":
                memory += data.write(at, part)
                shadow.extend(bytes(max(0, at + len(part) - len(shadow))))
                shadow[at : at + len(part)] = part
            case "truncate":
                if at < len(shadow):
                    memory -= data.truncate(at)
                    del shadow[at:]
                else:
                    shadow.extend(bytes(at - len(shadow)))
            case "launch" if data.runs:
                run = data.runs.pop(at % len(data.runs))
                memory -= run.end - run.start
                flying.append((data, data.launch(run.start, run.joined())))
            case "land" if flying:
                owner, flight = flying.pop(0)
                flight.pieces = store.pieces(flight, at)
                owner.land(flight)
            case "freeze" if not data.runs:
                data = FileData(data, len(shadow))
        assert read(data, store, len(shadow)) == bytes(shadow)
        assert sum(run.end - run.start for run in data.runs) == memory
        runs = [(run.start, run.end) for run in data.runs]
        assert runs == sorted(runs)
        assert all(one[1] <= two[0] for one, two in pairwise(runs))
    for owner, flight in flying:
        flight.pieces = store.pieces(flight, 3)
        owner.land(flight)
    assert read(data, store, len(shadow)) == bytes(shadow)
