"""What a walk takes from a directory's segments is what decoding them tells."""

from hypothesis import given
from hypothesis import strategies as st

from repository.format.attributes import attr_rows
from repository.format.filerows import file_rows
from repository.format.inode import Entry, Inode, NodeKind
from repository.format.record import RecordKind
from repository.format.tree import encode_attributes, encode_content
from repository.format.xattrs import encode_xattrs
from repository.ids import NO_ID, RecordId
from repository.reach import quick_references, split_references
from tests.support.inodes import IDS, inodes

ORIGIN = RecordId(bytes(range(32)))


@given(st.lists(inodes(), min_size=1, max_size=12), st.data())
def test_directories_refer_to_what_decoding_tells(content: list[Inode], data: st.DataObject) -> None:
    entries = [Entry(b"%04d" % number, inode) for number, inode in enumerate(content)]
    payload = encode_content([name for name, _ in entries], [file_rows(content)])
    quick = quick_references(RecordKind.DIR_CONTENT, payload, ORIGIN)
    assert quick == split_references(RecordKind.DIR_CONTENT, payload, ORIGIN)
    wanted = [one.directory.content for one in content if one.kind is NodeKind.DIRECTORY]
    assert [one for one in wanted if one is not None] == quick.nodes[
        len(quick.nodes) - len(wanted) + wanted.count(None) :
    ]
    assert NO_ID not in quick.nodes + quick.leaves

    apart = [one.kind is not NodeKind.LINK and data.draw(st.booleans()) for one in content]
    inline = [None if away else encode_xattrs(one.xattrs) for one, away in zip(content, apart, strict=True)]
    records = [data.draw(IDS) for away in apart if away]
    directories = sum(one.kind is NodeKind.DIRECTORY for one in content)
    inline = [b"" if one.kind is NodeKind.LINK else x for one, x in zip(content, inline, strict=True)]
    payload = encode_attributes(len(content), directories, [attr_rows(content, inline, records)])
    quick = quick_references(RecordKind.DIR_ATTRS, payload, ORIGIN)
    assert quick == split_references(RecordKind.DIR_ATTRS, payload, ORIGIN)
    assert quick.leaves == records
