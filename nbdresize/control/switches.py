"""Switches: which features a site, an owner and a VM may use (RFD 44, "Ability to Disable" and "Initial Rollout").

Of all that are set for a VM, the strictest holds; a server has one more for client_resize, which `serve` is given. A
feature with a list of allowed owners is off for all others. Functions work inside the caller's transaction.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import sqlalchemy as sql

from nbdresize.control import names, schema
from nbdresize.control.ledger import known
from nbdresize.control.model import Allowed, ClientResize
from nbdresize.errors import InvalidArgument


class Feature(enum.Enum):
    """What can be switched, by the name that users give."""

    CLIENT_RESIZE = "client_resize"
    SNAPSHOTS = "snapshots"
    FLEXIBLE_DISKS = "flexible_disks"

    @property
    def values(self) -> tuple[str, ...]:
        """What it can be set to, the strictest first."""
        if self is Feature.CLIENT_RESIZE:
            return tuple(each.value for each in ClientResize)
        return ("off", "on")

    @classmethod
    def named(cls, name: str) -> "Feature":
        """The feature that users call so; dashes are fine. Raises InvalidArgument."""
        wanted = name.replace("-", "_") if isinstance(name, str) else name
        found = next((each for each in cls if each.value == wanted), None)
        if found is None:
            known = ", ".join(each.value for each in cls)
            raise InvalidArgument(f"{names.shown(name)} can't be switched", f"what can be: {known}")
        return found


class Scope(enum.Enum):
    """What a switch holds for. ALLOWED is no switch: an owner on the feature's list."""

    SITE = "site"
    OWNER = "owner"
    VM = "vm"
    ALLOWED = "allowed"


@dataclass(frozen=True)
class Switch:
    """A feature set to `value` for the whole site, for the owner or for the VM that `subject` names."""

    feature: Feature
    scope: Scope
    subject: str
    value: str


@dataclass(frozen=True)
class Switches:
    """All that is switched: what is set, and of each feature that has a list, the owners on it."""

    settings: tuple[Switch, ...] = ()
    allowed: Mapping[Feature, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Rules:
    """All switches of a site: `values` by feature, scope and subject."""

    values: Mapping[tuple[Feature, Scope, str], str] = field(default_factory=dict)

    def client_resize_of(self, vm_id: int) -> ClientResize | None:
        """What is set for the VM itself."""
        value = self._of_vms.get(str(vm_id), {}).get(Feature.CLIENT_RESIZE)
        return None if value is None else ClientResize(value)

    def allowed(self, vm_id: int, owner: str | None) -> Allowed:
        """What all switches together leave to a VM of that owner."""
        if owner not in self._of_owners:  # found out once for all of the owner's VMs that have no switches of their own
            self._of_owners[owner] = self._allowed(owner, {})
        own = self._of_vms.get(str(vm_id))
        return self._of_owners[owner] if own is None else self._allowed(owner, own)

    @cached_property
    def lists(self) -> Mapping[Feature, frozenset[str]]:
        """The owners on each feature's list; where there are any, it is off for all others."""
        listed = [(feature, subject) for feature, scope, subject in self.values if scope is Scope.ALLOWED]
        return {each: frozenset(subject for feature, subject in listed if feature is each) for each in Feature}

    @cached_property
    def _of_vms(self) -> Mapping[str, Mapping[Feature, str]]:
        """What is set for VMs themselves, by their ids."""
        found: dict[str, dict[Feature, str]] = {}
        for (feature, scope, subject), value in self.values.items():
            if scope is Scope.VM:
                found.setdefault(subject, {})[feature] = value
        return found

    @cached_property
    def _of_owners(self) -> dict[str | None, Allowed]:
        return {}

    def _allowed(self, owner: str | None, own: Mapping[Feature, str]) -> Allowed:
        policy = self._strictest(Feature.CLIENT_RESIZE, owner, own)
        return Allowed(
            None if policy is None else ClientResize(policy),
            self._strictest(Feature.SNAPSHOTS, owner, own) != "off",
            self._strictest(Feature.FLEXIBLE_DISKS, owner, own) != "off",
        )

    def _strictest(self, feature: Feature, owner: str | None, own: Mapping[Feature, str]) -> str | None:
        listed = self.lists[feature]
        if listed and owner not in listed:
            return "off"
        found = [own.get(feature), self.values.get((feature, Scope.SITE, ""))]
        if owner is not None:
            found.append(self.values.get((feature, Scope.OWNER, owner)))
        return min(filter(None, found), key=feature.values.index, default=None)


def read(connection: sql.Connection) -> Rules:
    """All switches."""
    rows = connection.execute(sql.select(schema.switches)).mappings()
    return Rules(
        {(known(Feature, row["feature"]), known(Scope, row["scope"]), row["subject"]): row["value"] for row in rows}
    )


def read_named(connection: sql.Connection) -> Switches:
    """All switches, for people: VMs by name; by feature, the widest first."""
    rules = read(connection)
    vms = schema.vms
    known = dict(connection.execute(sql.select(sql.cast(vms.c.id, sql.Text), vms.c.name)).tuples().all())
    settings = [
        Switch(feature, scope, known.get(subject, subject) if scope is Scope.VM else subject, value)
        for (feature, scope, subject), value in rules.values.items()
        if scope is not Scope.ALLOWED
    ]
    features, scopes = list(Feature), list(Scope)
    settings.sort(key=lambda each: (features.index(each.feature), scopes.index(each.scope), each.subject))
    return Switches(tuple(settings), {each: tuple(sorted(owners)) for each, owners in rules.lists.items() if owners})


def put(connection: sql.Connection, feature: Feature, scope: Scope, subject: str, value: str | None) -> None:
    """Set a switch; None takes it away. Raises InvalidArgument for a value that the feature does not have."""
    table = schema.switches
    if value is not None and scope is not Scope.ALLOWED and value not in feature.values:
        raise InvalidArgument(
            f"{names.shown(value)} is no value of {feature.value}", f"it can be set to {', '.join(feature.values)}"
        )
    here = (table.c.feature == feature.value) & (table.c.scope == scope.value) & (table.c.subject == subject)
    connection.execute(sql.delete(table).where(here))
    if value is not None:
        row = {"feature": feature.value, "scope": scope.value, "subject": subject, "value": value}
        connection.execute(sql.insert(table).values(row))


def forget_vm(connection: sql.Connection, vm_id: int) -> None:
    """Remove the switches of a VM that is deleted."""
    table = schema.switches
    connection.execute(sql.delete(table).where(table.c.scope == Scope.VM.value, table.c.subject == str(vm_id)))
