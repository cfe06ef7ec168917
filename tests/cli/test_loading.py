"""Loading without a search for garbage, which goes on afterwards."""

import gc

import pytest

from nbdresize.cli.loading import loading


def test_garbage_is_looked_for_again_after_loading() -> None:
    with loading():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_garbage_is_looked_for_again_after_loading_has_failed() -> None:
    with pytest.raises(ImportError), loading():
        raise ImportError
    assert gc.isenabled()
