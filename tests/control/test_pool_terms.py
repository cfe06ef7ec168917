"""How much of a pool may be promised."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdresize.control.pool_terms import PoolTerms, shown_ratio
from nbdresize.errors import InsufficientSpace

GIB = 1 << 30


@given(
    capacity=st.integers(1, 100),
    promised=st.integers(0, 300),
    ratio=st.fractions(Fraction(1, 10), 3, max_denominator=10),
    more=st.integers(-10, 100),
)
def test_no_more_is_promised_than_the_ratio_allows(capacity: int, promised: int, ratio: Fraction, more: int) -> None:
    pool = PoolTerms(capacity, promised, ratio)
    fine = more <= 0 or (promised + more) * ratio.denominator <= capacity * ratio.numerator
    assert pool.free is not None
    assert (more <= 0 or more <= pool.free) is fine
    if fine:
        pool.check("VM web1", more)
    else:
        with pytest.raises(InsufficientSpace):
            pool.check("VM web1", more)


@pytest.mark.parametrize("pool", [PoolTerms(0, 10 * GIB), PoolTerms(GIB, 10 * GIB, None)])
def test_a_pool_without_a_limit_promises_anything(pool: PoolTerms) -> None:
    assert (pool.limit, pool.free) == (None, None)
    pool.check("VM web1", 1 << 62)


def test_a_refusal_says_capacity_promise_and_the_way_out() -> None:
    with pytest.raises(InsufficientSpace) as caught:
        PoolTerms(100 * GIB, 70 * GIB).check("VM web1", 40 * GIB)
    assert caught.value.problem == (
        "VM web1 needs 40 GiB of the pool, which has 30 GiB left to promise: 70 GiB of its 100 GiB is promised"
    )
    assert "nbdresize pool update --overcommit RATIO" in caught.value.way_out
    with pytest.raises(InsufficientSpace, match=r"has nothing left to promise: 150 GiB of 1\.5 times its 100 GiB"):
        PoolTerms(100 * GIB, 150 * GIB, Fraction(3, 2)).check("Image debian", 1)


def test_a_ratio_is_shown_short() -> None:
    assert [shown_ratio(Fraction(n, 6)) for n in (6, 9, 8)] == ["1", "1.5", "1.333"]
