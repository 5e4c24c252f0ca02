"""What is in files of `live`: random writes, truncation, holes, appending, mappings, several programs at once."""

import errno
import hashlib
import os
import random
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from tests.support.mounted import python, run, start_python

pytestmark = pytest.mark.mount

KIB = 1024
MIB = 1024 * 1024
TB = 10**12


def test_what_one_program_wrote_another_reads(place: Path) -> None:
    data = random.Random(1).randbytes(3 * MIB + 17)
    (place / "file").write_bytes(data)
    said = python("import hashlib; print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())", place / "file")
    assert said.strip() == hashlib.sha256(data).hexdigest()


def test_bytes_written_are_seen_before_the_writer_closes(place: Path) -> None:
    with (place / "file").open("wb", buffering=0) as out, (place / "file").open("rb", buffering=0) as into:
        for number in range(100):
            out.write(b"%03d;" % number)
            assert into.read() == b"%03d;" % number


def test_random_writes_of_all_sizes(place: Path) -> None:
    dice = random.Random(2)
    shadow = bytearray()
    with (place / "file").open("w+b", buffering=0) as file:
        for _ in range(400):
            part = dice.randbytes(dice.choice((1, 100, 4096, 65_537, 300_000)))
            offset = dice.randrange(4 * MIB)
            os.pwrite(file.fileno(), part, offset)
            if len(shadow) < offset + len(part):
                shadow.extend(bytes(offset + len(part) - len(shadow)))
            shadow[offset : offset + len(part)] = part
        assert os.fstat(file.fileno()).st_size == len(shadow)
    assert (place / "file").read_bytes() == shadow


def test_truncation_and_extension_leave_zeros_not_old_bytes(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"x" * 1_000_000)
    for size in (999_999, 400_001, 4096, 1):
        os.truncate(path, size)
        os.truncate(path, 1_000_000)
        assert path.read_bytes() == b"x" * size + bytes(1_000_000 - size)
    os.truncate(path, 0)
    assert path.read_bytes() == b""
    path.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def test_opening_with_o_trunc_empties(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"old" * 100_000)
    with path.open("rb") as reader, path.open("wb") as file:
        assert os.fstat(reader.fileno()).st_size == 0
        assert reader.read() == b""
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_truncation_racing_with_writers_leaves_only_bytes_that_were_written(place: Path) -> None:
    path = place / "file"
    path.touch()
    done = threading.Event()

    def truncate() -> None:
        dice = random.Random(3)
        while not done.is_set():
            os.truncate(path, dice.randrange(2 * MIB))

    thread = threading.Thread(target=truncate)
    thread.start()
    try:
        with path.open("r+b", buffering=0) as file:
            for number in range(300):
                os.pwrite(file.fileno(), bytes([1 + number % 255]) * 40_000, number * 40_000 % (2 * MIB))
    finally:
        done.set()
        thread.join()
    data = path.read_bytes()
    assert len(data) == path.stat().st_size
    for start in range(0, 2 * MIB, 40_000):
        written = {number % 255 + 1 for number in range(300) if number * 40_000 % (2 * MIB) <= start + 40_000}
        assert set(data[start : start + 40_000]) <= written | {0}


def test_a_hole_reads_as_zeros_and_takes_no_blocks(place: Path) -> None:
    path = place / "file"
    with path.open("wb") as file:
        file.write(b"begin")
        file.seek(50 * MIB)
        file.write(b"end")
    found = path.stat()
    assert found.st_size == 50 * MIB + 3
    assert found.st_blocks * 512 <= 64 * KIB
    data = path.read_bytes()
    assert data[:5] == b"begin" and data[-3:] == b"end" and not data[5:-3].strip(b"\0")


def test_written_zeros_become_a_hole_once_stored(place: Path) -> None:
    path = place / "file"
    with path.open("wb") as file:
        file.write(bytes(8 * MIB))
        file.write(b"x")
        os.fsync(file.fileno())
        assert os.fstat(file.fileno()).st_blocks * 512 <= 2 * MIB
    assert path.read_bytes() == bytes(8 * MIB) + b"x"


