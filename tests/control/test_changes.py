"""Decisions about changes of disks against a plain oracle: dictionaries, loops, and every size tried."""

import copy
from dataclasses import dataclass

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from nbdresize.control.budget import Account
from nbdresize.control.changes import Decided, Decision, DiskTerms, check_changes, decide_changes
from nbdresize.control.model import Cause, DiskChanges, DiskUpdate, ResizeOptions
from nbdresize.errors import (
    InsufficientSpace,
    InvalidArgument,
    LimitExceeded,
    NbdresizeError,
    NotAuthorized,
    ResourceNotFound,
)
from nbdresize.units import GRANULARITY, MAX_SIZE, REMAINING, SizeRequest

BLOCKS = 12
"""Budgets of a few blocks, so that the oracle can try everything; arithmetic does not change with size."""

GIB = 1 << 30

NOTHING_SPECIAL = ResizeOptions()

odd = st.integers(-GRANULARITY, BLOCKS * GRANULARITY + 1)
small = st.integers(1, 4).map(lambda blocks: blocks * GRANULARITY)
new_sizes = st.one_of(small.map(lambda size: SizeRequest(exact=size)), st.just(REMAINING))
sizes = st.one_of(new_sizes, small.map(lambda size: SizeRequest(relative=size)))
strange_sizes = st.one_of(
    odd.map(lambda size: SizeRequest(exact=size)), odd.map(lambda size: SizeRequest(relative=size))
)
options = st.builds(ResizeOptions, shrink=st.booleans(), fit=st.booleans(), round_up=st.booleans())
terms = st.builds(lambda size, less: DiskTerms("disk", size, max(0, size - less)), small, small)


