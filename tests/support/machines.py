"""Machines of a test's own: namespaces of this one, joined by a cable that leads nowhere else.

A machine lives as long as the process that holds it, and that ends with its stdin: nothing is left over,
however the test ends.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

NEEDS = ("unshare", "nsenter", "ip")
BASE_ADDRESS = "10.77.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Commands after `prefix` run in it."""

    pid: int
    address: str
    prefix: tuple[str, ...]

    def run(self, *command: str) -> None:
        done = subprocess.run([*self.prefix, *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


def why_not() -> str | None:
    """What keeps this machine from making others; None when nothing does."""
    missing = [name for name in NEEDS if shutil.which(name) is None]
    if missing:
        return f"{missing[0]} is not installed"
    try:
        with base() as first, other(first, 2, ahead_s=5):
            return None
    except (AssertionError, subprocess.SubprocessError, OSError) as error:
        return f"namespaces cannot be made here: {error}"


@contextlib.contextmanager
def base() -> Iterator[Machine]:
    """The first machine, with a network of its own; the others are joined to it."""
    with _held("--net") as pid:
        machine = Machine(pid=pid, address=BASE_ADDRESS, prefix=_enter(pid, "--net"))
        machine.run("ip", "link", "set", "lo", "up")
        machine.run("ip", "link", "add", "cables", "type", "bridge")
        machine.run("ip", "address", "add", f"{BASE_ADDRESS}/24", "dev", "cables")
        machine.run("ip", "link", "set", "cables", "up")
        yield machine


@contextlib.contextmanager
def other(first: Machine, number: int, *, ahead_s: int = 0) -> Iterator[Machine]:
    """A machine with a cable to the first one, mounts of its own, and a clock that is so far ahead."""
    kinds = ("--net", "--mount", *(("--time",) if ahead_s else ()))
    clock = ("--monotonic", str(ahead_s)) if ahead_s else ()
    with _held(*kinds, *clock) as pid:
        machine = Machine(pid=pid, address=f"10.77.0.{number}", prefix=_enter(pid, *kinds))
        plug = f"cable{number}"
        first.run("ip", "link", "add", plug, "type", "veth", "peer", "name", "cable", "netns", str(pid))
        first.run("ip", "link", "set", plug, "master", "cables", "up")
        machine.run("ip", "address", "add", f"{machine.address}/24", "dev", "cable")
        machine.run("ip", "link", "set", "cable", "up")
        machine.run("ip", "link", "set", "lo", "up")
        yield machine


def _enter(pid: int, *kinds: str) -> tuple[str, ...]:
    return ("nsenter", "--target", str(pid), *kinds, "--")


@contextlib.contextmanager
def _held(*kinds: str) -> Iterator[int]:
    """The id of the process that holds new namespaces; it ends with us."""
    # the holder is a child: a new namespace of time is that of children only
    command = ["unshare", *kinds, "--fork", "--kill-child", "sh", "-c", "echo held; exec cat"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert process.stdout.readline() == "held\n", process.stderr.read().strip()
        (holder,) = psutil.Process(process.pid).children()
        yield holder.pid
    finally:
        process.stdin.close()
        process.wait(timeout=60)
        process.stdout.close()
        process.stderr.close()
