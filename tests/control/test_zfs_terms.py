"""The numbers that a VM's ZFS dataset is given (RFD 154, "Calculation of ZFS space")."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdresize.control.zfs_terms import zfs_overhead, zfs_quota
from nbdresize.errors import InvalidArgument

MIB = 1 << 20

bytes_ = st.integers(0, 1 << 50)


@given(
    quota=bytes_, disk=st.integers(1, 1 << 50), volumes=st.lists(st.tuples(bytes_, st.integers(0, 1 << 40)), max_size=8)
)
def test_the_quota_is_what_the_vm_has_and_what_zfs_needs_for_its_volumes(
    quota: int, disk: int, volumes: list[tuple[int, int]]
) -> None:
    sizes = [size for size, _ in volumes]
    reservations = [size + metadata for size, metadata in volumes]
    overhead = 0
    for _, metadata in volumes:
        overhead += metadata
    assert zfs_overhead(reservations, sizes) == overhead
    assert zfs_quota(quota, disk, reservations, sizes) == quota + disk + overhead


def test_a_disk_that_grows_inside_the_budget_moves_the_quota_only_by_its_metadata() -> None:
    before = zfs_quota(10240 * MIB, 112640 * MIB, [10400 * MIB, 20800 * MIB], [10240 * MIB, 20480 * MIB])
    after = zfs_quota(10240 * MIB, 112640 * MIB, [10400 * MIB, 41600 * MIB], [10240 * MIB, 40960 * MIB])
    assert before == (10240 + 112640 + 160 + 320) * MIB
    assert after - before == 320 * MIB


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ((-1, 1, [], []), "A quota of -1"),
        ((1, -1, [], []), "A disk space of -1"),
        ((1, 1, [-5], [1]), "A refreservation of -5"),
        ((1, 1, [1], [-5]), "A volsize of -5"),
        ((1, 1, [True], [1]), "A refreservation of True"),
        ((1, 1, [1], [1, 2]), "1 values of refreservation for 2 volumes"),
    ],
)
def test_terms_that_can_not_be_are_refused(terms: tuple[int, int, list[int], list[int]], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        zfs_quota(*terms)


@pytest.mark.parametrize("reserved", [0, 20 * MIB], ids=["none left", "less than none"])
def test_a_quota_that_zfs_would_take_for_no_limit_is_refused(reserved: int) -> None:
    with pytest.raises(InvalidArgument, match="quota would be"):
        zfs_quota(0, 20 * MIB, [reserved], [reserved + 20 * MIB])
    with pytest.raises(InvalidArgument, match="quota would be -1 MiB"):
        zfs_quota(0, 20 * MIB, [reserved], [reserved + 21 * MIB])
