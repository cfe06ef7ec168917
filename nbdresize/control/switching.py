"""Setting switches, each change a transaction of its own: it waits for no other change of a VM to end."""

from collections.abc import Sequence

from nbdresize.control import names, operations, records, switches
from nbdresize.control.records import Kind
from nbdresize.control.site import Site, visible
from nbdresize.control.switches import Feature, Scope, Switches
from nbdresize.errors import InvalidArgument, ResourceNotFound

_LISTED = "yes"


def set_switch(
    site: Site, feature: str, value: str | None, *, vm: str | None, owner: str | None, operation: str | None
) -> Switches:
    """Set a feature for a VM, an owner, or else the site; None takes the switch away. See Control.set_switch."""
    if vm is not None and owner is not None:
        raise InvalidArgument("A switch holds for a VM or for an owner, not for both", "set two switches")
    of = Feature.named(feature)
    names.check_owner(owner)
    scope = Scope.VM if vm is not None else Scope.OWNER if owner is not None else Scope.SITE
    arguments = records.arguments_of(Kind.SET_SWITCH, feature=of.value, value=value, vm=vm, owner=owner)
    request = _request(operation, arguments, vm, [owner] if owner else [])
    with site.ledger.deciding() as connection:
        if operations.outcome_of(connection, request) is None:
            subject = owner or ""
            if vm is not None:
                names.check_vm_name(vm)
                subject = str(visible(records.read_vm(connection, vm), vm).vm.id)
            if value is None and (of, scope, subject) not in switches.read(connection).values:
                raise ResourceNotFound(
                    f"{of.value} is not set for {_whom(vm, owner)}", "nbdresize switch list shows what is"
                )
            switches.put(connection, of, scope, subject, value)
            operations.remember(connection, request, {})
        return switches.read_named(connection)


def set_allowed(site: Site, feature: str, owners: Sequence[str], *, allowed: bool, operation: str | None) -> Switches:
    """Put owners on a feature's list, or take them off it. See Control.allow."""
    of = Feature.named(feature)
    if not owners:
        raise InvalidArgument("No owner was given", "give one or more")
    for owner in owners:
        names.check_owner(owner)
    arguments = records.arguments_of(Kind.SET_SWITCH, feature=of.value, owners=list(owners), allowed=allowed)
    request = _request(operation, arguments, None, owners)
    with site.ledger.deciding() as connection:
        if operations.outcome_of(connection, request) is None:
            if not allowed:
                _check_listed(of, owners, switches.read(connection).lists[of])
            for owner in owners:
                switches.put(connection, of, Scope.ALLOWED, owner, _LISTED if allowed else None)
            operations.remember(connection, request, {})
        return switches.read_named(connection)


def _check_listed(feature: Feature, owners: Sequence[str], listed: frozenset[str]) -> None:
    missing = next((owner for owner in owners if owner not in listed), None)
    if missing is not None:
        there = ", ".join(sorted(listed))
        raise ResourceNotFound(
            f"{missing} is not on the list of {feature.value}",
            f"on it are {there}" if there else "it has no list, so that all owners may use it",
        )


def _request(operation: str | None, arguments: str, vm: str | None, owners: Sequence[str]) -> operations.Request:
    """Its subject is a VM, or else something that no VM can be called."""
    subject = vm if vm is not None else f"owner {', '.join(owners)}" if owners else "the site"
    return operations.Request(names.operation_id(operation), Kind.SET_SWITCH.value, subject, arguments)


def _whom(vm: str | None, owner: str | None) -> str:
    return f"VM {vm}" if vm is not None else f"owner {owner}" if owner is not None else "the site"
