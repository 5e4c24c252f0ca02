"""Renames among very many paths that are alike."""

from repository.renames import CANDIDATES_MAX, Renames, Traces

ALIKE = 5_000


def test_many_equal_files_are_paired_without_comparing_each_with_all() -> None:
    """Copies with one time and one content, as an unpacked archive has them, moved and renamed."""
    looks = 0

    class Path(bytes):
        def rpartition(self, separator: object, /) -> tuple[bytes, bytes, bytes]:
            nonlocal looks
            looks += 1
            return super().rpartition(b"/")

    gone: dict[bytes, Traces] = {Path(b"old/%05d" % at): Traces(False, at, 7) for at in range(ALIKE)}
    came: dict[bytes, Traces] = {b"new/f%05d" % at: Traces(False, ALIKE + at, 7) for at in range(ALIKE)}
    renames = Renames(gone, came)
    assert sorted(renames.old_of) == sorted(came) and sorted(renames.new_of) == sorted(gone)
    assert looks <= ALIKE * CANDIDATES_MAX


def test_of_equal_files_the_one_of_the_same_name_is_taken() -> None:
    gone = {b"old/a": Traces(False, 1, 7), b"old/b": Traces(False, 2, 7)}
    came = {b"new/b": Traces(False, 3, 7), b"new/c": Traces(False, 4, 7)}
    assert Renames(gone, came).old_of == {b"new/b": b"old/b", b"new/c": b"old/a"}