def test_a_sparse_file_of_a_terabyte(place: Path) -> None:
    path = place / "file"
    with path.open("w+b", buffering=0) as file:
        os.truncate(path, TB)
        marks = {0: b"first", 123_456_789_012: b"middle", TB - 4: b"last"}
        for offset, mark in marks.items():
            os.pwrite(file.fileno(), mark, offset)
        os.fsync(file.fileno())
        for offset, mark in marks.items():
            assert os.pread(file.fileno(), len(mark), offset) == mark
        assert os.pread(file.fileno(), 5, 500_000_000_000) == bytes(5)
        assert os.pread(file.fileno(), 100, TB - 4) == b"last"
        found = os.fstat(file.fileno())
        assert found.st_size == TB
        assert found.st_blocks * 512 <= MIB
    os.truncate(path, 123_456_789_013)
    with path.open("rb") as file:
        file.seek(123_456_789_000)
        assert file.read() == bytes(12) + b"m"
    os.truncate(path, TB * 1000)
    assert path.stat().st_size == TB * 1000


def test_no_file_grows_beyond_what_offsets_can_say(place: Path) -> None:
    with (place / "file").open("wb", buffering=0) as file:
        with pytest.raises(OSError) as caught:
            os.pwrite(file.fileno(), b"xy", (1 << 63) - 2)
        assert caught.value.errno in (errno.EFBIG, errno.EINVAL)
        assert os.fstat(file.fileno()).st_size == 0


def test_du_and_st_blocks_follow_what_is_written(place: Path) -> None:
    (place / "full").write_bytes(random.Random(4).randbytes(3_000_000))
    (place / "empty").touch()
    assert 3_000_000 <= (place / "full").stat().st_blocks * 512 <= 3_100_000
    assert (place / "empty").stat().st_blocks == 0
    assert 3_000_000 <= int(run(["du", "-s", "--block-size=1", place]).split()[0]) <= 3_100_000
    os.truncate(place / "full", 1_000_000)
    assert 1_000_000 <= (place / "full").stat().st_blocks * 512 <= 1_100_000
    assert int(run(["du", "-s", "--apparent-size", "--block-size=1", place]).split()[0]) >= 1_000_000


def test_appenders_of_several_processes_never_overwrite_each_other(place: Path) -> None:
    path = place / "log"
    path.touch()
    code = """
file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for number in range(300):
    os.write(file, f"{sys.argv[2]} {number:06d} {'x' * (number % 90)}\\n".encode())
"""
    writers = [start_python(code, path, name) for name in "abcd"]
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    lines = path.read_text().splitlines()
    assert len(lines) == 1200
    for name in "abcd":
        mine = [line for line in lines if line.startswith(name)]
        assert mine == [f"{name} {number:06d} {'x' * (number % 90)}" for number in range(300)]


def test_several_programs_write_and_read_different_files_at_once(place: Path) -> None:
    code = """
import hashlib, random
dice = random.Random(int(sys.argv[2])); path = sys.argv[1] + "/" + sys.argv[2]
for round in range(6):
    data = dice.randbytes(dice.randrange(2_000_000))
    with open(path, "wb") as file: file.write(data)
    assert open(path, "rb").read() == data
    os.rename(path, path + "r"); path += "r"
print(hashlib.sha256(data).hexdigest())
"""
    writers = [start_python(code, place, str(name)) for name in range(4)]
    sums = [writer.communicate()[0].strip() for writer in writers]
    for name, expected in enumerate(sums):
        assert hashlib.sha256((place / (str(name) + "r" * 6)).read_bytes()).hexdigest() == expected


def test_writers_of_one_file_in_disjoint_places(place: Path) -> None:
    path = place / "file"
    path.touch()
    code = """
file = os.open(sys.argv[1], os.O_WRONLY)
mine = int(sys.argv[2])
for number in range(200):
    os.pwrite(file, bytes([mine]) * 1000, (number * 4 + mine) * 1000)
"""
    for writer in [start_python(code, path, str(name)) for name in range(4)]:
        writer.communicate()
        assert writer.returncode == 0
    assert path.read_bytes() == b"".join(bytes([mine]) * 1000 for _ in range(200) for mine in range(4))


