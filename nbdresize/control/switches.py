"""Switches: which features a site, an owner and a VM may use (RFD 44, "Ability to Disable" and "Initial Rollout").

Of all that are set for a VM, the strictest holds. A feature with a list of allowed owners is off for all others.
Functions work inside the caller's transaction.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

import sqlalchemy as sql

from nbdresize.control import schema
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


class Scope(enum.Enum):
    """What a switch holds for. ALLOWED is no switch: an owner on the feature's list."""

    SITE = "site"
    OWNER = "owner"
    VM = "vm"
    ALLOWED = "allowed"


@dataclass(frozen=True)
class Rules:
    """All switches of a site: `values` by feature, scope and subject."""

    values: Mapping[tuple[Feature, Scope, str], str] = field(default_factory=dict)

    def client_resize_of(self, vm_id: int) -> ClientResize | None:
        """What is set for the VM itself."""
        value = self.values.get((Feature.CLIENT_RESIZE, Scope.VM, str(vm_id)))
        return None if value is None else ClientResize(value)

    def allowed(self, vm_id: int, owner: str | None) -> Allowed:
        """What all switches together leave to a VM of that owner."""
        if not self.values:
            return Allowed()
        policy = self._strictest(Feature.CLIENT_RESIZE, vm_id, owner)
        return Allowed(
            None if policy is None else ClientResize(policy),
            self._strictest(Feature.SNAPSHOTS, vm_id, owner) != "off",
            self._strictest(Feature.FLEXIBLE_DISKS, vm_id, owner) != "off",
        )

    def allowed_owners(self, feature: Feature) -> list[str]:
        """The owners on the feature's list; where there are any, it is off for all others."""
        return sorted(subject for each, scope, subject in self.values if each is feature and scope is Scope.ALLOWED)

    def _strictest(self, feature: Feature, vm_id: int, owner: str | None) -> str | None:
        listed = self.allowed_owners(feature)
        if listed and owner not in listed:
            return "off"
        subjects = [(Scope.SITE, ""), (Scope.VM, str(vm_id))]
        if owner is not None:
            subjects.append((Scope.OWNER, owner))
        found = [value for scope, subject in subjects if (value := self.values.get((feature, scope, subject)))]
        return min(found, key=feature.values.index, default=None)


def read(connection: sql.Connection) -> Rules:
    """All switches."""
    rows = connection.execute(sql.select(schema.switches)).mappings()
    return Rules({(Feature(row["feature"]), Scope(row["scope"]), row["subject"]): row["value"] for row in rows})


def put(connection: sql.Connection, feature: Feature, scope: Scope, subject: str, value: str | None) -> None:
    """Set a switch; None takes it away. Raises InvalidArgument for a value that the feature does not have."""
    table = schema.switches
    if value is not None and scope is not Scope.ALLOWED and value not in feature.values:
        raise InvalidArgument(
            f"{value!r} is no value of {feature.value}", f"it can be set to {', '.join(feature.values)}"
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
