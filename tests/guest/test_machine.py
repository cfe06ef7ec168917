"""The harness itself: what a test sees of a guest, and that nothing of a guest stays."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guest.machine import GATEWAY, QemuGuest
from tests.peers import CHECKOUT, alive
from tests.wait import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_scripts_and_files_and_their_results(tmp_path: Path) -> None:
    with QemuGuest(tmp_path) as guest:
        assert guest.run("echo one; echo two >&2").output == "one\ntwo\n"
        assert guest.run("exit 3", check=False).code == 3
        guest.put("/srv/words", "ä line\n" * 50_000)
        assert guest.run("cat /srv/words").output == "ä line\n" * 50_000
        # Two at once, one of which never ends by itself.
        endless = guest.start("echo begun; sleep infinity & sleep infinity")
        endless.until("begun")
        assert guest.run("print(sum(range(10)))", interpreter="python3").output == "45\n"
        with pytest.raises(AssertionError, match=r"Exit code 7(.|\n)*cause"):
            guest.run("echo cause; exit 7")
        with pytest.raises(AssertionError, match=r"(?s)Waited 0.5 s.*slow.*begun"):
            guest.run("echo begun; sleep infinity # slow", timeout=0.5)
        assert endless.running
        endless.kill()
        until(lambda: "sleep" not in guest.run("ps -A -o comm").output, what="what ran too long to be ended")
        assert "Linux version" in guest.kernel_log()
        assert guest.qmp("query-status")["status"] == "running"
    assert not alive(guest.process.pid)


def test_agent_and_servers_of_the_test(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "server.sock"))
        listener.listen()
        with QemuGuest(tmp_path, agent=True, forward={10809: tmp_path / "server.sock"}) as guest:
            with socket.socket(socket.AF_UNIX) as agent:
                agent.settimeout(30)
                agent.connect(str(guest.agent_path))
                agent.sendall(b'{"execute": "guest-get-host-name"}\n')
                assert "return" in json.loads(agent.makefile().readline())
            program = f"import socket; s = socket.create_connection(('{GATEWAY}', 10809)); print(s.recv(5).decode())"
            job = guest.start(program, interpreter="python3")
            listener.settimeout(60)
            client, _ = listener.accept()
            client.sendall(b"hello")
            assert job.wait().output == "hello\n"
            client.close()


def test_a_panic_fails_the_test_with_what_the_kernel_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError, match="The guest is gone"), QemuGuest(tmp_path) as guest:
        guest.run("echo c >/proc/sysrq-trigger; sleep 60")
    assert "sysrq triggered crash" in capsys.readouterr().out
    assert not alive(guest.process.pid)


def test_a_guest_ends_with_its_test_however_that_ends(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from tests.guest.machine import QemuGuest\n"
        "with QemuGuest(Path(sys.argv[1])) as guest: print(guest.process.pid, flush=True); time.sleep(600)\n"
    )
    test = subprocess.Popen([sys.executable, "-c", program, tmp_path], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    with test:
        assert test.stdout is not None
        pid = int(test.stdout.readline())
        assert alive(pid)
        os.kill(test.pid, signal.SIGKILL)
    until(lambda: not alive(pid), what="QEMU to end")
