"""Promotion: the most promising are estimated by a dearer proxy in worker processes, one process writes the archive."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.samplers import RandomSampler

from hardware_profiles import load
from nas.archive import DIVERGED, Archive, Evaluation
from nas.experiment import Rung
from nas.fleet import Fleet
from nas.objectives import Accuracy, violations
from nas.proxies import PROXIES
from nas.search import Progress, promotion_order
from nas.tally import FleetTracker, FrontTracker, drop_unfinished
from search_spaces import VLMConfig


def promote(
    archive: Archive,
    below: str,
    rung: Rung,
    estimate: Callable[[VLMConfig], dict[str, Any]],
    progress: Progress,
    fidelity: str = "dear",
) -> None:
    """Estimate the promising of the fidelity `below`, up to the rung's count, starting none after its seconds.

    Those in the archive are not repeated. `estimate` runs in a worker and returns accuracy (None: refused, as its
    training diverged) and details; it must be picklable.
    """
    experiment, step = archive.experiment, "train" if fidelity == "dear" else fidelity
    drop_unfinished(archive, fidelity)
    done = {evaluation.id: evaluation for evaluation in archive.evaluations(fidelity)}
    names, count = experiment.objectives, rung.promote
    fleet = Fleet.of(experiment, [load(name) for name in experiment.devices]) if len(experiment.devices) > 1 else None
    known = archive.evaluations(below)
    if fleet:
        known = [e for e in known if not e.refused]
        order = fleet.in_turn([promotion_order(each, names, count) for each in fleet.on_each(known)], known)[:count]
    else:
        order = promotion_order([e for e in known if not violations(experiment.caps, e.cost, None)], names, count)
    queue = [e for e in order if e.id not in done]
    queue = queue[: max(count - len(done), 0)]
    total = len(done) + len(queue)
    tracker = FleetTracker(fleet) if fleet else FrontTracker(experiment)
    for evaluation in done.values():
        tracker.add(evaluation)
    started = time.monotonic()
    with worker_pool(experiment.proxy.workers) as pool:
        running: dict[Future[dict[str, Any]], Evaluation] = {}
        while queue or running:
            late = time.monotonic() - started > rung.seconds
            while queue and len(running) < experiment.proxy.workers and not late:
                evaluation = queue.pop(0)
                running[pool.submit(estimate, evaluation.config(experiment))] = evaluation
            if not running:
                break
            progress(step, len(done), total, f"{_note(tracker, done.values())}, {len(running)} at work")
            for future in wait(running, timeout=1.0, return_when=FIRST_COMPLETED).done:
                finished = _finish(archive, fidelity, rung.proxy, running.pop(future), future.result())
                done[finished.id] = finished
                tracker.add(finished)
    progress(step, len(done), len(done), _note(tracker, done.values()))


def _note(tracker: FrontTracker | FleetTracker, done: Iterable[Evaluation]) -> str:
    diverged = sum(bool(evaluation.refused) for evaluation in done)
    return tracker.note() + (f", diverged {diverged}" if diverged else "")


def _finish(archive: Archive, fidelity: str, name: str, below: Evaluation, outcome: dict[str, Any]) -> Evaluation:
    study, by = archive.study(fidelity, RandomSampler()), PROXIES[name]
    trial = archive.begin(study, below.point)
    value = outcome.pop("accuracy")
    accuracy = None if value is None else Accuracy(value, by.name, by.basis)
    refused = () if accuracy else (DIVERGED,)
    evaluation = Evaluation(below.id, below.point, below.cost, accuracy, refused, {**below.detail, **outcome})
    archive.record(fidelity, trial, evaluation, penalty=len(refused))
    return evaluation


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes of one thread each that die with this one and leave Ctrl-C to it."""
    context = multiprocessing.get_context("spawn")
    with one_thread_each():
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=begin_worker)
        try:
            yield pool
            pool.shutdown()
        except BaseException:
            for process in list(getattr(pool, "_processes", {}).values()):
                process.kill()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes that are started meanwhile compute with one thread each."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def begin_worker() -> None:
    """Make this process a worker: it ends with its parent and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def weights_path(folder: Path, config_id: str) -> Path:
    """Where the trained weights of a config lie."""
    return folder / "weights" / f"{config_id}.safetensors"
