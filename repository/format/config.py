"""`repository.json`: what a repository is, chosen once at `init`. Pure.

Everything a reader of records needs (id key, chunker, sizes) is repeated in every pack's header.
"""

import json
from dataclasses import dataclass
from typing import Final, NamedTuple

import xxhash

from repository.errors import NoRepositoryError
from repository.units import KIB, MIB

CONFIG_NAME: Final = "repository.json"
FORMAT_VERSION: Final = 1
REPOSITORY_ID_BYTES: Final = 16
ID_KEY_BYTES: Final = 32
CONFIG_MAX_BYTES: Final = 64 * KIB
"""Bound on what is parsed as a configuration; a real one is below 1 KiB."""

PACK_BYTES_MAX: Final = 64 * MIB
PACK_BYTES_MIN: Final = 4 * MIB
"""At least four segments, and more than a largest chunk with all of a pack's own framing."""
SEGMENT_BYTES_MAX: Final = 16 * MIB
SEGMENT_BYTES_MIN: Final = 1 * MIB
SEGMENT_BYTES_WRITTEN: Final = 4 * MIB
"""The most where a segment is allocated by writing it: the writer waits for that (0.04 to 0.2 s on a slow disk)."""
_PACKS_PER_VOLUME: Final = 64
_SEGMENTS_PER_VOLUME: Final = 512
"""Three open packs then tie up at most 1/170 of a small volume with room that no record uses yet."""


class ChunkerParameters(NamedTuple):
    """Sizes of content-defined chunks, in bytes."""

    min_bytes: int
    avg_bytes: int
    max_bytes: int


DEFAULT_CHUNKER: Final = ChunkerParameters(64 * KIB, 256 * KIB, 1 * MIB)


@dataclass(frozen=True, slots=True)
class Config:
    """The parameters of a repository. Sizes in bytes, `created_ns` in nanoseconds since 1970."""

    repository_id: bytes
    id_key: bytes
    chunker: ChunkerParameters
    pack_bytes: int
    segment_bytes: int
    created_ns: int
    volume_class: str
    features: tuple[str, ...] = ()
    reserve_bytes: int = 0
    """Size of the reserve that the owner asked for; 0: none, and no rule about it."""
    headspace_bytes: int = 0
    """What must be available beside the reserve when it is created."""
    quota_bytes: int = 0
    """Bound on all blocks under the repository's directory; 0: only the volume's own."""

    @property
    def seed(self) -> int:
        """64 bits of the repository's id, which seed every checksum of a header."""
        return int.from_bytes(self.repository_id[:8], "little")

    def encode(self) -> bytes:
        """The bytes of `repository.json`."""
        return _text({**self._document(), "checksum": self.checksum}) + b"\n"

    @property
    def checksum(self) -> str:
        """XXH3-64 of all values, hexadecimal: a flipped digit of the key would make every record look damaged."""
        return xxhash.xxh3_64_hexdigest(_text(self._document()))

    def _document(self) -> dict[str, object]:
        return {
            "format_version": FORMAT_VERSION,
            "features": list(self.features),
            "repository_id": self.repository_id.hex(),
            "id_key": self.id_key.hex(),
            "chunker": {
                "min": self.chunker.min_bytes,
                "avg": self.chunker.avg_bytes,
                "max": self.chunker.max_bytes,
            },
            "pack_bytes": self.pack_bytes,
            "segment_bytes": self.segment_bytes,
            "created_ns": self.created_ns,
            "volume_class": self.volume_class,
            "reserve_bytes": self.reserve_bytes,
            "headspace_bytes": self.headspace_bytes,
            "quota_bytes": self.quota_bytes,
        }


def _text(document: dict[str, object]) -> bytes:
    return json.dumps(document, indent=2, sort_keys=True).encode()


def new_config(
    *, repository_id: bytes, id_key: bytes, capacity_bytes: int, volume_class: str, created_ns: int
) -> Config:
    """The configuration of a new repository on a volume of `capacity_bytes`.

    `repository_id` (16 bytes) and `id_key` (32 bytes) come from the caller's source of randomness.
    """
    whole_mib = capacity_bytes // MIB
    segment = min(SEGMENT_BYTES_MAX, max(SEGMENT_BYTES_MIN, whole_mib // _SEGMENTS_PER_VOLUME * MIB))
    if "C" in volume_class:
        segment = min(segment, SEGMENT_BYTES_WRITTEN)
    pack = min(PACK_BYTES_MAX, max(PACK_BYTES_MIN, whole_mib // _PACKS_PER_VOLUME * MIB))
    return Config(
        repository_id=repository_id,
        id_key=id_key,
        chunker=DEFAULT_CHUNKER,
        pack_bytes=pack,
        segment_bytes=segment,
        created_ns=created_ns,
        volume_class=volume_class,
    )


def decode_config(buffer: bytes) -> Config:
    """The configuration in the bytes of `repository.json`. Raises NoRepositoryError."""
    try:
        document = json.loads(buffer)
        if not isinstance(document, dict):
            raise ValueError("not an object")
        version = document["format_version"]
        features = tuple(map(str, document["features"]))
        if version != FORMAT_VERSION or features:
            needs = f"format {version}" + (f" with {', '.join(features)}" if features else "")
            raise NoRepositoryError(f"This repository has {needs}; this version of ballast reads format 1.")
        chunker = document["chunker"]
        config = Config(
            repository_id=bytes.fromhex(document["repository_id"]),
            id_key=bytes.fromhex(document["id_key"]),
            chunker=ChunkerParameters(int(chunker["min"]), int(chunker["avg"]), int(chunker["max"])),
            pack_bytes=int(document["pack_bytes"]),
            segment_bytes=int(document["segment_bytes"]),
            created_ns=int(document["created_ns"]),
            volume_class=str(document["volume_class"]),
            reserve_bytes=int(document["reserve_bytes"]),
            headspace_bytes=int(document["headspace_bytes"]),
            quota_bytes=int(document["quota_bytes"]),
        )
        checksum = document["checksum"]
    except (ValueError, KeyError, TypeError) as error:
        raise NoRepositoryError(f"{CONFIG_NAME} is damaged ({error}).") from error
    if not config_is_sound(config):
        raise NoRepositoryError(f"{CONFIG_NAME} is damaged (impossible values).")
    if checksum != config.checksum:
        raise NoRepositoryError(
            f"{CONFIG_NAME} is damaged (its checksum does not hold); the headers of the packs repeat what it said."
        )
    return config


def config_is_sound(config: Config) -> bool:
    """Whether sizes and lengths lie within what this version can work with."""
    small, middle, large = config.chunker
    return (
        len(config.repository_id) == REPOSITORY_ID_BYTES
        and len(config.id_key) == ID_KEY_BYTES
        and 256 <= small <= middle <= large <= 1 * MIB
        and middle <= 4 * MIB
        and PACK_BYTES_MIN <= config.pack_bytes <= PACK_BYTES_MAX
        and SEGMENT_BYTES_MIN <= config.segment_bytes <= config.pack_bytes
        and min(config.reserve_bytes, config.headspace_bytes, config.quota_bytes) >= 0
    )
