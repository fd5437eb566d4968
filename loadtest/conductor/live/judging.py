"""The verdict of a run that has ended, made beside a page that goes on: in a thread, off gevent's loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import gevent

from estimator.errors import PlainError
from loadtest.run_folder import RunFolder

if TYPE_CHECKING:
    from loadtest.reporter.verdict import Verdict


def judge_in_thread(folder: RunFolder, judged: Callable[[Verdict], None]) -> None:
    """Returns at once; `judged` is called in the loop. Where the rows cannot be read, it never is.

    Nor for a soak: what it holds is no limit that was found, and its report says what drifts.
    """
    if folder.read_manifest().is_soak:
        return
    from loadtest.reporter.report import judge_run  # heavy, and a thread of gevent must not import

    def judge() -> None:
        # what a thread raises, gevent would print
        def try_to() -> Verdict | PlainError | OSError:
            try:
                return judge_run(folder)
            except (PlainError, OSError) as error:
                return error

        verdict = gevent.get_hub().threadpool.apply(try_to)
        if not isinstance(verdict, Exception):
            judged(verdict)

    gevent.spawn(judge)
