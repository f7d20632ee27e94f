"""A time budget for long training: when to stop, how many processes, and what ends with them."""

from __future__ import annotations

import datetime
import os
import threading
import time

from saaug_keras import _backend, _validate

_PROCESS_BYTES = 3 << 30  # a training process of a small network, with TensorFlow


class OutOfTime(Exception):
    """Training has stopped at its time limit. What is finished is kept, and the same call goes on."""


def deadline(hours: float | None = None, until: str | None = None) -> float | None:
    """When to stop, as `time.time()` counts; None for never.

    Args:
        hours: from now, > 0.
        until: "HH:MM", the next time that the clock shows it, or an ISO date and time; local time.
    Raises:
        ValueError: not a time, one that has passed, or both are given.
    """
    if hours is not None and until is not None:
        raise ValueError(f"budget: `hours` must be None where `until` is given. Received: hours={hours}, until={until!r}.")
    if hours is not None:
        return time.time() + 3600 * _validate.number_in("budget", "hours", hours, 1e-3, 1e5)
    if until is None:
        return None
    now = datetime.datetime.now()
    try:
        if len(until) == 5:
            at = datetime.datetime.combine(now.date(), datetime.time.fromisoformat(until))
            at += datetime.timedelta(days=at <= now)
        else:
            at = datetime.datetime.fromisoformat(until)
    except ValueError:
        raise ValueError(
            f"budget: `until` must be HH:MM or an ISO date and time, as 2030-01-31T08:00. Received: until={until!r}."
        ) from None
    if at.timestamp() <= time.time():
        raise ValueError(f"budget: `until` must be in the future. Received: until={until!r}.")
    return at.timestamp()


def best_jobs() -> int:
    """Processes that train at a time: one a core, as memory allows; one where an accelerator does the work.

    Networks of this size gain little from a second thread.
    """
    if _backend.is_accelerated():
        return 1
    try:
        cores = len(os.sched_getaffinity(0))
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError):  # not on every system
        return os.cpu_count() or 1
    return max(1, min(cores, memory // _PROCESS_BYTES))


def share_cores(jobs: int):
    """Sets, for processes that start from now on, the threads of each where `jobs` train at a time."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, threads)  # read by a new process when it imports TensorFlow


def end_with(parent: int):
    """From now on, this process ends soon after its parent has, whatever it is doing then.

    After a kill, what is started next must not find the old one's training still going on: tracing a network alone can
    take most of a minute.
    """

    def watch():
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
