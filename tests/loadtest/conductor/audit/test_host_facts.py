"""What /proc and /sys say, read from text; and the limits of a real child process."""

from __future__ import annotations

import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from loadtest.conductor.audit.host_facts import (
    PROBE_S,
    PROBES,
    available_bytes,
    cgroup_folders,
    cpu_quota,
    load_1m,
    look_at_timer,
    port_range,
    read_host,
    time_wait_sockets,
)

PROBE_NS = int(PROBE_S * 1e9)


def test_the_parsers_read_what_linux_writes() -> None:
    assert port_range("32768\t60999\n") == (32768, 60999)
    assert (
        time_wait_sockets("sockets: used 9\nTCP: inuse 5 orphan 0 tw 17 alloc 9 mem 2\nUDP: inuse 1\n") == 17
    )
    assert load_1m("2.87 1.71 1.44 3/412 9182\n") == 2.87
    assert available_bytes("MemTotal: 100 kB\nMemAvailable:    2048 kB\n") == 2048 * 1024
    assert cpu_quota("150000 100000\n") == 1.5
    assert cpu_quota("max 100000\n") is None


@pytest.mark.parametrize("text", ["", "rubbish", "a b", "MemAvailable: many kB x", "TCP: tw"])
def test_text_that_says_nothing_is_not_known(text: str) -> None:
    found = (port_range(text), time_wait_sockets(text), load_1m(text), available_bytes(text), cpu_quota(text))
    assert found == (None,) * 5


def test_a_cgroup_is_bound_by_those_above_it_too() -> None:
    root = Path("/sys/fs/cgroup")
    assert cgroup_folders("0::/pod/box\n", root) == [root / "pod/box", root / "pod", root]
    assert cgroup_folders("0::/\n", root) == [root]
    assert cgroup_folders("", root) == [root]


def test_a_timer_look_tells_late_timers_and_clocks_that_jump() -> None:
    late = count(0, PROBE_NS + 3_000_000)
    look = look_at_timer(lambda: next(late), lambda: 0, lambda _: None)
    assert look.lag_median_s == pytest.approx(0.003)
    assert look.wall_step_s == pytest.approx(-PROBES * (PROBE_S + 0.003))
    assert not look.went_back
    back = iter([*range(0, PROBES * PROBE_NS, PROBE_NS), 5])
    assert look_at_timer(lambda: next(back), lambda: 0, lambda _: None).went_back


def test_a_machine_is_read_from_its_folders(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/pod\n",
        "proc/meminfo": "MemAvailable: 4096 kB\n",
        "proc/loadavg": "0.5 0 0 1/2 3\n",
        "proc/sys/net/ipv4/ip_local_port_range": "1024 2047\n",
        "sys/fs/cgroup/pod/cpu.max": "400000 100000\n",
        "sys/fs/cgroup/pod/memory.max": "2097152\n",
        "sys/fs/cgroup/pod/memory.current": "1048576\n",
        "sys/fs/cgroup/cpu.max": "200000 100000\n",
        "sys/devices/system/clocksource/clocksource0/current_clocksource": "kvm-clock\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    facts = read_host(tmp_path / "proc", tmp_path / "sys")
    assert (facts.cpu_quota, facts.memory_free_bytes, facts.ports) == (2.0, 2**20, (1024, 2047))
    assert (facts.clocksource, facts.load_1m, facts.time_wait) == ("kvm-clock", 0.5, None)
    assert facts.fd_soft is None or facts.fd_soft > 0


def test_a_machine_that_shows_nothing_is_still_a_machine(tmp_path: Path) -> None:
    facts = read_host(tmp_path, tmp_path)
    assert facts.cpus >= 1
    assert (facts.ports, facts.cpu_quota, facts.memory_free_bytes) == (None,) * 3


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256))
from loadtest.conductor.audit.host_audit import LoadPlan, host_checks
from loadtest.conductor.audit.host_facts import read_host
for users in (156, 157):
    check = host_checks(read_host(), LoadPlan(users=users))[0]
    print(check.level, check.said, sep="|")
"""


def test_a_process_with_few_file_descriptors_knows_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=60, check=True
    )
    enough, too_many = done.stdout.splitlines()
    assert enough == "ok|256 needed, 256 allowed, raised from 64"
    assert too_many == "red|157 users need 257 file descriptors and this process may open 256"
