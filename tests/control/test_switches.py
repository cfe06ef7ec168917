"""Switches of the site, of owners and of VMs, and lists of owners: the strictest holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import Allowed, ClientResize, DiskChanges, OperationState
from nbdresize.control.switches import Feature, Rules, Scope, Switch, Switches
from nbdresize.errors import InvalidArgument, NotAuthorized, ResourceNotFound
from nbdresize.units import SizeRequest
from tests.control.consistency import problems

MIB = 1 << 20
FEATURES = ("client_resize", "snapshots", "flexible_disks")

OWNERS = st.sampled_from(["ada", "bob", "1"])
VALUES = {"client_resize": ["off", "grow", "all"], "snapshots": ["off", "on"], "flexible_disks": ["off", "on"]}
SETTINGS = st.sampled_from(FEATURES).flatmap(
    lambda feature: st.tuples(
        st.just(feature),
        st.one_of(
            st.tuples(st.just("site"), st.just("")),
            st.tuples(st.just("owner"), OWNERS),
            st.tuples(st.just("vm"), st.sampled_from(["1", "2"])),
        ),
        st.sampled_from(VALUES[feature]),
    )
)


def oracle(
    settings: list[tuple[str, tuple[str, str], str]], lists: list[tuple[str, str]], owner: str | None
) -> Allowed:
    """What VM 1 of that owner may do: each setting takes away what it does not name."""
    strength = {"off": 0, "grow": 1, "on": 1, "all": 2}
    effective: dict[str, str] = {}
    for feature, (scope, subject), value in settings:
        if (scope, subject) in (("site", ""), ("vm", "1")) or (scope == "owner" and subject == owner):
            known = effective.get(feature, value)
            effective[feature] = value if strength[value] < strength[known] else known
    for feature in FEATURES:
        listed = [each for where, each in lists if where == feature]
        if listed and owner not in listed:
            effective[feature] = "off"
    resize = effective.get("client_resize")
    return Allowed(
        ClientResize(resize) if resize else None,
        effective.get("snapshots") != "off",
        effective.get("flexible_disks") != "off",
    )


@given(
    settings=st.lists(SETTINGS, unique_by=lambda each: each[:2]),
    lists=st.lists(st.tuples(st.sampled_from(FEATURES), OWNERS), unique=True),
    owner=st.one_of(st.none(), OWNERS),
)
def test_the_strictest_of_all_that_are_set_holds(
    settings: list[tuple[str, tuple[str, str], str]], lists: list[tuple[str, str]], owner: str | None
) -> None:
    values = {(Feature(feature), Scope(scope), subject): value for feature, (scope, subject), value in settings}
    values |= {(Feature(feature), Scope.ALLOWED, subject): "yes" for feature, subject in lists}
    assert Rules(values).allowed(1, owner) == oracle(settings, lists, owner)


@pytest.fixture
def vms(control: Control) -> Control:
    """web1 and web2 of ada, db1 of bob, free1 of nobody."""
    for name, owner in (("web1", "ada"), ("web2", "ada"), ("db1", "bob"), ("free1", None)):
        control.create_vm(name, 64 * MIB, [SizeRequest(exact=MIB)], owner=owner)
    return control


def flexible(control: Control) -> list[str]:
    return [vm.name for vm in control.vms() if vm.allowed.flexible_disks]


def test_a_switch_holds_for_a_vm_an_owner_or_the_site(vms: Control, state: StateDirectory) -> None:
    assert flexible(vms) == ["db1", "free1", "web1", "web2"]
    vms.set_switch("flexible_disks", "off", vm="web1")
    assert flexible(vms) == ["db1", "free1", "web2"]
    vms.set_switch("flexible-disks", "off", owner="ada")
    assert flexible(vms) == ["db1", "free1"]
    told = vms.set_switch("flexible_disks", "off")
    assert flexible(vms) == []
    off = [(Scope.SITE, ""), (Scope.OWNER, "ada"), (Scope.VM, "web1")]
    assert told == vms.switches()
    assert told.settings == tuple(Switch(Feature.FLEXIBLE_DISKS, scope, subject, "off") for scope, subject in off)
    vms.set_switch("flexible_disks", "on")
    vms.unset_switch("flexible_disks", owner="ada")
    assert flexible(vms) == ["db1", "free1", "web2"]
    assert vms.unset_switch("flexible_disks", vm="web1").settings[0].value == "on"
    assert flexible(vms) == ["db1", "free1", "web1", "web2"]
    assert problems(state) == []


def test_a_list_of_owners_keeps_all_others_from_a_feature(vms: Control) -> None:
    assert vms.allow("snapshots", "ada", "bob").allowed == {Feature.SNAPSHOTS: ("ada", "bob")}
    assert [vm.name for vm in vms.vms() if vm.allowed.snapshots] == ["db1", "web1", "web2"]
    vms.disallow("snapshots", "ada")
    assert [vm.name for vm in vms.vms() if vm.allowed.snapshots] == ["db1"]
    assert vms.disallow("snapshots", "bob") == Switches()
    assert all(vm.allowed.snapshots for vm in vms.vms())


def test_disks_of_a_vm_stay_as_they_are_where_they_are_switched_off(vms: Control, state: StateDirectory) -> None:
    vms.set_switch("flexible_disks", "off", owner="ada")
    for attempt in (
        lambda: vms.add_disk("web1", SizeRequest(exact=MIB)),
        lambda: vms.resize_disk("web1", "disk0", SizeRequest(exact=2 * MIB)),
        lambda: vms.change_disks("web1", DiskChanges(add=(SizeRequest(exact=MIB),))),
    ):
        with pytest.raises(NotAuthorized, match="switched off for VM web1"):
            attempt()
    assert vms.maximum("web1", "disk0") == MIB
    vms.resize_disk("db1", "disk0", SizeRequest(exact=2 * MIB))
    assert problems(state) == []


def test_a_new_vm_of_the_same_name_has_no_switches_of_the_old_one(vms: Control, state: StateDirectory) -> None:
    vms.set_switch("flexible_disks", "off", vm="web1")
    vms.set_switch("client_resize", "off", vm="web1")
    vms.delete_vm("web1")
    assert vms.switches() == Switches()
    vms.create_vm("web1", MIB)
    assert vms.vm("web1").allowed == Allowed()
    assert problems(state) == []


def test_what_can_not_be_switched_is_refused(vms: Control) -> None:
    for feature, value, match in (
        ("teleporting", "off", "what can be: client_resize, snapshots, flexible_disks"),
        ("snapshots", "grow", "can be set to off, on"),
        ("client_resize", "on", "can be set to off, grow, all"),
        ("client_resize", "\x1b[31m", "no value"),
    ):
        with pytest.raises(InvalidArgument, match=match) as refused:
            vms.set_switch(feature, value)
        assert "\x1b" not in str(refused.value)
    with pytest.raises(ResourceNotFound, match="no VM web9"):
        vms.set_switch("snapshots", "off", vm="web9")
    with pytest.raises(InvalidArgument, match="not for both"):
        vms.set_switch("snapshots", "off", vm="web1", owner="ada")
    for owner in ("", "a\nb"):
        with pytest.raises(InvalidArgument, match="can't be an owner"):
            vms.allow("snapshots", "ada", owner)
        with pytest.raises(InvalidArgument, match="can't be an owner"):
            vms.set_switch("snapshots", "off", owner=owner)
    with pytest.raises(InvalidArgument, match="No owner"):
        vms.allow("snapshots")
    with pytest.raises(ResourceNotFound, match="not set for owner ada"):
        vms.unset_switch("snapshots", owner="ada")
    with pytest.raises(ResourceNotFound, match="has no list"):
        vms.disallow("snapshots", "ada")
    vms.allow("snapshots", "bob")
    with pytest.raises(ResourceNotFound, match="on it are bob"):
        vms.disallow("snapshots", "bob", "ada")
    assert vms.switches().allowed == {Feature.SNAPSHOTS: ("bob",)}


def test_a_retry_sets_nothing_again(vms: Control) -> None:
    vms.set_switch("snapshots", "off", operation="one")
    vms.set_switch("snapshots", "on")
    assert vms.set_switch("snapshots", "off", operation="one").settings[0].value == "on"
    vms.unset_switch("snapshots", operation="two")
    vms.unset_switch("snapshots", operation="two")
    with pytest.raises(InvalidArgument, match="another request"):
        vms.allow("snapshots", "ada", operation="two")
    done = vms.operation("one")
    assert (done.kind, done.subject, done.state) == ("set_switch", "the site", OperationState.DONE)
