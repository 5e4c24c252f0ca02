"""A slot's bytes: round trips, the offsets that FORMAT.md promises, and names."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repository.errors import UsageError
from repository.format.catalog import (
    COPY_BYTES,
    FREE_SLOT,
    GROUP_BYTES,
    SOURCE_BYTES_MAX,
    Head,
    Slot,
    SlotState,
    SnapshotKind,
    catalog_bytes,
    check_name,
    copy_offset,
    cut_source,
    decode_copy,
    encode_copy,
    first_copy,
    untouched_slots,
    verify_copy,
)
from repository.format.inode import Totals
from repository.format.journal import JournalMark
from repository.ids import FileId, PackIndex, RecordId, RecordNumber, SnapshotId

u64 = st.integers(0, 2**64 - 1)
i64 = st.integers(-(2**63), 2**63 - 1)
ids = st.binary(min_size=32, max_size=32).map(RecordId)
numbers = u64.map(RecordNumber)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=60)
slots = st.builds(
    Slot,
    u64.map(SnapshotId),
    st.sampled_from([SlotState.FREE, SlotState.LIVE, SlotState.TRASH]),
    names,
    i64,
    st.text(max_size=100),
    st.sampled_from(SnapshotKind),
    ids,
    numbers,
    ids,
    numbers,
    st.booleans(),
    st.builds(Totals, u64, u64),
    u64.map(FileId),
    st.booleans(),
    i64,
)
heads = st.builds(
    Head,
    manifest=ids,
    manifest_number=numbers,
    bitmap=ids,
    bitmap_number=numbers,
    exact=st.booleans(),
    commit_serial=u64,
    journal=st.builds(JournalMark, u64, u64),
    journal_floor=st.integers(0, 2**32 - 1).map(PackIndex),
    next_file_id=u64.map(FileId),
    clean=st.booleans(),
    mounted_ns=i64,
    unmounted_ns=i64,
    committed_ns=i64,
    slots=st.integers(0, 2**32 - 1),
)


@given(st.one_of(slots, heads), st.integers(0, 2**32 - 1), u64, u64)
def test_round_trip(content: Slot | Head, index: int, sequence: int, seed: int) -> None:
    try:
        data = encode_copy(index, sequence, content, seed)
    except UnicodeEncodeError:
        return  # a lone surrogate that no byte stands for cannot come from a path
    assert len(data) == COPY_BYTES
    assert verify_copy(data, index, seed) == sequence
    assert decode_copy(data) == (sequence, content)
    assert verify_copy(data, index ^ 1, seed) is None
    assert verify_copy(data, index, seed ^ 1) is None


@given(slots, st.integers(0, COPY_BYTES - 1), st.integers(1, 255))
def test_any_changed_byte_is_noticed(slot: Slot, position: int, change: int) -> None:
    try:
        data = bytearray(encode_copy(9, 4, slot, 3))
    except UnicodeEncodeError:
        return
    data[position] ^= change
    assert verify_copy(bytes(data), 9, 3) is None


def test_the_offsets_that_the_format_names() -> None:
    slot = Slot(
        SnapshotId(0x1122),
        SlotState.TRASH,
        "näme",
        -5,
        "host:/p",
        SnapshotKind.NAMED,
        RecordId(b"M" * 32),
        RecordNumber(77),
        RecordId(b"B" * 32),
        RecordNumber(88),
        True,
        Totals(3, 4),
        FileId(55),
        True,
        66,
    )
    data = encode_copy(12, 13, slot, 0)
    assert data[:4] == b"BSLT"
    assert struct.unpack_from("<BBBBQIHH", data, 4) == (2, 2, 3, 0, 13, 12, 5, 7)
    assert struct.unpack_from("<QqqQQQ", data, 24) == (0x1122, -5, 66, 3, 4, 55)
    assert struct.unpack_from("<32sQ32sQ", data, 72) == (b"M" * 32, 77, b"B" * 32, 88)
    assert data[152:164] == "nämehost:/p".encode()
    head = Head(
        RecordId(b"M" * 32), RecordNumber(1), RecordId(b"B" * 32), RecordNumber(2), False, 3, JournalMark(4, 5),
        PackIndex(6), FileId(8), True, 9, 10, 11, 7,
    )  # fmt: skip
    data = encode_copy(0, 1, head, 0)
    assert struct.unpack_from("<32sQ32sQQQQIIQqqq", data, 24) == (
        b"M" * 32, 1, b"B" * 32, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,
    )  # fmt: skip
    assert data[6] == 4


def test_no_two_copies_share_bytes_and_no_slot_has_both_in_one_page() -> None:
    places = {copy_offset(slot, copy): (slot, copy) for slot in range(64) for copy in (0, 1)}
    assert len(places) == 128
    assert all(offset % COPY_BYTES == 0 for offset in places)
    assert max(places) + COPY_BYTES == catalog_bytes(64) == 16 * GROUP_BYTES
    assert all(copy_offset(slot, 0) // 4096 != copy_offset(slot, 1) // 4096 for slot in range(64))
    assert [first_copy(sequence) for sequence in (1, 2, 3)] == [0, 1, 0]


@pytest.mark.parametrize("name", ["a", "ä" * 127, "before upgrade", "...", "latest2", "-x", "\n"])
def test_names_that_pass(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "latest", "a/b", "/", "a\0", "\udc80", "x" * 256, "ä" * 128])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=600))
def test_a_long_source_is_cut_at_a_character(source: str) -> None:
    cut = cut_source(source)
    assert len(cut) <= SOURCE_BYTES_MAX
    assert source.startswith(cut.decode())
    assert cut == source.encode() or len(cut) > SOURCE_BYTES_MAX - 4


def test_a_source_keeps_bytes_that_are_no_text() -> None:
    assert cut_source("host:/\udcff") == b"host:/\xff"


FRESH_SLOTS = 12


@given(
    changes=st.lists(st.tuples(st.integers(0, FRESH_SLOTS - 1), st.integers(0, 2), st.integers(0, 1023)), max_size=6),
    used=st.sets(st.integers(0, FRESH_SLOTS - 1), max_size=3),
    seed=u64,
)
def test_untouched_slots_are_those_of_which_both_copies_are_as_they_were_made(
    changes: list[tuple[int, int, int]], used: set[int], seed: int
) -> None:
    """Whichever bytes were changed, in one copy or alike in both."""
    data = bytearray(catalog_bytes(FRESH_SLOTS))
    for index in range(FRESH_SLOTS):
        copy = encode_copy(index, 1 if index in used else 0, FREE_SLOT, seed)
        for which in (0, 1):
            data[copy_offset(index, which) : copy_offset(index, which) + COPY_BYTES] = copy
    for index, which, at in changes:
        for copy_number in (0, 1) if which == 2 else (which,):
            data[copy_offset(index, copy_number) + at] ^= 1 + at % 255
    made = {index: encode_copy(index, 0, FREE_SLOT, seed) for index in range(FRESH_SLOTS)}
    expected = [
        index
        for index in range(FRESH_SLOTS)
        if all(data[(start := copy_offset(index, which)) : start + COPY_BYTES] == made[index] for which in (0, 1))
    ]
    assert untouched_slots(bytes(data), seed) == expected
