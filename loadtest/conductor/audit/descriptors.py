"""How many file descriptors a load needs, whether this process may open them, and taking them in time."""

from __future__ import annotations

import resource
from typing import Final

from loadtest.audit import Check

SPARE_FILE_DESCRIPTORS: Final = 100
"""What a process needs beside one socket a user: row files, logs, the event loop, the collector's pipe."""


def descriptor_limits() -> tuple[int | None, int | None]:
    """How many this process may open now, and how many it may ask for; None: any number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _number(soft), _number(hard)


def descriptor_check(users: int, soft: int | None, hard: int | None) -> Check:
    """Red where even the hard limit is too low; a soft one that is too low will be raised."""
    name, needed = "file descriptors", users + SPARE_FILE_DESCRIPTORS
    if hard is not None and hard < needed:
        return Check(
            name=name,
            level="red",
            said=f"{users:,} users need {needed:,} file descriptors and this process may open {hard:,}",
            fix=f"raise ulimit -n to {needed}",
        )
    allowed = "any number" if hard is None else f"{hard:,}"
    raised = "" if soft is None or soft >= needed else f", raised from {soft:,}"
    return Check(name=name, level="ok", said=f"{needed:,} needed, {allowed} allowed{raised}")


def reserve_descriptors(users: int) -> Check:
    """The same check of this process, whose soft limit is raised where that is what is missing."""
    soft, hard = descriptor_limits()
    check = descriptor_check(users, soft, hard)
    needed = users + SPARE_FILE_DESCRIPTORS
    if check.level == "ok" and soft is not None and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, resource.RLIM_INFINITY if hard is None else hard))
    return check


def _number(limit: int) -> int | None:
    return None if limit == resource.RLIM_INFINITY else limit
