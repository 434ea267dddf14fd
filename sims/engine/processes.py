"""A map over processes of this machine."""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any


@contextlib.contextmanager
def mapper(workers: int, *, pinned: bool = False, stopped: bool = False) -> Iterator[Callable]:
    """An ordered map over `workers` processes; if there is one worker, over this process.

    pinned: each process uses only its share of the cores.
    stopped: if the caller is interrupted, terminate the running tasks and start no others. Otherwise the running
    tasks finish first.
    """
    if workers == 1:
        yield map
        return
    # Spawned: the caller may have threads (JAX has), and a fork would break them.
    context = multiprocessing.get_context("spawn")
    turn, ended = context.Value("i", 0), context.Event()
    pool = ProcessPoolExecutor(workers, context, _start, (turn, workers if pinned else 1, ended))
    try:
        yield lambda f, tasks: pool.map(_Begun(f), tasks)
    except BaseException:
        if stopped:
            ended.set()  # cancel_futures does not reach tasks that are already queued in a worker
            for child in multiprocessing.active_children():
                child.terminate()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


@dataclasses.dataclass(frozen=True)
class _Begun:
    """f, unless the caller was interrupted in the meantime."""

    f: Callable

    def __call__(self, task: Any) -> Any:
        if _ended is not None and _ended.is_set():
            raise KeyboardInterrupt
        return self.f(task)


def memory() -> int:
    """Memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_ended: Any = None  # in a worker: set when the caller is interrupted


def _start(turn: Any, shares: int, ended: Any) -> None:
    """Leave Ctrl-C to the parent, exit when the parent does, even if killed, and use this share of the cores."""
    global _ended
    _ended = ended
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        assert parent is not None  # a pool's process has one
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    if shares > 1 and hasattr(os, "sched_setaffinity"):
        with turn.get_lock():
            own, turn.value = turn.value, turn.value + 1
        available = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, available[own % shares :: shares] or available)
