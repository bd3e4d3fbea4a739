"""Journals: what kills, other programs and two writers do to them, and searches of several processes on one archive."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from test_search import finished, pricer_of, quiet, same, small

from nas import search as search_module
from nas import workflow
from nas.archive import Archive
from nas.errors import NasError
from nas.processes import alone, is_alive, numbered, this_process
from nas.search import search
from nas.storage import JournalFile, open_storage
from nas.tally import Tally, drop_unfinished
from nas.workers import beside


def record(number: int) -> dict[str, Any]:
    return {"op_code": 2, "worker_id": "w", "study_id": 0, "user_attr": {"n": number}}


@pytest.fixture
def journal(tmp_path: Path) -> JournalFile:
    path = tmp_path / "nas.journal"
    path.touch()
    return JournalFile(path)


@pytest.fixture
def experiment_url(tmp_path: Path) -> str:
    url = f"journal:///{tmp_path}/nas.journal"
    Archive.create(url, small()).close()
    return url


def python(code: str, *args: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)])


def until(true: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait as long as the process is there that is waited for; the quarter of an hour is for what hangs."""
    deadline = time.monotonic() + 900
    while not true():
        assert process is None or process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_records_are_read_from_any_number_on(journal: JournalFile) -> None:
    journal.append_logs([record(n) for n in range(3)])
    reader = JournalFile(journal.path)
    assert list(reader.read_logs(0)) == [record(n) for n in range(3)]
    assert list(reader.read_logs(3)) == []
    journal.append_logs([record(3)])
    assert list(reader.read_logs(3)) == [record(3)]
    assert list(reader.read_logs(1)) == [record(n) for n in (1, 2, 3)]  # back
    taken = reader.read_logs(0)
    assert next(taken) == record(0)
    taken.close()
    assert list(reader.read_logs(1)) == [record(n) for n in (1, 2, 3)]  # left half-way


@pytest.mark.parametrize("kept", [1, 11, 12, 40, -2, -1])
def test_a_torn_last_line_harms_no_record(journal: JournalFile, kept: int) -> None:
    journal.append_logs([record(0), record(1)])
    line = json.dumps(record(2), separators=(",", ":")).encode()
    whole = journal.path.read_bytes()
    torn = (line + b"\n")[:kept]
    journal.path.write_bytes(whole + torn)
    assert list(JournalFile(journal.path).read_logs(0)) == [record(0), record(1)]
    assert journal.path.read_bytes() == whole + torn  # a reader leaves it
    journal.append_logs([record(3)])
    expected = [record(0), record(1), *([record(2)] if torn == line else []), record(3)]
    assert list(JournalFile(journal.path).read_logs(0)) == expected
    assert list(JournalFileBackend(str(journal.path)).read_logs(0)) == expected


def test_a_torn_line_longer_than_what_is_read_at_once(journal: JournalFile) -> None:
    journal.append_logs([record(0)])
    with journal.path.open("ab") as file:
        file.write(b'{"op_code":2,"user_attr":{"n":"' + b"x" * 200_000)
    journal.append_logs([record(1)])
    assert list(journal.read_logs(0)) == [record(0), record(1)]


