"""The arithmetic of budgets against a plain oracle: try sizes from the largest down, and see which is allowed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdresize.control.budget import Account, check_budget, check_request, decide_new, decide_resize, largest
from nbdresize.control.model import Cause, ResizeOptions
from nbdresize.errors import InsufficientSpace, InvalidArgument, NbdresizeError, NotAuthorized
from nbdresize.units import GRANULARITY, MAX_SIZE, REMAINING, SizeRequest

BLOCKS = 12
"""Budgets of a few blocks, so that the oracle can try everything; arithmetic does not change with size."""

HUGE = pytest.param(10**5000, id="more digits than Python prints")

bytes_ = st.integers(-GRANULARITY, BLOCKS * GRANULARITY + 1) | st.integers(0, BLOCKS).map(lambda n: n * GRANULARITY)
whole = st.integers(1, BLOCKS).map(lambda n: n * GRANULARITY)
requests = st.one_of(
    bytes_.map(lambda size: SizeRequest(exact=size)),
    bytes_.map(lambda size: SizeRequest(relative=size)),
    st.just(REMAINING),
)
options = st.builds(ResizeOptions, shrink=st.booleans(), fit=st.booleans(), round_up=st.booleans())


def sizes_of_blocks(limit: int) -> list[int]:
    return [blocks * GRANULARITY for blocks in range(limit // GRANULARITY + 1)]


@given(budget=st.integers(0, BLOCKS * GRANULARITY), current=whole, others=bytes_, request_=requests, how=options)
def test_a_resize_gets_what_trying_every_size_would_find(
    budget: int, current: int, others: int, request_: SizeRequest, how: ResizeOptions
) -> None:
    used = current + max(0, others)
    account = Account("vm", budget, used)
    allowed = [size for size in sizes_of_blocks(budget) if used - current + size <= budget]
    most = max([current, *allowed])
    expected: int | type[NbdresizeError]
    asked = request_.exact if request_.exact is not None else current + (request_.relative or 0)
    given = request_.exact if request_.exact is not None else request_.relative
    rounded = min(size for size in sizes_of_blocks(3 * BLOCKS * GRANULARITY) if size >= asked)
    if request_.remaining:
        expected, cause = most, Cause.AS_REQUESTED
    elif given is None or given <= 0 or (rounded != asked and not how.round_up):
        expected, cause = InvalidArgument, Cause.QUERY
    elif rounded < current:
        expected, cause = (rounded if how.shrink else NotAuthorized), Cause.AS_REQUESTED
    elif rounded <= most:
        expected, cause = rounded, Cause.AS_REQUESTED
    else:
        expected, cause = (most if how.fit else InsufficientSpace), Cause.FITTED
    if cause is Cause.AS_REQUESTED and rounded != asked and not request_.remaining:
        cause = Cause.ROUNDED_UP
    if isinstance(expected, type):
        with pytest.raises(expected):
            decide_resize(account, "vm/disk0", current, request_, how)
        return
    decision = decide_resize(account, "vm/disk0", current, request_, how)
    assert (decision.size, decision.cause) == (expected, cause)
    assert decision.size % GRANULARITY == 0
    assert used - current + decision.size <= budget or decision.size <= current


@given(budget=st.integers(0, BLOCKS * GRANULARITY), used=bytes_, wanted=st.lists(requests, max_size=4))
def test_new_disks_get_what_they_asked_for_or_none_gets_anything(
    budget: int, used: int, wanted: list[SizeRequest]
) -> None:
    account = Account("vm", budget, max(0, used))
    names = [f"disk{slot}" for slot in range(len(wanted))]
    fixed = [request.exact for request in wanted if not request.remaining]
    makes_sense = all(size is not None and size > 0 and size % GRANULARITY == 0 for size in fixed)
    if not makes_sense or wanted.count(REMAINING) > 1:
        with pytest.raises(InvalidArgument):
            decide_new(account, wanted, names)
        return
    total = sum(size for size in fixed if size is not None)
    left = [size for size in sizes_of_blocks(budget) if size and account.used + total + size <= budget]
    if (REMAINING in wanted and not left) or (total and account.used + total > budget):
        with pytest.raises(InsufficientSpace):
            decide_new(account, wanted, names)
        return
    sizes = decide_new(account, wanted, names)
    assert sizes == [max(left) if request.remaining else request.exact for request in wanted]


@given(current=whole, used=whole, budget=st.integers(0, BLOCKS * GRANULARITY))
def test_the_largest_size_is_granted_and_one_block_more_is_not(current: int, used: int, budget: int) -> None:
    account = Account("vm", budget, current + used)
    most = largest(account, current)
    assert decide_resize(account, "d", current, SizeRequest(exact=most), ResizeOptions()).size == most
    with pytest.raises(InsufficientSpace):
        decide_resize(account, "d", current, SizeRequest(exact=most + GRANULARITY), ResizeOptions())


@pytest.mark.parametrize("size", [0, -1, -(2**63), MAX_SIZE + 1, 2**64 - 1, HUGE, True, 1.5, "20G"])
def test_a_size_that_makes_no_sense_is_refused_in_one_short_line(size: object) -> None:
    for request in (SizeRequest(exact=size), SizeRequest(relative=size)):  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument) as caught:
            check_request(request)
        assert len(str(caught.value)) < 200
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("budget", [0, -1, GRANULARITY - 1, MAX_SIZE + 1, HUGE, True, 1.5, None])
def test_a_budget_that_makes_no_sense_is_refused(budget: object) -> None:
    with pytest.raises(InvalidArgument):
        check_budget(budget)  # type: ignore[arg-type]


def test_a_request_says_exactly_one_thing() -> None:
    for request in (SizeRequest(), SizeRequest(exact=4096, relative=4096), SizeRequest(exact=4096, remaining=True)):
        with pytest.raises(InvalidArgument, match="exactly one thing"):
            check_request(request)


def test_all_that_remains_is_asked_for_as_a_size_that_is_fitted() -> None:
    """RESIZE with FIT and 2^64-1 on the wire."""
    account = Account("vm", 10 * GRANULARITY, GRANULARITY)
    everything = SizeRequest(exact=2**64 - 1)
    how = ResizeOptions(fit=True, round_up=True)
    decision = decide_resize(account, "d", GRANULARITY, everything, how)
    assert (decision.size, decision.cause) == (10 * GRANULARITY, Cause.FITTED)


def test_a_refusal_says_what_was_needed_what_is_free_and_the_way_out() -> None:
    gib = 1 << 30
    with pytest.raises(InsufficientSpace) as caught:
        decide_resize(
            Account("web1", 100 * gib, 50 * gib),
            "web1/disk0",
            30 * gib,
            SizeRequest(relative=500 * gib),
            ResizeOptions(),
        )
    assert (
        caught.value.problem == "web1/disk0 at 530 GiB needs 500 GiB more, but VM web1 has 50 GiB free of its 100 GiB"
    )
    assert "at most 50 GiB more" in caught.value.way_out
    assert "nbdresize vm update web1 --disk-space" in caught.value.way_out


def test_the_end_of_numbers_is_no_way_around_the_budget() -> None:
    account = Account("vm", MAX_SIZE, GRANULARITY)
    assert largest(account, GRANULARITY) == MAX_SIZE
    with pytest.raises(InsufficientSpace):
        decide_resize(account, "d", GRANULARITY, SizeRequest(relative=MAX_SIZE), ResizeOptions())
