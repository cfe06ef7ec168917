"""Deletion protection from the command line: what it refuses, and how it is taken away."""

import pytest

from tests.cli.command import Command, Inside

pytestmark = pytest.mark.slow


def test_a_protected_vm_is_neither_deleted_nor_shrunk_and_says_how_it_could_be(web1: Command, inside: Inside) -> None:
    assert inside("vm", "update", "web1", "--protected", "--json").ok().json["protected"] is True
    before = inside("vm", "show", "web1", "--json").ok().json
    losses = (
        ("vm", "delete", "web1", "--yes"),
        ("disk", "delete", "web1", "disk1", "--yes"),
        ("disk", "resize", "web1", "disk0", "10G", "--dangerous-allow-shrink", "--disconnect"),
        ("disk", "resize", "web1", "--set", "disk0=30G", "--set", "disk1=1G", "--dangerous-allow-shrink"),
    )
    for words in losses:
        refusal = inside(*words).failed(7, "DeletionProtected")
        assert "nbdresize vm update web1 --no-protected" in refusal
    assert inside("vm", "show", "web1", "--json").ok().json == before
    inside("disk", "resize", "web1", "disk0", "+1G").ok()
    inside("disk", "add", "web1", "1G").ok()
    assert inside("vm", "update", "web1", "--no-protected", "--json").ok().json["protected"] is False
    for words in reversed(losses):
        inside(*words).ok()


def test_show_says_that_a_vm_is_protected(web1: Command, inside: Inside) -> None:
    told = "protected: its disks can't be shrunk, deleted or rolled back"
    assert told not in inside("vm", "show", "web1").ok().out
    inside("vm", "update", "web1", "--protected").ok()
    assert told in inside("vm", "show", "web1").ok().out.splitlines()
