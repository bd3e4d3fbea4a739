"""Worker processes of a search: each asks and tells on the same archive; one that dies takes no other with it."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nas.errors import NasError
from nas.promotion import begin_worker, one_thread_each


@contextmanager
def beside(count: int, work: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Run `work` in so many fresh processes beside this one, and wait for them in the end.

    They have one thread each, die with this process and leave Ctrl-C to it; so does this one while they run. What one
    of them cannot do raises NasError there, and ends it: this process, doing the same, meets the same and tells it.
    """
    if not count:
        yield
        return
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_run, args=(work, *arguments)) for _ in range(count)]
    try:
        with one_thread_each():
            for process in processes:
                process.start()
        with _one_thread():
            yield
        for process in processes:
            process.join()
    except BaseException:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
        raise
    finally:
        for process in processes:
            process.close()


@contextmanager
def _one_thread() -> Iterator[None]:
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(work: Callable[..., None], *arguments: Any) -> None:
    begin_worker()
    try:
        work(*arguments)
    except NasError:
        sys.exit(2)
