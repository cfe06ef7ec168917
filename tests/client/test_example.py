"""The example in the documentation of the client library, run as it stands, where libnbd is not to be had."""

import json
import re
import sys
import textwrap
from pathlib import Path

import nbdresize.client
from tests.client.conftest import GIB, grow_to
from tests.peers import Serve, background


def example() -> str:
    text = nbdresize.client.__doc__ or ""
    blocks = re.findall(r"(?:^    .*\n|^\n)+", text, re.MULTILINE)
    return textwrap.dedent(max(blocks, key=len)).strip() + "\n"


def test_the_example_of_the_library(native: Serve, root: Path, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    without_libnbd = "import sys\nsys.modules['nbd'] = None\nsys.stdout.reconfigure(line_buffering=True)\n"
    path = f"import os\nos.chdir({json.dumps(str(tmp_path))})\n"
    script.write_text(without_libnbd + path + example())
    with background(sys.executable, script) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(3)]
        assert lines == [str(100 * GIB), f"{30 * GIB} AS_REQUESTED", f"{30 * GIB} 2"]
        grow_to(root, 40 * GIB)
        assert process.stdout.readline().strip() == f"{40 * GIB} 3"
        native.process.terminate()
        assert process.stdout.read() == ""
        assert process.wait(60) == 0
    assert native.wait() == 0
