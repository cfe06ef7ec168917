"""`check` beside processes that change everything all the time, and beside many VMs."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.export.admin import AdminSocket
from nbdresize.export.admin_commands import ServerInfo
from nbdresize.export.exports import Exports
from tests.control import changer
from tests.control.consistency import problems
from tests.control.planting import assert_well, plant
from tests.filesystems import mounted_in_memory

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
PROCESSES = 8
SECONDS = 15.0
VMS = 1000


@pytest.mark.parametrize(("file_system", "repair"), [("xfs", False), ("ext4", True)])
def test_no_problem_is_found_that_is_not_there(tmp_path: Path, file_system: str, repair: bool) -> None:
    """Repair has nothing to do either: what is just being changed is not for it."""
    with ExitStack() as stack:
        state = StateDirectory(stack.enter_context(mounted_in_memory(file_system, tmp_path, size=1 << 30)))
        control = stack.enter_context(Control.open(state))
        control.update_pool(overcommit="unlimited")
        stack.enter_context(AdminSocket.start(state, Exports.of_ledger(control), ServerInfo("native")))
        command = [sys.executable, "-m", changer.__name__, str(state.root)]
        running = []
        for seed in range(PROCESSES):
            process = subprocess.Popen(
                [*command, str(seed), str(SECONDS)], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
            )
            stack.callback(process.kill)
            running.append(process)
        checks = vms = 0
        while any(process.poll() is None for process in running):
            report = control.check(repair=repair)
            assert report.problems == ()
            assert report.warnings == ()
            checks += 1
            vms += report.checked["vms"]
        done = [int(process.communicate(timeout=60)[0]) for process in running]
        assert [process.returncode for process in running] == [0] * PROCESSES
        assert checks > 5
        assert vms > 0
        assert min(done) > 0
        assert_well(control)
        assert problems(state) == []


def test_a_thousand_vms_are_checked(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    with Control.open(state) as control:
        plant(
            state,
            "BEGIN",
            *(
                f"INSERT INTO vms (id, name, budget, image_space, protected) VALUES ({n}, 'vm{n}', 1048576, 0, 0)"
                for n in range(1, VMS + 1)
            ),
            *(
                "INSERT INTO disks (vm_id, slot, size, generation, volume, minimum) "
                f"VALUES ({n}, {slot}, 4096, 1, 'vm{n}-disk{slot}', 0)"
                for n in range(1, VMS + 1)
                for slot in range(2)
            ),
            "COMMIT",
        )
        for number in range(1, VMS + 1):
            for slot in range(2):
                with (state.volumes / f"vm{number}-disk{slot}.raw").open("wb") as file:
                    file.truncate(4096)
        report = control.check()
        assert report.problems == ()
        assert (report.checked["vms"], report.checked["disks"]) == (VMS, 2 * VMS)