@dataclass(frozen=True)
class Case:
    """A VM, what else it is charged (`others`, `snapshots`), and what is asked of it."""

    budget: int
    others: int
    snapshots: int
    disks: dict[int, DiskTerms]
    taken: frozenset[int]
    wanted: DiskChanges
    image: int | None
    how: ResizeOptions

    @property
    def account(self) -> Account:
        return Account("vm", self.budget, sum(disk.size for disk in self.disks.values()) + self.others, self.snapshots)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Mostly such as make sense: of any at all, nearly none would be accepted."""

    def seldom() -> bool:
        return draw(st.integers(0, 9)) == 9

    disks = draw(st.dictionaries(st.integers(0, 7), terms, max_size=8 if seldom() else 4))
    others, snapshots = draw(st.integers(0, 2 * GRANULARITY)), draw(st.integers(0, 2 * GRANULARITY))
    charged = sum(disk.size for disk in disks.values()) + others + snapshots
    least = max(0, charged - GRANULARITY) if seldom() else charged
    budget = draw(st.integers(least, least + BLOCKS * GRANULARITY))
    image = draw(st.none() | st.integers(1, 3 * GRANULARITY))
    new = new_sizes | strange_sizes if seldom() else new_sizes
    changed = sizes | strange_sizes if seldom() else sizes
    add: list[SizeRequest | None] = list(draw(st.lists(new, max_size=2)))
    sizeless = draw(st.booleans())
    if add and sizeless and (seldom() or (image is not None and 0 not in disks)):
        add[0] = None
    there = st.integers(-1, 8) if seldom() else st.sampled_from(sorted(disks) or [0])
    several = draw(st.lists(there, min_size=not add, max_size=4, unique=not seldom())) if disks or seldom() else []
    removed = [slot for slot in several if draw(st.booleans()) and (slot or seldom())]
    updated = [slot for slot in several if slot not in removed or seldom()]
    return Case(
        budget,
        others,
        snapshots,
        disks,
        draw(st.frozensets(st.integers(0, 7), max_size=2)) - set(disks),
        DiskChanges(
            tuple(add),
            tuple(DiskUpdate(slot, draw(changed), shrink=draw(st.booleans())) for slot in updated),
            tuple(removed),
        ),
        image,
        draw(options) if seldom() or len(several) == 1 else ResizeOptions(shrink=draw(st.booleans())),
    )


def every_size(start: int, end: int) -> range:
    return range(start, end + 1, GRANULARITY)


def up(size: int) -> int:
    return next(whole for whole in every_size(0, 4 * BLOCKS * GRANULARITY) if whole >= size)


class Refused(Exception):
    def __init__(self, error: type[NbdresizeError]) -> None:
        self.error = error


def oracle_form(wanted: DiskChanges, image: int | None, how: ResizeOptions) -> None:
    if how.fit and (wanted.add or len(wanted.update) + len(wanted.remove) > 1):
        raise Refused(InvalidArgument)
    remaining = 0
    for place, request in enumerate([*wanted.add, *[update.size for update in wanted.update]]):
        new = place < len(wanted.add)
        if request is None:
            if place > 0 or image is None:
                raise Refused(InvalidArgument)
            continue
        if request.remaining:
            remaining += 1
            continue
        if new and request.relative is not None:
            raise Refused(InvalidArgument)
        size = request.relative if request.relative is not None else request.exact
        assert size is not None
        if size <= 0 or (size % GRANULARITY and not how.round_up):
            raise Refused(InvalidArgument)
    named = [*wanted.remove, *[update.slot for update in wanted.update]]
    if remaining > 1 or len(named) != len(set(named)) or 0 in wanted.remove or set(named) - set(range(8)):
        raise Refused(InvalidArgument)


def oracle(case: Case) -> tuple[dict[int, int], list[int]]:
    """The sizes of all disks afterwards, and the slots of the new ones in the order of the request."""
    disks, wanted, image, how = case.disks, case.wanted, case.image, case.how
    oracle_form(wanted, image, how)
    for slot in [*wanted.remove, *[update.slot for update in wanted.update]]:
        if slot not in disks:
            raise Refused(ResourceNotFound)
    added: list[int] = []
    for _ in wanted.add:
        empty = [slot for slot in range(8) if slot not in disks and slot not in case.taken and slot not in added]
        if not empty:
            raise Refused(LimitExceeded)
        added.append(empty[0])
    after = {slot: disk.size for slot, disk in disks.items() if slot not in wanted.remove}
    others = case.others + case.snapshots
    last: tuple[int, int] | None = None
    too_small = shrinks = False
    for slot, request in zip(added, wanted.add, strict=True):
        least = up(image) if slot == 0 and image is not None else GRANULARITY
        if request is None:
            if slot != 0:
                raise Refused(InvalidArgument)
            after[slot] = least
        elif request.remaining:
            last = (slot, least)
        else:
            after[slot] = up(request.exact or 0)
            too_small = too_small or after[slot] < least
    for update in wanted.update:
        now, request = disks[update.slot], update.size
        if request.remaining:
            last = (update.slot, now.size)
            continue
        size = up(request.exact if request.exact is not None else now.size + (request.relative or 0))
        after[update.slot] = size
        too_small = too_small or (size < now.size and size < now.minimum)
        shrinks = shrinks or (size < now.size and not (update.shrink or how.shrink))
    if too_small:
        raise Refused(InvalidArgument)
    if shrinks:
        raise Refused(NotAuthorized)
    grows = any(slot in added or size > disks[slot].size for slot, size in after.items())
    if grows and others + sum(after.values()) > case.budget:
        if not how.fit:
            raise Refused(InsufficientSpace)
        (slot,) = [update.slot for update in wanted.update]
        after[slot] = disks[slot].size
        for size in every_size(disks[slot].size, case.budget):
            if others + sum({**after, slot: size}.values()) <= case.budget:
                after[slot] = size
    if last is not None:
        slot, least = last
        best = least if slot in disks else None
        for size in every_size(least, case.budget):
            if others + sum({**after, slot: size}.values()) <= case.budget:
                best = size
        if best is None:
            raise Refused(InsufficientSpace)
        after[slot] = best
    return after, added


@settings(max_examples=800)
@given(case=cases())
@example(  # more is charged already than the budget has: giving back is still fine, and frees nothing for others
    Case(
        budget=4 * GRANULARITY,
        others=0,
        snapshots=2 * GRANULARITY,
        disks={0: DiskTerms("disk", 3 * GRANULARITY), 1: DiskTerms("disk", 2 * GRANULARITY)},
        taken=frozenset(),
        wanted=DiskChanges(update=(DiskUpdate(0, REMAINING),), remove=(1,)),
        image=None,
        how=ResizeOptions(),
    )
)
def test_changes_come_to_what_trying_every_size_would_find(case: Case) -> None:
    disks, wanted = case.disks, case.wanted
    before = copy.deepcopy(disks)

    def decide() -> Decided:
        return decide_changes(case.account, disks, wanted, image_size=case.image, options=case.how, taken=case.taken)

    try:
        after, added = oracle(case)
    except Refused as refused:
        with pytest.raises(NbdresizeError) as caught:
            decide()
        assert type(caught.value) is refused.error, str(caught.value)
        assert caught.value.way_out
        assert len(str(caught.value)) < 600
        assert disks == before
        return
    decided = decide()
    assert [slot for slot, _ in decided.add] == added
    assert decided.remove == wanted.remove
    assert [(slot, old) for slot, old, _ in decided.update] == [
        (update.slot, disks[update.slot].size) for update in wanted.update
    ]
    got = {slot: disk.size for slot, disk in disks.items() if slot not in decided.remove}
    got |= dict(decided.add) | {slot: decision.size for slot, _, decision in decided.update}
    assert got == after
    assert all(size % GRANULARITY == 0 and size > 0 for size in got.values())
    total = case.others + case.snapshots + sum(got.values())
    grown = any(slot not in disks or size > disks[slot].size for slot, size in got.items())
    assert total <= case.budget or not grown
    if REMAINING in wanted.add or REMAINING in [update.size for update in wanted.update]:
        assert total > case.budget - GRANULARITY, "more than a granule was left"


@given(disks=st.dictionaries(st.integers(0, 7), terms, min_size=2, max_size=8), moved=small)
def test_space_moves_from_one_disk_to_another_in_one_request(disks: dict[int, DiskTerms], moved: int) -> None:
    """The budget is used up to the last byte, before and after."""
    giver, taker = sorted(disks, key=lambda slot: -disks[slot].size)[:2]
    giver_now, taker_now = disks[giver], disks[taker]
    moved = min(moved, giver_now.size - GRANULARITY, giver_now.size - giver_now.minimum)
    assume(moved > 0)
    all_of_it = sum(disk.size for disk in disks.values())
    account = Account("vm", all_of_it, all_of_it)
    grow = DiskUpdate(taker, SizeRequest(relative=moved))
    with pytest.raises(InsufficientSpace, match="nothing free"):
        decide_changes(account, disks, DiskChanges(update=(grow,)))
    shrink = DiskUpdate(giver, SizeRequest(exact=giver_now.size - moved), shrink=True)
    decided = decide_changes(account, disks, DiskChanges(update=(grow, shrink)))
    assert [decision.size for _, _, decision in decided.update] == [taker_now.size + moved, giver_now.size - moved]
    rest = DiskChanges(update=(DiskUpdate(taker, REMAINING), shrink))
    assert decide_changes(account, disks, rest).update == decided.update


def resized(account: Account, current: int, request: SizeRequest, how: ResizeOptions = NOTHING_SPECIAL) -> Decision:
    """What one disk gets that changes alone."""
    wanted = DiskChanges(update=(DiskUpdate(0, request),))
    ((slot, old, decision),) = decide_changes(account, {0: DiskTerms("d", current)}, wanted, options=how).update
    assert (slot, old) == (0, current)
    return decision


def boot_and_data() -> dict[int, DiskTerms]:
    return {0: DiskTerms("web1/disk0", 10 * GIB, 10 * GIB), 2: DiskTerms("web1/disk2", 30 * GIB)}


def full() -> Account:
    return Account("web1", 40 * GIB, 40 * GIB)


def test_what_a_deleted_disk_gives_back_goes_to_a_new_one_and_to_one_that_takes_the_rest() -> None:
    changes = DiskChanges(add=(SizeRequest(exact=5 * GIB),), update=(DiskUpdate(0, REMAINING),), remove=(2,))
    assert decide_changes(full(), boot_and_data(), changes) == Decided(
        add=((1, 5 * GIB),), update=((0, 10 * GIB, Decision(35 * GIB, Cause.AS_REQUESTED)),), remove=(2,)
    )


def test_one_change_that_is_impossible_refuses_all() -> None:
    good = DiskUpdate(2, SizeRequest(exact=20 * GIB), shrink=True)
    too_much = DiskUpdate(0, SizeRequest(exact=21 * GIB))
    with pytest.raises(InsufficientSpace, match="web1/disk0 at 21 GiB needs 1 GiB more"):
        decide_changes(full(), boot_and_data(), DiskChanges(update=(good, too_much)))


def test_a_refusal_of_several_names_what_grows_and_what_all_of_it_needs() -> None:
    changes = DiskChanges(
        add=(SizeRequest(exact=20 * GIB),),
        update=(DiskUpdate(0, SizeRequest(exact=40 * GIB)), DiskUpdate(2, SizeRequest(exact=20 * GIB), shrink=True)),
    )
    account = Account("web1", 60 * GIB, 40 * GIB)
    with pytest.raises(InsufficientSpace) as caught:
        decide_changes(account, boot_and_data(), changes)
    assert caught.value.problem == (
        "disk1 at 20 GiB and web1/disk0 at 40 GiB need 40 GiB more, but VM web1 has 20 GiB free of its 60 GiB"
    )


def test_a_slot_that_is_being_emptied_takes_no_new_disk_yet() -> None:
    disks = {slot: DiskTerms(f"vm/disk{slot}", GIB) for slot in range(8)}
    changes = DiskChanges(add=(SizeRequest(exact=GIB),), remove=(3,))
    with pytest.raises(LimitExceeded, match=r"more than 8 disks: .* second request"):
        decide_changes(Account("vm", 100 * GIB, 8 * GIB), disks, changes)
    del disks[3]
    with pytest.raises(LimitExceeded, match="more than 8 disks: grow or delete"):
        decide_changes(Account("vm", 100 * GIB, 8 * GIB), disks, DiskChanges(add=changes.add), taken=[3])
    assert decide_changes(Account("vm", 100 * GIB, 7 * GIB), disks, DiskChanges(add=changes.add)).add == ((3, GIB),)


@pytest.mark.parametrize("leave", [DiskUpdate(2, SizeRequest(exact=20 * GIB), shrink=True), ResizeOptions(shrink=True)])
def test_shrinking_needs_leave_and_says_from_what_to_what(leave: DiskUpdate | ResizeOptions) -> None:
    """RFD 154, update_disks: the refused shrink from 102400 MiB to 20480 MiB."""
    disks = {2: DiskTerms("web1/disk2", 100 * GIB)}
    account = Account("web1", 100 * GIB, 100 * GIB)
    asked = DiskUpdate(2, SizeRequest(exact=20 * GIB))
    with pytest.raises(NotAuthorized, match=r"web1/disk2 .*from 100 GiB to 20 GiB.*--dangerous-allow-shrink"):
        decide_changes(account, disks, DiskChanges(update=(asked,)))
    update = leave if isinstance(leave, DiskUpdate) else asked
    how = leave if isinstance(leave, ResizeOptions) else ResizeOptions()
    decided = decide_changes(account, disks, DiskChanges(update=(update,)), options=how)
    assert decided.update == ((2, 100 * GIB, Decision(20 * GIB, Cause.AS_REQUESTED)),)


def test_leave_to_shrink_one_disk_is_none_for_another() -> None:
    disks = {1: DiskTerms("web1/disk1", 2 * GIB), 2: DiskTerms("web1/disk2", 2 * GIB)}
    less = SizeRequest(exact=GIB)
    changes = DiskChanges(update=(DiskUpdate(1, less, shrink=True), DiskUpdate(2, less)))
    with pytest.raises(NotAuthorized, match="web1/disk2"):
        decide_changes(Account("web1", 4 * GIB, 4 * GIB), disks, changes)


def test_no_leave_shrinks_a_disk_below_its_image() -> None:
    shrink = DiskUpdate(0, SizeRequest(exact=8 * GIB), shrink=True)
    with pytest.raises(InvalidArgument, match=r"disk0 at 8 GiB .* its image, 10 GiB: give at least 10 GiB"):
        decide_changes(full(), boot_and_data(), DiskChanges(update=(shrink,)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (DiskChanges(remove=(0,)), "boot disk"),
        (DiskChanges(remove=(2, 2)), "disk2 is to be changed twice"),
        (DiskChanges(update=(DiskUpdate(2, REMAINING),), remove=(2,)), "disk2 is to be changed twice"),
        (DiskChanges(add=(REMAINING,), update=(DiskUpdate(2, REMAINING),)), "more than once"),
        (DiskChanges(add=(SizeRequest(relative=GIB),)), "no size yet to add to"),
        (DiskChanges(add=(SizeRequest(exact=GIB), None)), "New disk 2 of 2 has no size"),
        (DiskChanges(remove=(8,)), "8 is no slot"),
        (DiskChanges(remove=(True,)), "True is no slot"),
        (DiskChanges(remove=(10**5000,)), "a number of 16610 bits is no slot"),
        (DiskChanges(add=(SizeRequest(exact=GIB + 1),)), "no multiple of 4096: .* 1073741824 and 1073745920"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_looked_up(changes: DiskChanges, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        check_changes(changes)
    with pytest.raises(InvalidArgument, match=words):
        decide_changes(Account("vm", GIB, 0), {}, changes)


def test_only_a_disk_that_changes_alone_is_fitted() -> None:
    grow = DiskUpdate(2, SizeRequest(exact=100 * GIB))
    account, how = Account("web1", 60 * GIB, 40 * GIB), ResizeOptions(fit=True)
    alone = decide_changes(account, boot_and_data(), DiskChanges(update=(grow,)), options=how)
    assert alone.update == ((2, 30 * GIB, Decision(50 * GIB, Cause.FITTED)),)
    for changes in (
        DiskChanges(add=(SizeRequest(exact=GIB),)),
        DiskChanges(update=(grow, DiskUpdate(0, SizeRequest(exact=11 * GIB)))),
    ):
        with pytest.raises(InvalidArgument, match="alone"):
            decide_changes(account, boot_and_data(), changes, options=how)


def test_a_disk_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ResourceNotFound, match="VM web1 has no disk1: it has disk0, disk2"):
        decide_changes(full(), boot_and_data(), DiskChanges(remove=(1,)))
    with pytest.raises(ResourceNotFound, match="it has no disks"):
        decide_changes(full(), {}, DiskChanges(remove=(1,)))


def test_a_new_boot_disk_has_at_least_the_size_of_its_image() -> None:
    account = Account("web1", 30 * GIB, 0)
    assert decide_changes(account, {}, DiskChanges(add=(None,)), image_size=10 * GIB).add == ((0, 10 * GIB),)
    larger = DiskChanges(add=(SizeRequest(exact=20 * GIB), SizeRequest(exact=GIB)))
    assert decide_changes(account, {}, larger, image_size=10 * GIB).add == ((0, 20 * GIB), (1, GIB))
    with pytest.raises(InvalidArgument, match="disk0 at 20 GiB would be smaller than its image, 25 GiB"):
        decide_changes(account, {}, larger, image_size=25 * GIB)
    everything = DiskChanges(add=(REMAINING, SizeRequest(exact=10 * GIB)))
    assert decide_changes(account, {}, everything, image_size=10 * GIB).add == ((0, 20 * GIB), (1, 10 * GIB))
    with pytest.raises(InsufficientSpace, match=r"Only 20 GiB remains for disk0 .* its image has 25 GiB"):
        decide_changes(account, {}, everything, image_size=25 * GIB)


def test_an_image_of_an_odd_size_makes_a_disk_of_whole_granules() -> None:
    account = Account("vm", GIB, 0)
    assert decide_changes(account, {}, DiskChanges(add=(None,)), image_size=4097).add == ((0, 8192),)


def test_a_disk_that_is_no_boot_disk_does_not_get_the_size_of_an_image() -> None:
    with pytest.raises(InvalidArgument, match="disk1 has no size"):
        decide_changes(Account("web1", 100 * GIB, 40 * GIB), boot_and_data(), DiskChanges(add=(None,)), image_size=GIB)


def test_nothing_that_remains_is_no_new_disk() -> None:
    with pytest.raises(InsufficientSpace, match=r"Nothing remains for disk1 of the 40 GiB of VM web1: .*--disk-space"):
        decide_changes(full(), boot_and_data(), DiskChanges(add=(REMAINING,)))


def test_a_package_that_holds_the_image_is_named_where_what_remains_does_not() -> None:
    packages = {"a": 40 * GIB, "b": 59 * GIB, "c": 60 * GIB}
    account = Account("web1", 30 * GIB, 0, packages=packages)
    changes = DiskChanges(add=(REMAINING, SizeRequest(exact=20 * GIB)))
    with pytest.raises(InsufficientSpace, match=r"Only 10 GiB remains .* --package c, or"):
        decide_changes(account, {}, changes, image_size=40 * GIB)


def test_what_is_charged_beyond_the_budget_is_needed_too() -> None:
    grow = DiskUpdate(0, SizeRequest(relative=5 * GIB))
    less = DiskUpdate(2, SizeRequest(exact=27 * GIB), shrink=True)
    with pytest.raises(InsufficientSpace, match="needs 12 GiB more, but VM web1 has nothing free of its 30 GiB"):
        decide_changes(Account("web1", 30 * GIB, 40 * GIB), boot_and_data(), DiskChanges(update=(grow, less)))


def test_all_that_is_left_is_nothing_for_a_disk_that_is_there() -> None:
    decided = decide_changes(full(), boot_and_data(), DiskChanges(update=(DiskUpdate(0, REMAINING),)))
    assert decided.update == ((0, 10 * GIB, Decision(10 * GIB, Cause.AS_REQUESTED)),)


def test_snapshots_leave_less_for_disks() -> None:
    account = Account("web1", 60 * GIB, 40 * GIB, snapshots=15 * GIB)
    changes = DiskChanges(add=(REMAINING,))
    assert decide_changes(account, boot_and_data(), changes).add == ((1, 5 * GIB),)


def test_all_that_remains_is_asked_for_as_a_size_that_is_fitted() -> None:
    """RESIZE with FIT and 2^64-1 on the wire."""
    account = Account("vm", 10 * GRANULARITY, GRANULARITY)
    everything = SizeRequest(exact=2**64 - 1)
    how = ResizeOptions(fit=True, round_up=True)
    decision = resized(account, GRANULARITY, everything, how)
    assert (decision.size, decision.cause) == (10 * GRANULARITY, Cause.FITTED)


def test_a_size_that_is_rounded_up_says_so() -> None:
    account = Account("vm", 10 * GRANULARITY, GRANULARITY)
    decision = resized(account, GRANULARITY, SizeRequest(exact=5000), ResizeOptions(round_up=True))
    assert (decision.size, decision.cause) == (2 * GRANULARITY, Cause.ROUNDED_UP)


def test_no_disk_is_larger_than_the_largest() -> None:
    account = Account("vm", MAX_SIZE, GRANULARITY)
    with pytest.raises(InvalidArgument, match="more than the largest disk"):
        resized(account, GRANULARITY, SizeRequest(relative=MAX_SIZE))
    for budget in (MAX_SIZE, 2 * MAX_SIZE):
        account = Account("vm", budget, GRANULARITY)
        assert resized(account, GRANULARITY, REMAINING).size == MAX_SIZE
