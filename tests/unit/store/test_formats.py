"""Records, packs and configuration as bytes."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repository.errors import DamagedError, NoRepositoryError
from repository.format.config import PACK_BYTES_MAX, SEGMENT_BYTES_MAX, decode_config, new_config
from repository.format.pack import (
    PACK_HEADER_BYTES,
    PUNCHED_OFFSET,
    PackDirectory,
    Stream,
    Trailer,
    decode_directory,
    decode_pack_header,
    decode_trailer,
    encode_directory,
    encode_pack_header,
    encode_trailer,
    pack_index_of,
    pack_path,
)
from repository.format.record import (
    FLAG_ZSTD,
    HEADER_BYTES,
    RAW_MAX_BYTES,
    RecordHeader,
    decode_header,
    encode_header,
    header_seed,
)
from repository.ids import PackIndex, RecordId
from repository.units import GIB, MIB
from tests.support.stores import CONFIG

headers = st.builds(
    RecordHeader,
    kind=st.integers(1, 13),
    flags=st.just(FLAG_ZSTD),
    position=st.integers(0, 65_535),
    raw_length=st.integers(0, RAW_MAX_BYTES),
    stored_length=st.integers(HEADER_BYTES, HEADER_BYTES + RAW_MAX_BYTES),
    id=st.binary(min_size=32, max_size=32).map(RecordId),
    payload_xxh3=st.integers(0, (1 << 64) - 1),
)


@given(headers, st.integers(0, (1 << 64) - 1))
def test_a_header_reads_back(header: RecordHeader, seed: int) -> None:
    encoded = encode_header(header, seed)
    assert len(encoded) == HEADER_BYTES
    assert decode_header(encoded, seed) == header


@given(headers, st.integers(0, HEADER_BYTES * 8 - 1))
def test_every_flipped_bit_of_a_header_is_noticed(header: RecordHeader, bit: int) -> None:
    encoded = bytearray(encode_header(header, 5))
    encoded[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DamagedError):
        decode_header(bytes(encoded), 5)


@given(headers, st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**27)))
def test_a_header_holds_at_its_own_place_only(header: RecordHeader, place: tuple[int, int, int]) -> None:
    repository, pack, offset = place
    encoded = encode_header(header, header_seed(repository, PackIndex(pack), offset))
    for seed in (
        header_seed(repository, PackIndex(pack), offset + 1),
        header_seed(repository, PackIndex(pack ^ 1), offset),
        header_seed(repository ^ 1 << 63, PackIndex(pack), offset),
    ):
        with pytest.raises(DamagedError):
            decode_header(encoded, seed)


def test_impossible_lengths_are_refused_even_with_a_good_checksum() -> None:
    good = RecordHeader(1, FLAG_ZSTD, 0, 10, HEADER_BYTES + 5, RecordId(bytes(32)), 0)
    for bad in (
        good._replace(raw_length=RAW_MAX_BYTES + 1),
        good._replace(stored_length=HEADER_BYTES - 1),
        good._replace(stored_length=HEADER_BYTES + RAW_MAX_BYTES + 1),
        good._replace(flags=2),
        good._replace(flags=0),
    ):
        with pytest.raises(DamagedError):
            decode_header(encode_header(bad, 0), 0)


def test_a_pack_header_reads_back_and_any_damage_is_noticed() -> None:
    encoded = encode_pack_header(CONFIG, PackIndex(77), Stream.TREE, 123)
    header = decode_pack_header(encoded)
    assert len(encoded) == PACK_HEADER_BYTES
    assert (header.pack, header.stream, header.created_ns, header.punched) == (77, Stream.TREE, 123, False)
    assert (header.repository_id, header.id_key, header.chunker) == (
        CONFIG.repository_id,
        CONFIG.id_key,
        CONFIG.chunker,
    )
    assert (header.pack_bytes, header.segment_bytes) == (CONFIG.pack_bytes, CONFIG.segment_bytes)
    for offset in set(range(PACK_HEADER_BYTES)) - set(range(PUNCHED_OFFSET, PUNCHED_OFFSET + 8)):
        damaged = bytearray(encoded)
        damaged[offset] ^= 0x10
        with pytest.raises(DamagedError):
            decode_pack_header(bytes(damaged))


def test_the_punched_mark_is_outside_the_checksum() -> None:
    encoded = bytearray(encode_pack_header(CONFIG, PackIndex(1), Stream.BULK, 0))
    encoded[PUNCHED_OFFSET] = 1
    assert decode_pack_header(bytes(encoded)).punched


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 65_535))
def test_a_trailer_reads_back_in_its_own_pack_only(offset: int, stored: int, rows: int) -> None:
    trailer = Trailer(offset, stored, rows)
    encoded = encode_trailer(trailer, 9, PackIndex(3))
    assert decode_trailer(encoded, 9, PackIndex(3)) == trailer
    assert decode_trailer(encoded, 9, PackIndex(4)) is None
    assert decode_trailer(encoded, 8, PackIndex(3)) is None
    assert decode_trailer(encoded[:-1] + bytes((encoded[-1] ^ 1,)), 9, PackIndex(3)) is None


@given(st.integers(0, 70), st.integers(0, 2**32))
def test_a_directory_reads_back(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    directory = PackDirectory(
        PackIndex(5),
        99,
        offset=rng.integers(0, 2**32, count, np.uint32),
        stored=rng.integers(0, 2**32, count, np.uint32),
        raw=rng.integers(0, 2**32, count, np.uint32),
        kind=rng.integers(0, 14, count, np.uint8),
        flags=rng.integers(0, 2, count, np.uint8),
        ids=rng.integers(0, 256, (count, 32), np.uint8),
    )
    again = decode_directory(encode_directory(directory), PackIndex(5))
    for field in dataclasses.fields(PackDirectory):
        assert np.array_equal(getattr(again, field.name), getattr(directory, field.name))
    with pytest.raises(DamagedError):
        decode_directory(encode_directory(directory)[:-1], PackIndex(5))


def test_pack_names() -> None:
    assert pack_path(PackIndex(0x1234)) == "packs/34/00001234.pack"
    assert pack_index_of("00001234.pack") == 0x1234
    for name in ("1234.pack", "0000123G.pack", "0000123A.pack", "00001234", "00001234.pack.tmp"):
        assert pack_index_of(name) is None


def test_a_configuration_reads_back() -> None:
    assert decode_config(CONFIG.encode()) == CONFIG


@pytest.mark.parametrize("capacity", [40 * MIB, 300 * MIB, 5 * GIB, 100 * GIB, 4000 * GIB])
def test_sizes_follow_the_volume(capacity: int) -> None:
    config = new_config(
        repository_id=bytes(16), id_key=bytes(32), capacity_bytes=capacity, volume_class="A", created_ns=0
    )
    assert decode_config(config.encode()) == config
    assert config.pack_bytes >= 4 * config.segment_bytes
    assert config.segment_bytes <= SEGMENT_BYTES_MAX
    assert config.pack_bytes <= PACK_BYTES_MAX
    if capacity >= 300 * MIB:
        assert 3 * config.segment_bytes <= capacity / 90


def test_a_damaged_or_later_configuration_is_refused() -> None:
    good = CONFIG.encode()
    for bad in (
        b"",
        b"[]",
        good[:-30],
        good.replace(b'"format_version": 1', b'"format_version": 2'),
        good.replace(b'"features": []', b'"features": ["encryption"]'),
        good.replace(b"4194304", b"9999999999"),
        good.replace(CONFIG.id_key.hex().encode(), b"00"),
    ):
        with pytest.raises(NoRepositoryError):
            decode_config(bad)
