"""Disks to fill: loop images of several file systems, and tmpfs. Root, in a mount namespace of one's own."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from repository.units import KIB, MIB
from tests.support.fulldisk.stage import Stage

KINDS: Final = ("ext4", "ext4-0", "xfs", "btrfs", "ext2", "ntfs", "exfat", "tmpfs")
"""ext4 keeps its 5 % for root, ext4-0 nothing."""
COPY_ON_WRITE: Final = ("btrfs",)
"""What was freed is told by statvfs only after syncfs."""
THROUGH_FUSE: Final = ("ntfs", "exfat")
"""Served by a process; no fallocate, no punch."""
NOTHING_BYTES: Final = 64 * KIB
"""xfs tells of a few blocks that nobody gets."""
INODES: Final = 16_384
"""On ext4, ext2 and tmpfs: enough for every drill, and soon filled."""
SMALLEST: Final = {"xfs": 320 * MIB, "btrfs": 320 * MIB}
"""What their mkfs asks for, and room left to work with."""

_MKFS: Final[dict[str, tuple[str, ...]]] = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-N", str(INODES), "-E", "nodiscard"),
    "ext4-0": ("mkfs.ext4", "-q", "-F", "-m", "0", "-N", str(INODES), "-E", "nodiscard"),
    "ext2": ("mkfs.ext2", "-q", "-F", "-N", str(INODES)),
    "xfs": ("mkfs.xfs", "-q", "-f", "-K"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "-K"),
    "ntfs": ("mkntfs", "-F", "-Q", "-q"),
    "exfat": ("mkfs.exfat",),
}
_MOUNT: Final = {"ntfs": ("ntfs-3g", "-o", "streams_interface=none"), "exfat": ("mount.exfat-fuse",)}
PACKAGES: Final = {"xfs": "xfsprogs", "btrfs": "btrfs-progs", "ntfs": "ntfs-3g", "exfat": "exfat-fuse exfatprogs"}


def missing_tools(kind: str) -> list[str]:
    """Programs that a disk of this kind needs and that are not installed."""
    if kind == "tmpfs":
        return []
    needed = [_MKFS[kind][0], *(_MOUNT[kind][:1] if kind in _MOUNT else ())]
    return [name for name in needed if shutil.which(name) is None]


@dataclass(frozen=True, slots=True)
class Disk:
    """A mounted disk."""

    kind: str
    path: Path
    image: Path | None

    def available_bytes(self) -> int:
        """What an ordinary user may take, after everything that is pending has been carried out."""
        if self.kind in COPY_ON_WRITE:
            subprocess.run(["sync", "-f", self.path], check=True)
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def free_bytes(self) -> int:
        """The same with what is kept for root, and with what nobody gets."""
        found = os.statvfs(self.path)
        return found.f_bfree * found.f_frsize

    def free_inodes(self) -> int | None:
        """None where the file system has no such bound (it makes inodes out of bytes)."""
        found = os.statvfs(self.path)
        return found.f_ffree if self.kind in ("ext4", "ext4-0", "ext2", "tmpfs") else None

    def capacity_bytes(self) -> int:
        found = os.statvfs(self.path)
        return found.f_blocks * found.f_frsize


@contextmanager
def new_disk(stage: Stage, kind: str, nbytes: int, name: str = "disk", inodes: int = INODES) -> Iterator[Disk]:
    """An empty disk of about `nbytes` (more where the file system wants more), sparse in the work directory."""
    path = stage.mounts / name
    path.mkdir(exist_ok=True)
    if kind == "tmpfs":
        _run("mount", "-t", "tmpfs", "-o", f"size={nbytes},nr_inodes={inodes},mode=755", "disk", path)
        try:
            yield Disk(kind, path, None)
        finally:
            take_away(path)
        return
    image = stage.work / f"{name}.img"
    with image.open("wb") as file:
        file.truncate(max(nbytes, SMALLEST.get(kind, 0)))
    try:
        _run(*_MKFS[kind], image)
        with mounted_image(kind, image, path) as disk:
            if kind in ("ext4", "ext4-0", "ext2"):
                (path / "lost+found").rmdir()
            yield disk
    finally:
        image.unlink()


@contextmanager
def mounted_image(kind: str, image: Path, path: Path) -> Iterator[Disk]:
    """An image that there is, mounted."""
    if kind in _MOUNT:
        loop = subprocess.run(
            ["losetup", "--find", "--show", image], check=True, capture_output=True, text=True
        ).stdout.strip()
        try:
            _run(*_MOUNT[kind], loop, path)
        finally:
            _run("losetup", "--detach", loop)  # in use: it goes when that ends
    else:
        _run("mount", "-o", "loop", image, path)
    try:
        yield Disk(kind, path, image)
    finally:
        take_away(path)


def take_away(path: Path) -> None:
    """Unmounts; what is still open there keeps it no longer than it is open."""
    for _ in range(20):
        if subprocess.run(["umount", path], check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", "--lazy", path], check=True)


def copy_image(source: Path, target: Path) -> None:
    """A copy of an image that is not mounted, sparse."""
    _run("cp", "--sparse=always", "--reflink=auto", source, target)


def _run(*words: str | Path) -> None:
    done = subprocess.run([str(word) for word in words], check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stdout}{done.stderr}")
