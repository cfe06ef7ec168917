"""What QEMU's command line tells of its nodes, and what a node's file name does."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from nbdresize.guests.qemu import options
from nbdresize.guests.qemu.command_line import Described, described, find_above, find_nbd, of_process

UNIX = "server.type=unix,server.path=/run/nbd.sock"


def same(export: str, server: Mapping[str, Any]) -> bool:
    return export == "web1/disk0" and server == {"type": "unix", "path": "/run/nbd.sock"}


def nbd_of(*arguments: str, name: str = "gone") -> Described:
    found = find_nbd(described(arguments), name, same)
    assert found is not None
    return found


JSON = {
    "driver": "nbd",
    "node-name": "n0",
    "export": "web1/disk0",
    "server": {"type": "unix", "path": "/run/nbd.sock"},
    "reconnect-delay": 9,
    "discard": "unmap",
}


@pytest.mark.parametrize(
    "arguments",
    [
        ("-blockdev", f"nbd,node-name=n0,{UNIX},export=web1/disk0,reconnect-delay=9,discard=unmap"),
        ("--blockdev", f"export=web1/disk0,driver=nbd,node-name=n0,{UNIX},reconnect-delay=9,discard=unmap"),
        ("-blockdev", json.dumps(JSON)),
        ("-blockdev", json.dumps({"driver": "raw", "node-name": "f0", "file": JSON})),
        (
            "-blockdev",
            f"raw,file.driver=nbd,file.{UNIX.replace(',', ',file.')},file.export=web1/disk0,file.reconnect-delay=9",
        ),
        ("-drive", "file.driver=nbd,file.path=/run/nbd.sock,file.export=web1/disk0,file.reconnect-delay=9,if=virtio"),
        ("-drive", f"driver=nbd,{UNIX},export=web1/disk0,reconnect-delay=9,discard=unmap,if=none,id=x"),
        ("-drive", f"file=json:{json.dumps(JSON).replace(',', ',,')},if=virtio"),
    ],
)
def test_a_connection_is_found_however_it_is_written(arguments: tuple[str, ...]) -> None:
    found = nbd_of("-m", "64", *arguments, "-S")
    assert found.carried("reconnect-delay") == {"reconnect-delay": 9}
    assert found.discard == "unmap"


@pytest.mark.parametrize(
    "file", ["nbd+unix:///web1/disk0?socket=/run/nbd.sock", "nbd+unix:///web1%2Fdisk0?socket=%2Frun%2Fnbd.sock"]
)
def test_a_connection_is_found_by_its_uri(file: str) -> None:
    found = nbd_of("-drive", f"file={file},if=virtio,discard=ignore")
    assert found.carried("reconnect-delay") == {}
    assert found.discard == "unmap"  # what is below lets through what the drive does


@pytest.mark.parametrize(
    ("file", "server", "export"),
    [
        ("nbd+unix:///e?socket=/run/a+b%2Bc%20d", {"type": "unix", "path": "/run/a+b+c d"}, "e"),
        ("nbd+unix:///e?x=1&socket=/run/a;b", {"type": "unix", "path": "/run/a;b"}, "e"),
        ("nbd:unix:/run/a+b.sock:exportname=web1/disk0", {"type": "unix", "path": "/run/a+b.sock"}, "web1/disk0"),
        ("nbd:unix:/run/nbd.sock", {"type": "unix", "path": "/run/nbd.sock"}, ""),
        ("nbd:localhost:10810:exportname=e:f", {"type": "inet", "host": "localhost", "port": "10810"}, "e:f"),
        ("nbd:[::1]:10809", {"type": "inet", "host": "::1", "port": "10809"}, ""),
        ("nbd://h/e", {"type": "inet", "host": "h", "port": "10809"}, "e"),
    ],
)
def test_a_file_name_is_read_as_qemu_does(file: str, server: Mapping[str, Any], export: str) -> None:
    found = described(["-drive", f"file={file},if=virtio"])[1].options
    assert (options.server(found), options.export(found)) == (server, export)


def test_the_name_decides_between_two_of_one_export() -> None:
    both = [f"nbd,node-name=n{number},{UNIX},export=web1/disk0,reconnect-delay={number}" for number in (1, 2)]
    arguments = [part for one in both for part in ("-blockdev", one)]
    assert nbd_of(*arguments, name="n2").carried("reconnect-delay") == {"reconnect-delay": 2}


def test_another_export_is_not_taken() -> None:
    assert find_nbd(described(["-blockdev", f"nbd,node-name=x,{UNIX},export=web1/disk1"]), "n0", same) is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["-blockdev", f"nbd,node-name=n0,{UNIX},export=web1/disk0", "-blockdev", "raw,node-name=f0,file=n0,discard=on"],
        ["-blockdev", json.dumps({"driver": "raw", "node-name": "f0", "file": JSON, "discard": "on"})],
        ["-drive", "file=nbd+unix:///web1/disk0?socket=/run/nbd.sock,if=virtio,discard=on"],
    ],
)
def test_what_is_above_is_found_from_below(arguments: list[str]) -> None:
    nodes = described(arguments)
    found = find_above(nodes, "#block123", "raw", find_nbd(nodes, "gone", same))
    assert found is not None
    assert found.discard == "unmap"


@pytest.mark.parametrize(
    ("given", "meant"), [("on", "unmap"), ("off", "ignore"), ("unmap", "unmap"), ("ignore", "ignore")]
)
def test_discards_are_told_in_the_words_of_qmp(given: str, meant: str) -> None:
    (drive, below) = described(["-drive", f"file=nbd+unix:///web1/disk0?socket=/run/nbd.sock,discard={given}"])
    assert (drive.discard, below.discard) == (meant, "unmap")


@pytest.mark.parametrize(
    "junk", ["{", "[]", "", ",,,", "=", "{}", '{"driver": 7}', "a.b=1,a=2,a.b.c=3", "file=nbd://[x", '{"a": ' * 100_000]
)
def test_an_argument_that_makes_no_sense_is_left_out(junk: str) -> None:
    for option in ("-blockdev", "-drive"):
        assert find_nbd(described([option, junk]), "n0", same) is None
    assert described(["-blockdev"]) == ()


def test_a_process_that_is_gone_tells_nothing() -> None:
    assert of_process(None) == ()
    assert of_process(1 << 30) == ()


def test_options_in_a_file_name() -> None:
    flat = {"driver": "nbd", "server.type": "inet", "server.host": "h", "server.port": "1", "server.ipv4": "on"}
    found = options.told("json:" + json.dumps(flat))
    assert found is not None
    assert options.server(found) == {"type": "inet", "host": "h", "port": "1", "ipv4": True}
    assert options.export(found) == ""
    assert options.server({"host": "h"}) == {"type": "inet", "host": "h", "port": "10809"}
    assert options.told("nbd+unix:///web1/disk0?socket=s") is None
    assert options.told('json:{"driver": "nbd", "expo...') is None
    assert options.told("json:[1]") is None
    assert options.told("json:" + '{"a": ' * 100_000) is None
    assert options.server({"server": {"type": "inet", "ipv4": ["on"]}}) == {"type": "inet", "ipv4": ["on"]}
