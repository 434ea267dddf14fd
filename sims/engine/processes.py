"""Work spread over processes of this machine."""

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
    """An ordered map over processes; in this one where `workers` is 1.

    pinned: each keeps to its share of the cores.  stopped: where the caller is interrupted, what runs is sent SIGTERM
    and nothing more is begun; else what runs is waited for.
    """
    if workers == 1:
        yield map
        return
    # Spawned, since a caller may have started threads (JAX does), which a fork would break.
    context = multiprocessing.get_context("spawn")
    turn, ended = context.Value("i", 0), context.Event()
    pool = ProcessPoolExecutor(workers, context, _start, (turn, workers if pinned else 1, ended))
    try:
        yield lambda f, tasks: pool.map(_Begun(f), tasks)
    except BaseException:
        if stopped:
            ended.set()  # the pool has handed some tasks on that it can no longer take back
            for child in multiprocessing.active_children():
                child.terminate()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


@dataclasses.dataclass(frozen=True)
class _Begun:
    """f, unless the caller has been interrupted."""

    f: Callable

    def __call__(self, task: Any) -> Any:
        if _ended is not None and _ended.is_set():
            raise KeyboardInterrupt
        return self.f(task)


def memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_ended: Any = None  # of a worker: the event that tells of the caller's interruption


def _start(turn: Any, shares: int, ended: Any) -> None:
    """Leave Ctrl-C to the parent, end with it even if it is killed, and keep to this process's share of the cores."""
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
        found = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, found[own % shares :: shares] or found)
