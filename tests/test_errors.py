"""The one table of errors."""

import errno
import inspect

import pytest

from nbdresize import errors
from nbdresize.errors import ERRORS, EXIT_BUG, EXIT_INTERRUPTED, EXIT_USAGE, NbdresizeError

# NBD protocol, section "Error values": the errnos that a server may send.
NBD_ERRNOS = {
    *(errno.EPERM, errno.EIO, errno.ENOMEM, errno.EINVAL, errno.ENOSPC),
    *(errno.EOVERFLOW, errno.ENOTSUP, errno.ESHUTDOWN),
}


def test_the_table_holds_every_error_class() -> None:
    defined = {value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, NbdresizeError)}
    assert set(ERRORS) == defined - {NbdresizeError}


def test_every_error_has_an_exit_code_of_its_own_in_the_order_of_the_table() -> None:
    codes = [error.exit_code for error in ERRORS]
    assert codes == sorted(set(codes))
    assert not set(codes) & {0, EXIT_BUG, EXIT_USAGE, EXIT_INTERRUPTED}
    assert all(code < 64 for code in codes)  # from 126 on they are the shell's


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_turns_into_what_each_side_understands(error: type[NbdresizeError]) -> None:
    assert error.nbd_errno in NBD_ERRNOS
    assert 400 <= error.http_status < 600
    assert error.__doc__
    assert error("x").name == error.__name__


def test_an_error_reads_as_problem_and_way_out() -> None:
    assert str(errors.ResourceInUse("It is used", "wait")) == "It is used: wait"
    assert str(errors.ResourceInUse("It is used")) == "It is used"
