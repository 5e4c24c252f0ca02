"""Which files go into the kernel's page cache: small ones, whole, once, and never while their pages may be locked."""

import errno

import pyfuse3

from fusefs.inodes import InodeNumber
from fusefs.pagecache import REMEMBERED_MAX, STORE_BYTES_MAX, PageCache

FILE = InodeNumber(1 << 40)


class Kernel:
    """Notes what it is given."""

    def __init__(self, refuses: bool = False) -> None:
        self.given: list[tuple[int, int, bytes]] = []
        self._refuses = refuses

    def store(self, number: pyfuse3.InodeT, offset: int, data: bytes | memoryview) -> None:
        if self._refuses:
            raise OSError(errno.ENOMEM, "no pages")
        self.given.append((int(number), offset, bytes(data)))


def opened(pages: PageCache, number: int, data: bytes = b"bytes") -> None:
    """As `open` does."""
    known = InodeNumber(number)
    if pages.wants(known, len(data)):
        pages.give(known, data)
    pages.opened(known)


def test_a_file_is_given_once_however_often_it_is_opened() -> None:
    kernel = Kernel()
    pages = PageCache(kernel.store)
    for _ in range(3):
        opened(pages, FILE)
        pages.closed(FILE)
    assert kernel.given == [(FILE, 0, b"bytes")]


def test_nothing_is_given_while_a_handle_is_open() -> None:
    pages = PageCache(Kernel().store)
    pages.opened(FILE)
    pages.opened(FILE)
    assert not pages.wants(FILE, 5)
    pages.closed(FILE)
    assert not pages.wants(FILE, 5)
    pages.closed(FILE)
    assert pages.wants(FILE, 5)


def test_empty_and_large_files_are_left_to_read() -> None:
    pages = PageCache(Kernel().store)
    assert [pages.wants(FILE, size) for size in (0, 1, STORE_BYTES_MAX, STORE_BYTES_MAX + 1)] == [
        False,
        True,
        True,
        False,
    ]


def test_what_the_kernel_refuses_is_read_as_ever() -> None:
    pages = PageCache(Kernel(refuses=True).store)
    opened(pages, FILE)
    pages.closed(FILE)
    assert not pages.wants(FILE, 5), "not tried at every open"


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first() -> None:
    kernel = Kernel()
    pages = PageCache(kernel.store)
    for number in range(REMEMBERED_MAX + 1):
        opened(pages, FILE + number)
        pages.closed(InodeNumber(FILE + number))
    assert len(kernel.given) == REMEMBERED_MAX + 1
    assert pages.wants(FILE, 5)
    assert not pages.wants(InodeNumber(FILE + 1), 5)
