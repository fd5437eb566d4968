"""The thread in C under the compiler's own watch: no two threads at one byte, none at one that is gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from c_compiler import c_compiler

HERE = Path(__file__).parent
WORKERS = HERE.parents[2] / "loadtest/workers"
TURNS = 3


@pytest.mark.skipif(sys.platform != "linux", reason="the thread needs epoll")
@pytest.mark.parametrize("watch", ["thread", "address,undefined"])
def test_streams_are_read_stopped_and_closed_at_any_time(watch: str, tmp_path: Path) -> None:
    compiler = c_compiler()
    program, empty = tmp_path / "races", tmp_path / "empty.c"
    empty.write_text("int main(void) { return 0; }\n")
    flags = ["-O1", "-g", "-pthread", f"-fsanitize={watch}", "-fno-sanitize-recover=all"]
    if subprocess.run([compiler, *flags, empty, "-o", tmp_path / "empty"], capture_output=True).returncode:
        pytest.skip("this compiler cannot watch so")
    sources = [
        HERE / "reader_races.c",
        *(WORKERS / f"_reader_{name}.c" for name in ("thread", "turns", "form")),
    ]
    subprocess.run(
        [compiler, *flags, "-Wall", "-Wextra", f"-I{WORKERS}", *sources, "-o", program], check=True
    )
    done = subprocess.run([program, str(TURNS)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
