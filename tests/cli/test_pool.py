"""`nbdresize pool`: what it holds and may promise."""

import pytest

from tests.cli.command import Inside

pytestmark = pytest.mark.slow

GIB = 1 << 30


def test_a_pool_is_shown_and_changed(inside: Inside) -> None:
    pool = inside("pool", "update", "--capacity", "10G", "--overcommit", "1.5", "--json").ok().json
    sizes = ["capacity", "available", "budgets", "images", "rollbacks", "promised"]
    assert list(pool) == [*sizes, "overcommit", "limit", "free"]
    inside("vm", "create", "web1", "--disk-space", "4G").ok()
    pool = inside("pool", "show", "--json").ok().json
    assert (pool["capacity"], pool["overcommit"], pool["limit"]) == (10 * GIB, 1.5, 15 * GIB)
    assert (pool["budgets"], pool["images"], pool["promised"], pool["free"]) == (4 * GIB, 0, 4 * GIB, 11 * GIB)
    shown = dict(line.split("  ", 1) for line in inside("pool", "show").ok().out.splitlines())
    shown = {name: value.strip() for name, value in shown.items()}
    assert shown["capacity"] == "10 GiB"
    assert shown["may be promised"] == "1.5 times"
    assert shown["left to promise"] == "11 GiB"
    assert str(10 * GIB) in inside("pool", "show", "--bytes").ok().out
    assert "Pool: 4 GiB of 1.5 times 10 GiB promised, 11 GiB left to promise" in inside("status").ok().out


def test_without_a_limit_anything_is_promised(inside: Inside) -> None:
    pool = inside("pool", "update", "--overcommit", "unlimited", "--json").ok().json
    assert pool["overcommit"] is pool["limit"] is pool["free"] is None
    shown = inside("pool", "show").ok().out
    assert "any number of times" in shown
    assert "any amount" in shown
    inside("vm", "create", "web1", "--disk-space", "1E").ok()


def test_capacity_0_is_that_of_the_file_system(inside: Inside) -> None:
    inside("pool", "update", "--capacity", "1G").ok()
    assert inside("pool", "update", "--capacity", "0", "--json").ok().json["capacity"] != GIB


def test_a_full_pool_refuses_with_the_way_out(inside: Inside) -> None:
    inside("pool", "update", "--capacity", "1G", "--overcommit", "1").ok()
    refused = inside("vm", "create", "web1", "--disk-space", "2G").failed(4, "InsufficientSpace")
    assert "nbdresize pool update --overcommit RATIO" in refused
    inside("pool", "update").failed(2, "UsageError")
    for bad in ("-1", "much", "0"):
        inside("pool", "update", "--overcommit", bad).failed(3, "InvalidArgument")
    inside("pool", "update", "--capacity", "big").failed(3, "InvalidArgument")
