"""Which sizes disks get: changes of several disks of a VM, decided together on the state after all of them.

Without the ledger. All sizes in bytes.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from nbdresize.control.budget import Account, either, largest
from nbdresize.control.model import MAX_DISKS, Cause, DiskChanges, DiskUpdate, ResizeOptions
from nbdresize.control.size_requests import check_request, is_number, shown_number
from nbdresize.errors import InsufficientSpace, InvalidArgument, LimitExceeded, NotAuthorized, ResourceNotFound
from nbdresize.units import GRANULARITY, MAX_SIZE, SizeRequest, format_size, round_down, round_up

_DEFAULT_OPTIONS = ResizeOptions()


@dataclass(frozen=True)
class DiskTerms:
    """A disk as a decision sees it: what messages call it, its size, and the size of its image, 0 without one."""

    name: str
    size: int
    minimum: int = 0


@dataclass(frozen=True)
class Decision:
    """The size that a disk gets, and why that one."""

    size: int
    cause: Cause


@dataclass(frozen=True)
class Decided:
    """What changes come to, in the order in which they were asked for.

    `add`: slot and size of each new disk. `update`: slot, old size and decision, also where nothing changes.
    `remove`: slots.
    """

    add: tuple[tuple[int, int], ...] = ()
    update: tuple[tuple[int, int, Decision], ...] = ()
    remove: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Wish:
    """A disk that is new (`old` 0) or changes; `asked` bytes, None for all that remains."""

    name: str
    old: int
    asked: int | None
    minimum: int
    shrink: bool = False

    @property
    def size(self) -> int:
        """What it takes before what remains is given away."""
        return self.old if self.asked is None else round_up(self.asked)

    def decision(self, size: int) -> Decision:
        if self.asked is None or size == self.asked:
            return Decision(size, Cause.AS_REQUESTED)
        return Decision(size, Cause.ROUNDED_UP if size > self.asked else Cause.FITTED)


def decide_changes(
    account: Account,
    disks: Mapping[int, DiskTerms],
    changes: DiskChanges,
    *,
    image_size: int | None = None,
    options: ResizeOptions = _DEFAULT_OPTIONS,
    taken: Collection[int] = (),
) -> Decided:
    """What all of the changes come to, where all of them are possible; `disks` are the VM's by slot.

    What is removed or shrunk makes room for what is added or grown. `remaining` is evaluated last: it is all that is
    then left, for a disk that is there on top of what it has. A new disk goes to the first slot that neither `disks`
    nor `taken` has; one that is being emptied is not empty yet. A new boot disk of None gets `image_size`.

    Raises, in this order: InvalidArgument for what makes no sense, ResourceNotFound, LimitExceeded for more than
    MAX_DISKS, InvalidArgument for a disk smaller than its image, NotAuthorized for a smaller size without leave,
    InsufficientSpace where the budget does not hold the outcome (and `fit` was not asked for).
    """
    check_changes(changes, options, from_image=image_size is not None)
    for slot in (*changes.remove, *(update.slot for update in changes.update)):
        if slot not in disks:
            there = ", ".join(f"disk{each}" for each in sorted(disks))
            raise ResourceNotFound(f"VM {account.vm} has no disk{slot}", f"it has {there or 'no disks'}")
    slots = _empty_slots(account.vm, {*disks, *taken}, changes)
    new = [_new(slot, request, image_size) for slot, request in zip(slots, changes.add, strict=True)]
    old = [_changed(disks[update.slot], update, options) for update in changes.update]
    for wish in (*new, *old):
        _check_limits(wish, options)
    for wish in old:
        _check_leave(wish)
    sizes = _sizes(account, [*new, *old], sum(disks[slot].size for slot in changes.remove), options)
    return Decided(
        add=tuple(zip(slots, sizes, strict=False)),
        update=tuple(
            (update.slot, wish.old, wish.decision(size))
            for update, wish, size in zip(changes.update, old, sizes[len(new) :], strict=True)
        ),
        remove=changes.remove,
    )


def check_changes(changes: DiskChanges, options: ResizeOptions = _DEFAULT_OPTIONS, *, from_image: bool = False) -> None:
    """Raises InvalidArgument where the changes make no sense, whatever the VM: looked at before anything else.

    `from_image`: a new VM is made from an image, so that its boot disk needs no size.
    """
    several = len(changes.add) + len(changes.update) + len(changes.remove) > 1
    if options.fit and (several or changes.add):
        raise InvalidArgument(
            "Only a disk that changes alone can be fitted to what is free", "give one disk, or one of them 'remaining'"
        )
    for index, request in enumerate(changes.add):
        if request is not None:
            check_request(request, new=True, whole=not options.round_up)
        elif index or not from_image:
            raise InvalidArgument(
                f"New disk {index + 1} of {len(changes.add)} has no size",
                "give one such as 20G; only a boot disk made from an image may go without",
            )
    for update in changes.update:
        check_request(update.size, fit=options.fit, whole=not options.round_up)
    requests = (*changes.add, *(update.size for update in changes.update))
    if sum(request is not None and request.remaining for request in requests) > 1:
        raise InvalidArgument("'remaining' was asked for more than once", "give all disks but one a size")
    _check_slots([*changes.remove, *(update.slot for update in changes.update)])
    if 0 in changes.remove:
        raise InvalidArgument("disk0 is the boot disk, which can't be deleted", "delete the VM to delete it")


def _check_slots(slots: Sequence[int]) -> None:
    for index, slot in enumerate(slots):
        if not is_number(slot) or not 0 <= slot < MAX_DISKS:
            raise InvalidArgument(f"{shown_number(slot)} is no slot of a disk", f"slots are 0 to {MAX_DISKS - 1}")
        if slot in slots[:index]:
            raise InvalidArgument(f"disk{slot} is to be changed twice in one request", "name each disk once")


def _empty_slots(vm: str, taken: Collection[int], changes: DiskChanges) -> list[int]:
    """The slots of new disks."""
    empty = [slot for slot in range(MAX_DISKS) if slot not in taken]
    if len(changes.add) <= len(empty):
        return empty[: len(changes.add)]
    way_out = "grow or delete one of them"
    if changes.remove and len(changes.add) <= len(empty) + len(changes.remove):
        way_out = "a slot that is being emptied takes no new disk yet: add it in a second request"
    raise LimitExceeded(f"VM {vm} would have more than {MAX_DISKS} disks", way_out)


def _new(slot: int, request: SizeRequest | None, image_size: int | None) -> _Wish:
    image = round_up(image_size) if image_size is not None and slot == 0 else 0
    if request is None and not image:
        raise InvalidArgument(f"disk{slot} has no size", "give one such as 20G; only a new boot disk has its image's")
    asked = image if request is None else request.exact
    return _Wish(f"disk{slot}", 0, asked, image)


def _changed(disk: DiskTerms, update: DiskUpdate, options: ResizeOptions) -> _Wish:
    asked = update.size.exact if update.size.relative is None else disk.size + update.size.relative
    return _Wish(disk.name, disk.size, asked, disk.minimum, update.shrink or options.shrink)


def _check_limits(wish: _Wish, options: ResizeOptions) -> None:
    """Raises InvalidArgument for more than a disk can have, or less than its image."""
    if wish.asked is None:
        return
    if wish.size > MAX_SIZE and not options.fit:
        raise InvalidArgument(
            f"{wish.name} at {format_size(wish.size)} would be more than the largest disk, {format_size(MAX_SIZE)}",
            "ask for less",
        )
    if wish.size < wish.minimum:
        raise InvalidArgument(
            f"{wish.name} at {format_size(wish.size)} would be smaller than its image, {format_size(wish.minimum)}",
            f"give at least {format_size(wish.minimum)}",
        )


def _check_leave(wish: _Wish) -> None:
    if wish.size < wish.old and not wish.shrink:
        raise NotAuthorized(
            f"{wish.name} would shrink from {format_size(wish.old)} to {format_size(wish.size)} and lose its end",
            "shrinking loses what lies there; --dangerous-allow-shrink (in JSON dangerous_allow_shrink) allows it",
        )


def _sizes(account: Account, wishes: Sequence[_Wish], removed: int, options: ResizeOptions) -> list[int]:
    """What each gets of the budget, where `removed` bytes come back."""
    needed = sum(wish.size - wish.old for wish in wishes) - removed
    growing = [wish for wish in wishes if wish.size > wish.old]
    spare = account.budget - account.used
    if growing and needed > spare:
        if options.fit:
            return [largest(account, wish.old) for wish in wishes]
        what = " and ".join(f"{wish.name} at {format_size(wish.size)}" for wish in growing)
        raise account.refuse(what, needed - min(0, spare), verb="needs" if len(growing) == 1 else "need")
    rest = max(0, round_down(spare - needed))
    for wish in wishes:
        if wish.asked is None:
            _check_rest(account, wish, rest, needed)
    return [min(wish.size + rest, MAX_SIZE) if wish.asked is None else wish.size for wish in wishes]


def _check_rest(account: Account, wish: _Wish, rest: int, needed: int) -> None:
    """Raises InsufficientSpace where `rest` is not enough for the new disk that gets all that remains."""
    if wish.old or (rest and rest >= wish.minimum):
        return
    ways = either([*account.ways_to_more(needed + max(wish.minimum, GRANULARITY)), "ask for less elsewhere"])
    budget = f"of the {format_size(account.budget)} of VM {account.vm}"
    if not rest:
        raise InsufficientSpace(f"Nothing remains for {wish.name} {budget}", ways)
    raise InsufficientSpace(
        f"Only {format_size(rest)} remains for {wish.name} {budget}, but its image has {format_size(wish.minimum)}",
        ways,
    )