def test_a_process_killed_with_the_lock_holds_nobody_up(journal: JournalFile) -> None:
    journal.append_logs([record(0)])
    code = """
import os, pathlib, sys, time
from nas import storage
real = os.write
def torn(file, data):
    real(file, data[:20])
    print("torn", flush=True)
    time.sleep(600)
storage.os.write = torn
storage.JournalFile(pathlib.Path(sys.argv[1])).append_logs([{"op_code": 2, "worker_id": "other"}])
"""
    command = [sys.executable, "-c", code, str(journal.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"torn\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not journal.path.read_bytes().endswith(b"\n")
    started = time.monotonic()
    journal.append_logs([record(1)])
    assert time.monotonic() - started < 20  # Optuna's lock would wait for 30
    assert list(journal.read_logs(0)) == [record(0), record(1)]


def test_two_writers_keep_every_record(journal: JournalFile) -> None:
    code = """
import pathlib, sys
from nas.storage import JournalFile
file, name = JournalFile(pathlib.Path(sys.argv[1])), sys.argv[2]
for n in range(1000):
    file.append_logs([{"op_code": 2, "worker_id": name, "n": n, "x": "x" * (n % 300)}] * (1 + n % 3))
"""
    writers = [python(code, journal.path, name) for name in ("a", "b")]
    reader, seen = JournalFile(journal.path), 0
    while any(writer.poll() is None for writer in writers):
        seen += len(list(reader.read_logs(seen)))
    assert [writer.returncode for writer in writers] == [0, 0]
    seen += len(list(reader.read_logs(seen)))
    records = list(JournalFile(journal.path).read_logs(0))
    assert seen == len(records) == 2 * sum(1 + n % 3 for n in range(1000))
    for name in ("a", "b"):
        own = [found["n"] for found in records if found["worker_id"] == name]
        assert own == [n for n in range(1000) for _ in range(1 + n % 3)]


def sqlite_file(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("create table songs (title text)")
    connection.close()


def text_file(path: Path) -> None:
    path.write_text("dear diary,\nit rains\n", encoding="utf-8")


def text_line(path: Path) -> None:
    path.write_text("dear diary", encoding="utf-8")


def other_json(path: Path) -> None:
    path.write_text('{"op": 1}\n', encoding="utf-8")


def garbage_within(path: Path) -> None:
    path.touch()
    journal = JournalFile(path)
    study = {"op_code": 0, "worker_id": "w", "study_name": "s", "directions": [1]}
    journal.append_logs([study, record(0)])
    with path.open("ab") as file:
        file.write(b"\0\0\0\n")
    path.write_bytes(path.read_bytes() + b"".join(json.dumps(record(1)).encode() + b"\n" for _ in range(2)))


def garbage_at_the_end(path: Path) -> None:
    garbage_within(path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]) + b"\0\0\0")


def unknown_operation(path: Path) -> None:
    path.write_text('{"op_code":77,"worker_id":"w"}\n', encoding="utf-8")


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (sqlite_file, "line 1: not a record of an Optuna journal; give another --storage"),
        (text_file, "line 1: not a record"),
        (text_line, "line 1: not a record"),
        (other_json, "line 1: not a record"),
        (garbage_within, "line 3: not a record .* keep what is before it: head -n 2"),
        (garbage_at_the_end, "line 3: not a record"),
        (unknown_operation, "records that this Optuna does not know"),
        (Path.mkdir, "cannot be read or written .*; give another --storage"),
    ],
)
def test_what_is_no_journal_is_told_and_left_as_it_is(
    write: Callable[[Path], object], told: str, tmp_path: Path
) -> None:
    path = tmp_path / "nas.journal"
    write(path)
    before = path.read_bytes() if path.is_file() else None
    for create in (False, True):
        with pytest.raises(NasError, match=told) as raised:
            open_storage(f"journal:///{path}", create)
        assert "\n" not in str(raised.value)
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_foreign_last_line_is_not_cut_off_by_a_writer(journal: JournalFile) -> None:
    journal.append_logs([record(0)])
    with journal.path.open("ab") as file:
        file.write(b"my notes")
    before = journal.path.read_bytes()
    with pytest.raises(NasError, match="last line: not a record"):
        journal.append_logs([record(1)])
    assert journal.path.read_bytes() == before


def test_a_missing_journal_names_what_is_there(tmp_path: Path) -> None:
    url = f"journal:///{tmp_path}/nas.journal"
    with pytest.raises(NasError, match="does not exist; run `nas search` first"):
        open_storage(url, create=False)
    (tmp_path / "nas.db").touch()
    with pytest.raises(NasError, match=f"an older release: --storage sqlite:///{tmp_path}/nas.db"):
        open_storage(url, create=False)
    for wrong in ("journal:runs/nas.journal", "journal:///"):
        with pytest.raises(NasError, match=r"is not a storage URL such as journal:///runs/nas\.journal"):
            open_storage(wrong, create=True)


