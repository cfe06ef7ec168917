"""`nbdresize switch`: what is set and listed, and what is refused."""

import pytest

from tests.cli.command import Inside

pytestmark = pytest.mark.slow


@pytest.fixture
def site(inside: Inside) -> Inside:
    inside("vm", "create", "web1", "--disk-space", "1G", "--disk", "64M", "--owner", "alice").ok()
    return inside


def test_switches_are_set_listed_and_taken_away(site: Inside) -> None:
    assert "Nothing is switched" in site("switch", "list").ok().out
    site("switch", "set", "client-resize", "grow").ok()
    site("switch", "set", "snapshots", "off", "--owner", "alice").ok()
    shown = site("switch", "set", "flexible_disks", "off", "--vm", "web1").ok().out.splitlines()
    assert shown == [
        "FEATURE         FOR          VALUE",
        "client_resize   site         grow",
        "snapshots       owner alice  off",
        "flexible_disks  vm web1      off",
    ]
    assert site("switch", "list", "--json").ok().json == {
        "switches": [
            {"feature": "client_resize", "value": "grow", "vm": None, "owner": None},
            {"feature": "snapshots", "value": "off", "vm": None, "owner": "alice"},
            {"feature": "flexible_disks", "value": "off", "vm": "web1", "owner": None},
        ],
        "allowed": {},
    }
    site("disk", "add", "web1", "64M").failed(8, "NotAuthorized")
    site("switch", "unset", "flexible-disks", "--vm", "web1").ok()
    site("disk", "add", "web1", "64M").ok()
    site("switch", "unset", "snapshots", "--owner", "alice").ok()
    assert "Nothing is switched" in site("switch", "unset", "client_resize").ok().out


def test_lists_of_owners(site: Inside) -> None:
    assert site("switch", "allow", "snapshots", "bob", "alice", "--json").ok().json == {
        "switches": [],
        "allowed": {"snapshots": ["alice", "bob"]},
    }
    assert "snapshots  all but alice, bob  off" in site("switch", "list").ok().out
    site("switch", "disallow", "snapshots", "bob").ok()
    assert site("vm", "show", "web1", "--json").ok().json["allowed"]["snapshots"] is True
    site("switch", "allow", "snapshots", "bob").ok()
    site("switch", "disallow", "snapshots", "alice").ok()
    assert site("vm", "show", "web1", "--json").ok().json["allowed"]["snapshots"] is False


def test_refusals_name_what_there_is(site: Inside) -> None:
    assert "snapshots, flexible_disks" in site("switch", "set", "magic", "on").failed(3, "InvalidArgument")
    assert "off, on" in site("switch", "set", "snapshots", "all").failed(3, "InvalidArgument")
    site("switch", "set", "snapshots", "off", "--vm", "web9").failed(5, "ResourceNotFound")
    site("switch", "set", "snapshots", "off", "--vm", "web1", "--owner", "alice").failed(3, "InvalidArgument")
    site("switch", "unset", "snapshots").failed(5, "ResourceNotFound")
    site("switch", "disallow", "snapshots", "alice").failed(5, "ResourceNotFound")
    site("switch", "allow", "snapshots").failed(2, "UsageError")


def test_a_retry_with_the_same_id_changes_nothing(site: Inside) -> None:
    for _ in range(2):
        site("switch", "set", "snapshots", "off", "--operation-id", "one").ok()
        site("switch", "unset", "snapshots", "--operation-id", "two").ok()
    site("switch", "set", "snapshots", "on", "--operation-id", "one").failed(3, "InvalidArgument")
