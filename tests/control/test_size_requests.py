"""Sizes that make no sense, whatever the budget."""

import pytest

from nbdresize.control.size_requests import check_request
from nbdresize.errors import InvalidArgument
from nbdresize.units import MAX_SIZE, REMAINING, SizeRequest

HUGE = pytest.param(10**5000, id="more digits than Python prints")


@pytest.mark.parametrize("size", [0, -1, -(2**63), MAX_SIZE + 1, 2**64 - 1, HUGE, True, 1.5, "20G"])
def test_a_size_that_makes_no_sense_is_refused_in_one_short_line(size: object) -> None:
    for request in (SizeRequest(exact=size), SizeRequest(relative=size)):  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument) as caught:
            check_request(request)
        assert len(str(caught.value)) < 200
        assert "\n" not in str(caught.value)


def test_a_request_says_exactly_one_thing() -> None:
    for request in (SizeRequest(), SizeRequest(exact=4096, relative=4096), SizeRequest(exact=4096, remaining=True)):
        with pytest.raises(InvalidArgument, match="exactly one thing"):
            check_request(request)


def test_a_new_disk_has_nothing_to_add_to() -> None:
    with pytest.raises(InvalidArgument, match="no size yet"):
        check_request(SizeRequest(relative=4096), new=True)
    check_request(REMAINING, new=True)


def test_a_size_that_will_not_be_rounded_is_a_whole_number_of_granules() -> None:
    check_request(SizeRequest(exact=4097))
    with pytest.raises(InvalidArgument, match="the nearest sizes are 4096 and 8192"):
        check_request(SizeRequest(exact=4097), whole=True)
    with pytest.raises(InvalidArgument, match=r"the nearest sizes are 4096$"):
        check_request(SizeRequest(exact=1), whole=True)


def test_a_size_that_will_be_fitted_may_be_any_of_the_wire() -> None:
    check_request(SizeRequest(exact=2**64 - 1), fit=True)
    with pytest.raises(InvalidArgument, match="more than the largest disk"):
        check_request(SizeRequest(exact=2**64 + 1), fit=True)
