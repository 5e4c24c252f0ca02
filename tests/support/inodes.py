"""Hypothesis strategies for names, inodes and directories."""

from hypothesis import strategies as st

from repository.format.inode import DirRef, Entry, Extent, ExtentsRef, Inode, NodeKind, Totals
from repository.ids import FileId, RecordId

TIMES_NS = st.integers(-(1 << 63), (1 << 63) - 1)
SIZES = st.integers(0, (1 << 63) - 1)
U32 = st.integers(0, (1 << 32) - 1)
IDS = st.binary(min_size=32, max_size=32).filter(any).map(RecordId)
NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
XATTRS = st.lists(st.tuples(st.binary(min_size=1, max_size=255), st.binary(max_size=300)), max_size=3).map(tuple)


@st.composite
def extents(draw: st.DrawFn, least: int = 0, most: int = 64) -> tuple[Extent, ...]:
    """Sorted extents that do not overlap, within 63 bits."""
    found: list[Extent] = []
    end = draw(st.one_of(st.just(0), st.integers(0, 1 << 62)))
    for _ in range(draw(st.integers(least, most))):
        start = end + draw(st.one_of(st.just(0), st.integers(0, 1 << 40)))
        length = draw(st.integers(1, 1 << 20))
        found.append(Extent(start, length, draw(IDS), draw(st.sampled_from((0, 1, 4096)))))
        end = start + length
    return tuple(found)


@st.composite
def inodes(draw: st.DrawFn, kinds: tuple[NodeKind, ...] = tuple(NodeKind)) -> Inode:
    """Any inode that a directory can hold."""
    kind = draw(st.sampled_from(kinds))
    file_id = FileId(draw(st.integers(0, (1 << 40) - 1)))
    if kind is NodeKind.LINK:
        return Inode(kind, file_id)
    content: tuple[Extent, ...] | ExtentsRef = ()
    allocated = 0
    if kind is NodeKind.FILE:
        content = draw(st.one_of(extents(most=3), st.builds(ExtentsRef, IDS, st.integers(65, 1 << 40))))
        allocated = draw(SIZES) if isinstance(content, ExtentsRef) else sum(one.length for one in content)
    directory, totals = DirRef(None, None), Totals(0, 0)
    if kind is NodeKind.DIRECTORY and draw(st.booleans()):
        directory, totals = DirRef(draw(IDS), draw(IDS)), Totals(draw(U32), draw(SIZES))
    device = kind in (NodeKind.CHARACTER, NodeKind.BLOCK)
    return Inode(
        kind,
        file_id,
        version=draw(U32),
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(U32),
        gid=draw(U32),
        rdev=draw(st.integers(0, (1 << 64) - 1)) if device else 0,
        size=draw(SIZES),
        nlink=draw(U32),
        atime_ns=draw(TIMES_NS),
        mtime_ns=draw(TIMES_NS),
        ctime_ns=draw(TIMES_NS),
        xattrs=draw(XATTRS),
        target=draw(st.binary(max_size=4095)) if kind is NodeKind.SYMLINK else b"",
        extents=content,
        allocated_bytes=allocated,
        directory=directory,
        totals=totals,
    )


def directories(most: int = 20) -> st.SearchStrategy[list[Entry]]:
    """Entries sorted by name."""
    return st.dictionaries(NAMES, inodes(), max_size=most).map(
        lambda found: [Entry(name, found[name]) for name in sorted(found)]
    )