MAPPED = """
import mmap
path, data = sys.argv[1], b"mapped" * 10_000
with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as map:
    before = map[100:110]
    map[4000:4000 + len(data)] = data
    {sync}
    print(os.pread(file.fileno(), 6, 4000).decode(), before.decode())
"""


def test_a_shared_mapping_reads_writes_and_syncs(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"." * 200_000)
    assert python(MAPPED.format(sync="map.flush()"), path).split() == ["mapped", "." * 10]
    assert path.read_bytes() == b"." * 4000 + b"mapped" * 10_000 + b"." * 136_000
    path.write_bytes(b"-" * 200_000)
    assert python(MAPPED.format(sync="os.fsync(file.fileno())"), path).split() == ["mapped", "-" * 10]
    assert path.read_bytes()[3999:4007] == b"-mappedm"


def test_two_processes_share_a_mapping(place: Path) -> None:
    path = place / "file"
    path.write_bytes(bytes(8192))
    code = """
import mmap
with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 0) as map:
    print("ready")
    for line in sys.stdin:
        number = int(line)
        map[number] = map[number - 1] + 1
        print("done")
"""
    both = [start_python(code, path) for _ in range(2)]
    for one in both:
        assert one.stdout is not None and one.stdout.readline() == "ready\n"
    for number in range(1, 60):
        one = both[number % 2]
        assert one.stdin is not None and one.stdout is not None
        one.stdin.write(f"{number}\n")
        one.stdin.flush()
        assert one.stdout.readline() == "done\n"
    for one in both:
        one.communicate()
    assert path.read_bytes()[:61] == bytes(range(60)) + b"\0"


def test_an_unlinked_file_lives_on_while_it_is_open(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"before")
    with path.open("r+b", buffering=0) as file:
        path.unlink()
        assert not path.exists()
        assert os.fstat(file.fileno()).st_nlink == 0
        file.seek(0, os.SEEK_END)
        file.write(b" and after" * 100_000)
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), 12, 0) == b"before and a"
        os.ftruncate(file.fileno(), 10)
        os.fchmod(file.fileno(), 0o600)
        assert os.pread(file.fileno(), 100, 0) == b"before and"
        path.write_bytes(b"another file of that name")
        assert os.pread(file.fileno(), 100, 0) == b"before and"
    assert path.read_bytes() == b"another file of that name"


def test_copy_file_range_and_sendfile(place: Path) -> None:
    data = random.Random(5).randbytes(2_000_000)
    (place / "from").write_bytes(data)
    with (place / "from").open("rb") as source, (place / "to").open("wb") as target:
        left = len(data)
        while left:
            left -= os.copy_file_range(source.fileno(), target.fileno(), left)
    assert (place / "to").read_bytes() == data
    shutil.copyfile(place / "from", place / "sent")
    assert (place / "sent").read_bytes() == data


def test_posix_fallocate_falls_back_and_extends(place: Path) -> None:
    with (place / "file").open("w+b") as file:
        os.posix_fallocate(file.fileno(), 0, 100_000)
        assert os.fstat(file.fileno()).st_size == 100_000
    assert (place / "file").read_bytes() == bytes(100_000)


def test_direct_io_and_o_sync(place: Path) -> None:
    path = place / "file"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_SYNC | os.O_DSYNC)
    try:
        assert os.write(descriptor, b"durable" * 1000) == 7000
        assert os.pread(descriptor, 7, 7) == b"durable"
    finally:
        os.close(descriptor)
    subprocess.run(
        ["dd", f"if={path}", f"of={place / 'copy'}", "bs=4096", "oflag=direct", "status=none"], check=True, timeout=60
    )
    assert (place / "copy").read_bytes() == b"durable" * 1000


def test_readv_writev_and_short_reads_at_the_end(place: Path) -> None:
    with (place / "file").open("w+b", buffering=0) as file:
        assert os.pwritev(file.fileno(), [b"one", b"two", b"three"], 5) == 11
        buffers = [bytearray(7), bytearray(100)]
        assert os.preadv(file.fileno(), buffers, 0) == 16
        assert buffers[0] == b"\0\0\0\0\0on" and buffers[1][:9] == b"etwothree"
        assert os.pread(file.fileno(), 100, 16) == b""
        assert os.pread(file.fileno(), 100, 1_000_000) == b""
