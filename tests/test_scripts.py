"""The scripts, as somebody runs them; scripts/test itself is what runs this, and scripts/lint has test_lint.py."""

import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nbdresize.errors import InsufficientSpace
from tests.peers import CHECKOUT, run
from tests.wait import until

pytestmark = pytest.mark.slow

SETUP = CHECKOUT / "scripts/setup"
TEST = CHECKOUT / "scripts/test"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files of the checkout, as they are now, in a fresh place."""
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=CHECKOUT).split(b"\0")
    clone = tmp_path / "clone"
    for name in names:
        source = CHECKOUT / os.fsdecode(name)
        if name and source.is_file():
            target = clone / os.fsdecode(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
            target.chmod(source.stat().st_mode & 0o777)
    return clone


def script(*command: str | Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **(environment or {})}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)


# scripts/setup


def test_setup_says_and_changes_nothing_where_all_is_there() -> None:
    stamp = CHECKOUT / ".venv/.set-up"
    assert script(SETUP, "--tests").returncode == 0
    before = stamp.stat().st_mtime_ns
    again = script(SETUP, "--tests")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert script(SETUP).stderr == ""  # what tests need includes what use needs
    assert script(SETUP, "--bench").stderr == ""
    assert stamp.stat().st_mtime_ns == before


def test_setup_explains_itself_and_refuses_what_it_does_not_know() -> None:
    helped = script(SETUP, "--help")
    assert helped.returncode == 0
    assert "scripts/setup --tests" in helped.stdout
    assert "set -e" not in helped.stdout
    refused = script(SETUP, "--test")
    assert refused.returncode == 2
    assert "scripts/setup --tests" in refused.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_setup_makes_its_own_environment_and_retries_twice_where_pypi_is_out_of_reach(clone: Path) -> None:
    """Also for a python3 on PATH that is another one, and after a copy of an environment of another place."""
    (clone / ".venv/bin").mkdir(parents=True)
    (clone / ".venv/bin/python").symlink_to("/nowhere/python")
    (clone / "bin").mkdir()
    (clone / "bin/python3").write_text("#!/bin/sh\nexit 9\n")
    (clone / "bin/python3").chmod(0o755)
    nowhere = {"PIP_CONFIG_FILE": "/dev/null", "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": "", "PIP_RETRIES": "0"}
    with refusing_port() as port:
        offline = {**nowhere, "PIP_INDEX_URL": f"http://127.0.0.1:{port}/simple", "PIP_NO_CACHE_DIR": "1"}
        path = {"PATH": f"{clone / 'bin'}:{os.environ['PATH']}"}
        result = script(clone / "scripts/setup", environment={**offline, **path})
    assert result.returncode == 1
    assert result.stderr.count("trying again") == 2
    assert "is this machine online?" in result.stderr.splitlines()[-1]
    assert run(clone / ".venv/bin/python", "-c", "import sys; print(sys.base_prefix)") == "/usr\n"
    assert not (clone / ".venv/.set-up").exists()


@contextmanager
def refusing_port() -> Iterator[int]:
    """A port that is nobody's for as long as this lasts."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def in_another_machine(setup: str, command: str) -> subprocess.CompletedProcess[str]:
    """Run in a mount namespace of its own, where `setup` may put other files in the place of the system's."""
    return script("unshare", "--mount", "sh", "-c", f"set -e; {setup}; exec {command}")


def without_package(name: str, tmp_path: Path) -> str:
    status = Path("/var/lib/dpkg/status").read_text()
    kept = [entry for entry in status.split("\n\n") if not entry.startswith(f"Package: {name}\n")]
    (tmp_path / "status").write_text("\n\n".join(kept))
    return f"mount --bind {tmp_path / 'status'} /var/lib/dpkg/status"


def test_setup_without_root_gives_the_command_that_installs_what_is_missing(tmp_path: Path) -> None:
    other = without_package("nbdkit-plugin-python", tmp_path)
    # Not root, and sudo can't help; but able to read the checkout wherever it lies.
    nobody = "setpriv --reuid 65534 --clear-groups --no-new-privs --inh-caps +dac_override --ambient-caps +dac_override"
    result = in_another_machine(other, f"{nobody} {SETUP} </dev/null")
    assert result.returncode == 1
    assert "apt-get install -y --no-install-recommends nbdkit-plugin-python\n" in result.stderr


def test_setup_check_names_what_is_missing_and_installs_nothing(tmp_path: Path) -> None:
    result = in_another_machine(without_package("xfsprogs", tmp_path), f"{SETUP} --tests --check")
    assert result.returncode == 1
    assert result.stderr == "setup: missing: xfsprogs; run: scripts/setup --tests\n"
    assert in_another_machine(without_package("xfsprogs", tmp_path), f"{SETUP} --check").returncode == 0


