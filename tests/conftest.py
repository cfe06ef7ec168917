"""What holds for the whole test session: the tools are there, and nothing is left behind.

With pytest-xdist all of this happens once, in the process that controls the workers.
"""

import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

from tests.leaks import TestSession

CHECKOUT = Path(__file__).parents[1]
SESSION = pytest.StashKey[TestSession]()

# A slow machine is no failure; and what CI says about a commit does not depend on chance.
hypothesis.settings.register_profile(
    "nbdresize",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize="CI" in os.environ,
    print_blob=True,
)
hypothesis.settings.load_profile("nbdresize")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return
    check = subprocess.run([CHECKOUT / "scripts/setup", "--tests", "--check"], capture_output=True, text=True)
    if check.returncode:
        raise pytest.UsageError(check.stderr.strip())
    for name in [name for name in os.environ if name.startswith("NBDRESIZE_")]:
        del os.environ[name]
    # As with the environment activated: nbdresize is there, and nbdsh gets a python3 that sees python3-libnbd.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    session = config.stash[SESSION] = TestSession.start()
    config.option.basetemp = config.option.basetemp or str(session.tests)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if SESSION not in session.config.stash:
        return
    ours = session.config.stash[SESSION]
    found = ours.left_behind()
    if found:
        session.config.hook.pytest_runtest_logreport(report=_report(found))
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    ours.end(keep=session.exitstatus != pytest.ExitCode.OK)


def _report(found: list[str]) -> pytest.TestReport:
    """An error as of a test's teardown, so that every reporter shows and counts it."""
    text = "The tests left behind:\n" + "\n".join(f"  {line}" for line in found)
    return pytest.TestReport(
        "tests/conftest.py", ("tests/conftest.py", None, "session"), {}, "failed", text, "teardown"
    )
