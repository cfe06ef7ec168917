"""Where the state directory lies."""

import os
from pathlib import Path

import pytest

from nbdresize.config import ROOT_VARIABLE, state_directory


def test_the_given_root_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, "/elsewhere")
    assert state_directory(tmp_path).root == tmp_path
    assert state_directory().root == Path("/elsewhere")


def test_an_empty_variable_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv(ROOT_VARIABLE, "")
    assert state_directory().root == Path("/var/lib/nbdresize")


def test_the_default_of_a_user_lies_in_their_data_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert state_directory().root == Path("/data/nbdresize")
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert state_directory().root == Path("/home/someone/.local/share/nbdresize")


def test_a_relative_root_and_a_tilde_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert state_directory(Path("state")).root == tmp_path / "state"
    assert state_directory(Path("~/state")).root == Path("/home/someone/state")


def test_everything_lies_below_the_root() -> None:
    state = state_directory(Path("/state"))
    paths = [state.ledger, state.volumes, state.leases, state.locks, state.run, state.socket]
    assert len(set(paths)) == len(paths)
    assert all(path.is_relative_to("/state") for path in paths)