def test_a_full_disk_leaves_whole_records(journal: JournalFile, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.append_logs([record(0)])
    real, calls = os.write, []

    def full(file: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return real(file, data[:10])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(NasError, match="No space left on device"):
            journal.append_logs([record(1)])
    assert len(calls) == 2
    assert list(journal.read_logs(0)) == [record(0)]
    assert journal.path.read_bytes().endswith(b"\n")


def test_optuna_reads_ours_and_we_read_optunas(tmp_path: Path) -> None:
    def trial(backend: Any) -> list[tuple[int, dict[str, Any], list[float] | None]]:
        study = optuna.create_study(
            study_name="s",
            storage=JournalStorage(backend),
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(seed=0),
        )
        asked = study.ask({"x": optuna.distributions.CategoricalDistribution(["a", 2, 0.5])})
        asked.set_user_attr("evaluation", "é" * 10)
        study.tell(asked, 1.0)
        return [(found.number, found.params, found.values) for found in study.get_trials()]

    path = tmp_path / "nas.journal"
    assert len(trial(JournalFileBackend(str(path)))) == 1
    assert len(trial(JournalFile(path))) == 2
    assert len(trial(JournalFileBackend(str(path)))) == 3
    seen = [list(backend.read_logs(0)) for backend in (JournalFile(path), JournalFileBackend(str(path)))]
    assert seen[0] == seen[1]


def test_reading_an_archive_writes_nothing(experiment_url: str) -> None:
    path = Path(experiment_url.removeprefix("journal:///"))
    archive = Archive.open(experiment_url)
    search(archive, pricer_of(archive.experiment), 3, 0, same, quiet)
    archive.close()
    before = path.read_bytes()
    archive = Archive.open(experiment_url)
    assert len(archive.best_known()) == 3
    archive.close()
    assert path.read_bytes() == before


def test_owners_are_known_alive_or_dead() -> None:
    own = this_process()
    assert is_alive(own)
    assert not is_alive({**own, "started": own["started"] - 100})  # the number of another process since
    assert is_alive({**own, "host": "elsewhere", "pid": 1 << 22})
    process = python("import time; time.sleep(600)")
    owner = {**own, "pid": process.pid, "started": psutil.Process(process.pid).create_time()}
    assert is_alive(owner)
    process.kill()
    until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
    assert not is_alive(owner)
    process.wait()
    assert not is_alive(owner)


def test_locks_and_numbers_are_of_one_process_at_a_time(tmp_path: Path) -> None:
    told: list[tuple[Any, ...]] = []

    def tell(*said: Any) -> None:
        told.append(said)
        holder.kill()

    code = """
import pathlib, sys, time
from nas.processes import alone, numbered
with numbered(pathlib.Path(sys.argv[1])) as n, alone(pathlib.Path(sys.argv[1]) / "rest.lock", None):
    (pathlib.Path(sys.argv[1]) / "held").write_text(str(n))
    time.sleep(600)
"""
    holder = python(code, tmp_path)
    until(lambda: (tmp_path / "held").is_file() and (tmp_path / "held").read_text() == "0")
    with numbered(tmp_path) as first, numbered(tmp_path) as second:
        assert (first, second) == (1, 2)
    with alone(tmp_path / "rest.lock", tell) as waited:
        assert waited
    holder.wait()
    assert told[0] == ("waiting", 0, 1, "another process is at what follows")
    with numbered(tmp_path) as number, alone(tmp_path / "rest.lock", tell) as waited:
        assert number == 0
        assert not waited


def unfinished(url: str, owner: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> Any:
    """A trial of some process, and its point."""
    archive = Archive.open(url)
    with monkeypatch.context() as patched:
        patched.setattr("nas.archive.this_process", lambda: owner)
        trial = archive.begin(archive.study("cheap", optuna.samplers.RandomSampler(seed=seed)))
    archive.close()
    return trial


def test_only_trials_of_the_dead_are_failed(experiment_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = this_process()
    neighbour = python("import time; time.sleep(600)")
    living = {**own, "pid": neighbour.pid, "started": psutil.Process(neighbour.pid).create_time()}
    dead = {**own, "pid": 1 << 22}
    trials = [unfinished(experiment_url, owner, monkeypatch, n) for n, owner in enumerate((own, living, dead, None))]
    archive = Archive.open(experiment_url)
    left = drop_unfinished(archive, "cheap")
    states = [found.state for found in archive.study("cheap").get_trials()]
    assert states == [TrialState.FAIL, TrialState.RUNNING, TrialState.FAIL, TrialState.FAIL]
    assert left == [trials[n].params for n in (0, 2, 3)]
    assert drop_unfinished(archive, "cheap") == []
    archive.close()
    neighbour.kill()
    neighbour.wait()


def test_a_living_neighbours_config_is_left_to_it_and_a_dead_ones_is_taken_over(
    experiment_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    neighbour = python("import time; time.sleep(600)")
    own = this_process()
    living = {**own, "pid": neighbour.pid, "started": psutil.Process(neighbour.pid).create_time()}
    archive = Archive.open(experiment_url)
    # what the search is about to propose first, and a point of somebody who will die meanwhile
    first = unfinished(experiment_url, living, monkeypatch).params
    archive.close()
    monkeypatch.setitem(search_module.SAMPLERS, "cost_aware", lambda *_: optuna.samplers.RandomSampler(seed=0))
    monkeypatch.setattr("nas.tally._CHECK_S", 0.0)
    archive = Archive.open(experiment_url)
    search(archive, pricer_of(archive.experiment), 5, 0, same, quiet)
    points = [evaluation.point for evaluation in archive.evaluations("cheap")]
    assert len(points) == 5
    assert first not in points
    assert [found.state.name for found in archive.study("cheap").get_trials()[:2]] == ["RUNNING", "FAIL"]

    def tell(stage: str, done: float, total: float, note: str = "") -> None:
        if done >= 6 and neighbour.poll() is None:
            neighbour.kill()
            neighbour.wait()

    monkeypatch.setattr(search_module, "_TELL_S", 0.0)
    search(archive, pricer_of(archive.experiment), 10, 0, same, tell)
    evaluations = archive.evaluations("cheap")
    assert first in [evaluation.point for evaluation in evaluations]
    assert len(archive.trials("cheap")) == len(evaluations) == 10
    archive.close()


def test_a_tally_reads_each_finished_trial_once(experiment_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, other = Archive.open(experiment_url), Archive.open(experiment_url)
    space, read = archive.experiment.searched, []
    search(archive, pricer_of(archive.experiment), 6, 0, same, quiet)
    real = Archive.stored
    monkeypatch.setattr(archive, "stored", lambda trial: read.append(trial.number) or real(trial))
    tally = Tally(archive, archive.study("cheap"), space.choices, lambda point: space.decode(point).id)
    assert read == list(range(6))
    other.begin(other.study("cheap", optuna.samplers.RandomSampler(seed=9)))
    tally.look()
    assert len(tally.claimed) == 1
    search(other, pricer_of(other.experiment), 8, 1, same, quiet)  # fails the unfinished one first: it is our own
    for _ in range(2):
        tally.look()
    trials = archive.study("cheap").get_trials()
    assert trials[6].state is TrialState.FAIL
    assert trials[7].params == trials[6].params
    assert read == [0, 1, 2, 3, 4, 5, 7, 8]
    assert (tally.accepted, tally.claimed) == (8, set())
    assert tally.known == {evaluation.id for evaluation in other.evaluations("cheap")}
    archive.close()
    other.close()


def test_the_last_configs_of_a_space_are_waited_for(experiment_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = small().searched.choices
    only = {name: values[:1] for name, values in choices.items() if name != "projector"}
    experiment = small(name="narrow", only=only)
    Archive.create(experiment_url, experiment).close()
    neighbour = python("import time; time.sleep(600)")
    living = {**this_process(), "pid": neighbour.pid, "started": psutil.Process(neighbour.pid).create_time()}
    archive = Archive.open(experiment_url, "narrow")
    with monkeypatch.context() as patched:
        patched.setattr("nas.archive.this_process", lambda: living)
        archive.begin(archive.study("cheap", optuna.samplers.RandomSampler(seed=0)))
    size, asked = experiment.searched.size, []

    def sleep(seconds: float) -> None:
        asked.append(len(archive.evaluations("cheap")))
        neighbour.kill()
        neighbour.wait()

    monkeypatch.setattr("nas.search.time.sleep", sleep)
    monkeypatch.setattr("nas.tally._CHECK_S", 0.0)
    search(archive, pricer_of(experiment), size + 5, 0, same, quiet)
    assert asked == [size - 1]
    assert len(archive.trials("cheap")) == len(archive.evaluations("cheap")) == size
    archive.close()


def counted(url: str) -> tuple[Counter[int], int]:
    """Finished trials by the process that made them, and how many configs they are."""
    archive = Archive.open(url)
    trials = archive.trials("cheap")
    found = Counter(trial.user_attrs["owner"]["pid"] for trial in trials), len(archive.evaluations("cheap"))
    archive.close()
    return found


@contextlib.contextmanager
def watched(url: str) -> Iterator[Callable[[], Counter[int]]]:
    """Finished trials by process, each time anew."""
    archive = Archive.open(url)
    yield lambda: Counter(trial.user_attrs["owner"]["pid"] for trial in archive.trials("cheap"))
    archive.close()


SEARCHER = """
import sys, time
from cost_models.models import cost_model
from hardware_profiles import load
from nas import fleet, search
from nas.archive import Archive
from nas.candidate import Pricer
url, worker, trials = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
archive = Archive.open(url)
real = fleet.violations
def slow(*args):
    time.sleep(0.05)  # while the config is claimed
    return real(*args)
fleet.violations = slow
pricer = Pricer(cost_model("roofline", load(archive.experiment.device)), archive.experiment.workload.workload())
search.search(archive, pricer, trials, 0, lambda config: config, lambda *_: None, worker)
"""


@pytest.mark.parametrize("alike", [True, False])
def test_two_searches_share_the_trials_and_evaluate_no_config_twice(experiment_url: str, alike: bool) -> None:
    workers = [python(SEARCHER, experiment_url, 0 if alike else n, 60) for n in range(2)]
    assert [worker.wait(timeout=240) for worker in workers] == [0, 0]
    by, configs = counted(experiment_url)
    assert set(by) == {worker.pid for worker in workers}
    assert configs == by.total()
    assert 60 <= by.total() <= 61


def test_a_killed_searcher_costs_no_finished_trial_and_the_other_ends_the_job(experiment_url: str) -> None:
    killed, other = (python(SEARCHER, experiment_url, n, 80) for n in range(2))
    with watched(experiment_url) as by:
        until(lambda: by()[killed.pid] >= 10 and by()[other.pid] >= 5, other)
        killed.kill()
        killed.wait()
    before = finished(experiment_url)
    assert len(before) < 80
    assert other.wait(timeout=240) == 0
    every, configs = counted(experiment_url)
    assert configs == every.total() == 80
    assert before.items() <= finished(experiment_url).items()
    archive = Archive.open(experiment_url)
    assert {trial.state for trial in archive.study("cheap").get_trials()} <= {TrialState.COMPLETE, TrialState.FAIL}
    archive.close()


def test_a_command_with_two_workers_is_killed_piece_by_piece_and_two_others_end_it(
    experiment: Callable[..., Path], tmp_path: Path
) -> None:
    environment = {**os.environ, "EDGE_VLM_NAS_DATA": str(tmp_path / "data"), "OMP_NUM_THREADS": "1"}

    def begin(*options: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "nas", "search", tmp_path / "small.yaml", "--json", *options]
        return subprocess.Popen(
            list(map(str, command)), cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    experiment(trials=100_000, workers=2)
    url, first = f"journal:///{tmp_path}/runs/nas.journal", begin()
    with first:
        until(lambda: bool(finished(url)), first)
        with watched(url) as by:
            until(lambda: len(by()) == 2, first)
            [worker] = by().keys() - {first.pid}
            os.kill(worker, signal.SIGKILL)
            reached = by()[first.pid]
            until(lambda: by()[first.pid] > reached, first)
        first.kill()
    before = finished(url)
    both = [begin("--trials", len(before) + 3, "--workers", 1) for _ in range(2)]
    shown = [json.loads(process.communicate()[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert shown[0]["front"]
    assert before.items() <= finished(url).items()
    every, configs = counted(url)
    assert len(before) + 3 <= configs == every.total() <= len(before) + 4


def test_processes_beside_this_one_are_waited_for_and_end_with_what_fails_here() -> None:
    def fail() -> None:
        with beside(1, time.sleep, 100_000):
            assert len(multiprocessing.active_children()) == 1
            raise NasError("here")

    with beside(2, open_storage, "journal:wrong", False):  # what fails there is met here too
        assert len(multiprocessing.active_children()) == 2
    assert multiprocessing.active_children() == []
    with pytest.raises(NasError, match="here"):
        fail()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("already", [True, False])
def test_who_waited_for_the_trainings_of_the_same_begins_none(
    already: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def waited(path: Path, progress: Any) -> Iterator[bool]:
        yield True

    monkeypatch.setattr(workflow, "alone", waited)
    monkeypatch.setattr(workflow, "_adapted", lambda _: same)
    promoted = []
    monkeypatch.setattr("nas.promotion.promote", lambda *given: promoted.append(given[2].promote))
    experiment = small(proxy={"cheap": "parameters", "promote": 4})
    url = f"journal:///{tmp_path}/nas.journal"
    outcomes = [workflow.run(experiment, url, tmp_path, trials, 0, quiet) for trials in (5, 5 if already else 6)]
    assert promoted == ([4] if already else [4, 4])
    assert outcomes[-1].fronts
    assert ("train" in outcomes[-1].seconds) != already
