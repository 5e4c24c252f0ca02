"""What the kernel is told at INIT, beside what libfuse says."""

from fusefs.handshake import AUTO_INVAL_DATA, DONT_MASK, DROPS_FAILED_WRITES, HANDLE_KILLPRIV_V2, answered

LIBFUSE = AUTO_INVAL_DATA | 0x1
EVERYTHING = 0xFFFF_FFFF


def test_what_the_kernel_offers_is_asked_for() -> None:
    assert answered(LIBFUSE, EVERYTHING, 38) == 0x1 | HANDLE_KILLPRIV_V2 | DONT_MASK
    assert answered(LIBFUSE, LIBFUSE | DONT_MASK, 38) == 0x1 | DONT_MASK
    assert answered(LIBFUSE, LIBFUSE, 38) == 0x1


def test_a_kernel_that_keeps_what_a_failed_write_left_goes_on_forgetting_by_mtime() -> None:
    assert answered(LIBFUSE, LIBFUSE, DROPS_FAILED_WRITES - 1) == LIBFUSE
