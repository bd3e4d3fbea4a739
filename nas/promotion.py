"""Promotion: the most promising are estimated by a dearer proxy in worker processes, one process writes the archive.

Which is next is decided when a worker is free, by what is known then (`promising.py`).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from optuna.samplers import RandomSampler

from hardware_profiles import load
from nas.archive import DIVERGED, Archive, Evaluation
from nas.experiment import Rung
from nas.fleet import Fleet
from nas.objectives import Accuracy, violations
from nas.promising import ESTIMATE_S, Budget, Promising
from nas.proxies import PROXIES
from nas.search import Progress
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
    training diverged) and details; it must be picklable. Progress tells, beside the front, what the best candidate that
    is left is expected to add (`Promising.gain_left`).
    """
    experiment, step = archive.experiment, "train" if fidelity == "dear" else fidelity
    drop_unfinished(archive, fidelity)
    done = {evaluation.id: evaluation for evaluation in archive.evaluations(fidelity)}
    several = len(experiment.devices) > 1
    fleet = Fleet.of(experiment, [load(name) for name in experiment.devices]) if several else None
    allowed = [e for e in archive.evaluations(below) if not e.refused]
    if fleet is None:
        allowed = [e for e in allowed if not violations(experiment.caps, e.cost, None)]
    promising = Promising(experiment, allowed, PROXIES[rung.proxy], fleet)
    total = len(done) + max(0, min(rung.promote - len(done), promising.left(done)))
    tracker = FleetTracker(fleet) if fleet else FrontTracker(experiment)
    for evaluation in done.values():
        tracker.add(evaluation)
    started = time.monotonic()
    with worker_pool(experiment.proxy.workers) as pool:
        running: dict[Future[dict[str, Any]], Evaluation] = {}
        while True:
            left_s = rung.seconds - (time.monotonic() - started)
            while left_s >= 0 and len(running) < experiment.proxy.workers and len(done) + len(running) < total:
                at_work = {evaluation.id for evaluation in running.values()}
                budget = Budget(total - len(done) - len(running), left_s, experiment.proxy.workers)
                chosen = promising.next(done, at_work, budget)
                if chosen is None:
                    break
                running[pool.submit(partial(_timed, estimate), chosen.config(experiment))] = chosen
            note = _note(tracker, done, promising.gain_left(done, {e.id for e in running.values()}))
            if not running:
                break
            finished = set[Future[dict[str, Any]]]()
            while not finished:
                progress(step, len(done), total, f"{note}, {len(running)} at work")
                finished = wait(running, timeout=1.0, return_when=FIRST_COMPLETED).done
            for future in finished:
                found = _finish(archive, fidelity, rung.proxy, running.pop(future), future.result())
                done[found.id] = found
                tracker.add(found)
    progress(step, len(done), len(done), note)


def _timed(estimate: Callable[[VLMConfig], dict[str, Any]], config: VLMConfig) -> dict[str, Any]:
    """In a worker: the estimate and how long it took."""
    started = time.monotonic()
    found = estimate(config)
    return {**found, ESTIMATE_S: time.monotonic() - started}


def _note(tracker: FrontTracker | FleetTracker, done: Mapping[str, Evaluation], gain_left: float) -> str:
    left = f", the best left adds {gain_left:.4f}" if gain_left else ""
    diverged = sum(bool(evaluation.refused) for evaluation in done.values())
    return tracker.note() + left + (f", diverged {diverged}" if diverged else "")


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