def test_setup_check_names_what_the_benchmarks_miss(tmp_path: Path) -> None:
    other = without_package("nbd-server", tmp_path)
    for purpose in ("--bench", "--tests"):
        result = in_another_machine(other, f"{SETUP} {purpose} --check")
        assert result.returncode == 1
        assert result.stderr == f"setup: missing: nbd-server; run: scripts/setup {purpose}\n"
    assert in_another_machine(other, f"{SETUP} --check").returncode == 0


def test_setup_refuses_a_python_that_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit\nexit 1\n')
    old.chmod(0o755)
    result = in_another_machine(f"mount --bind {old} $(readlink -f /usr/bin/python3)", str(SETUP))
    assert result.returncode == 1
    assert "/usr/bin/python3 is Python 3.9.2, and nbdresize needs 3.11 or later" in result.stderr


# scripts/serve


class Demo:
    """scripts/serve, running. `said` grows as it says something."""

    def __init__(self, temporary: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            # Ctrl-C reaches it although a shell has started the tests in its background, ignoring SIGINT
            ["env", "--default-signal=INT", CHECKOUT / "scripts/serve", *arguments],
            env={**os.environ, "TMPDIR": str(temporary)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a terminal's Ctrl-C goes to a whole group; this is how to send it
        )
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line

    def ready(self) -> bool:
        assert self.process.poll() is None, self.said
        return "Ctrl-C here" in self.said

    def end(self, number: signal.Signals) -> int:
        os.killpg(self.process.pid, number)
        code = self.process.wait(60)
        self._reader.join(60)
        return code


@contextmanager
def demo(temporary: Path, *arguments: str) -> Iterator[Demo]:
    temporary.mkdir()
    running = Demo(temporary, *arguments)
    try:
        until(running.ready, seconds=100, what="scripts/serve is ready")
        yield running
    finally:
        if running.process.poll() is None:
            running.end(signal.SIGTERM)


def test_serve_shows_a_demo_whose_suggestions_work_and_leaves_nothing(tmp_path: Path) -> None:
    temporary = tmp_path / "t"
    with demo(temporary, "--tcp", "localhost:0") as running:
        uris = re.findall(r"^nbd\S+$", running.said, re.MULTILINE)
        assert [uri.partition(":")[0] for uri in uris] == ["nbd+unix", "nbd"]
        assert "web" not in run("nbdinfo", "--list", uris[1])
        suggestions = "\n".join(re.findall(r"^    (\S.*)$", running.said, re.MULTILINE))
        refused = "nbdresize disk resize demo disk0 +500G"
        assert refused in suggestions
        commands = suggestions.replace(refused, f"{refused} || [ $? = {InsufficientSpace.exit_code} ] && ")
        commands += "\nkill $!"  # the one that watches, which would not end before the server
        ran = subprocess.run(["bash", "-euxc", commands], capture_output=True, text=True, timeout=100)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert "MIT License" in run("nbdsh", "-u", with_disk(uris[0]), "-c", "print(h.pread(64, 0))")
        assert "InsufficientSpace" in ran.stderr
        assert "4 GiB → 5 GiB" in ran.stdout
        assert running.end(signal.SIGINT) == 0, running.said
    assert list(temporary.iterdir()) == []


def with_disk(uri: str) -> str:
    return uri.replace(":///?", ":///demo/disk0?")


def test_serve_ends_on_sigterm_also_with_a_client_attached(tmp_path: Path) -> None:
    temporary = tmp_path / "t"
    with demo(temporary) as running:
        uri = with_disk(re.findall(r"^nbd\S+$", running.said, re.MULTILINE)[0])
        client = subprocess.Popen(
            ["nbdsh", "-u", uri, "-c", "print(h.get_size(), flush=True)", "-c", "input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert client.stdout is not None
        assert client.stdout.readline() == f"{1 << 30}\n"
        assert running.end(signal.SIGTERM) == 0, running.said
        client.communicate("\n", timeout=60)
    assert list(temporary.iterdir()) == []


def test_serve_fails_as_the_server_does_and_leaves_nothing(tmp_path: Path) -> None:
    result = script(CHECKOUT / "scripts/serve", "--tcp", "nonsense", environment={"TMPDIR": str(tmp_path)})
    assert result.returncode not in (0, 1)
    assert "nonsense" in result.stderr
    assert "Ctrl-C" not in result.stdout
    assert list(tmp_path.iterdir()) == []


# scripts/test and .ci/run


def test_test_passes_arguments_on_and_leaves_slow_tests_out_when_told() -> None:
    listed = script(TEST, "--fast", "--collect-only", "-q", "tests/test_leaks.py")
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert "test_this_session_is_marked" in listed.stdout
    assert "test_a_session_that_leaves_something_behind" not in listed.stdout
    everything = script(TEST, "--collect-only", "-q", "tests/test_leaks.py")
    assert "test_a_session_that_leaves_something_behind" in everything.stdout


def test_ci_runs_the_test_command_of_the_readme_and_nothing_else() -> None:
    ci = (CHECKOUT / ".ci/run").read_text().splitlines()
    assert ci[-1] == "exec scripts/test"
    assert "\n$ scripts/test\n" in (CHECKOUT / "README.md").read_text()
