"""Kernels are timed through a real tracker and real servers on loopback, and whatever fails there ends soon."""

from __future__ import annotations

import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psutil
import pytest
from tvm import rpc as tvm_rpc
from tvm.rpc.base import TrackerCode
from tvm.target import codegen

from cost_models.errors import CostError
from cost_models.tvm import rpc, timing
from search_spaces.kernels import Kernel, KernelKind

TARGET = {"kind": "llvm", "num-cores": 1, "mcpu": codegen.llvm_get_system_cpu()}
SOFTMAX = Kernel(KernelKind.SOFTMAX, 17, 64, batch=3, op="softmax")
GATHER = Kernel(KernelKind.GATHER, 7, 40, 50, op="embedding")
#: Each takes about a second to time, so that a board can fail between the first and the last.
SLOW = [Kernel(KernelKind.LINEAR, 192, 1024, 1024 + k) for k in range(3)]

# What `python -m tvm.exec.rpc_tracker` and `rpc_server` do, but TVM is imported once for all: that takes most of the
# time. Each server is a process group, for its sessions are processes too.
LAB = """
import os, socket, sys, threading
from tvm.rpc.server import PopenRPCServerState
from tvm.rpc.tracker import PopenTrackerServerState

port, *servers = sys.argv[1:]
for key, server_port in (server.split(":") for server in servers):
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.read(told, 1)  # until the tracker listens
        address = ("127.0.0.1", int(port))
        PopenRPCServerState("127.0.0.1", int(server_port), int(server_port) + 1, tracker_addr=address, key=key)
        threading.Event().wait()
    print(pid, flush=True)
    servers[servers.index(f"{key}:{server_port}")] = tell
PopenTrackerServerState("127.0.0.1", int(port), int(port) + 1)
for tell in servers:
    os.write(tell, b"!")
threading.Event().wait()
"""
KEYS = ("well", "killed", "stopped")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.fixture(scope="module")
def lab() -> Iterator[tuple[str, dict[str, int]]]:
    """A tracker's address, and by its key the process group of each server."""
    ports = [free_port() for _ in KEYS]
    port = free_port()
    command = [sys.executable, "-c", LAB, str(port), *(f"{key}:{at}" for key, at in zip(KEYS, ports, strict=True))]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    groups = {}
    try:
        assert process.stdout is not None
        with process.stdout as lines:
            groups = {key: int(lines.readline()) for key in KEYS}
            wait_until_free(f"127.0.0.1:{port}", *KEYS)
            yield f"127.0.0.1:{port}", groups
    finally:
        for group in (process.pid, *groups.values()):
            kill_group(group)
        process.wait()


def wait_until_free(tracker: str, *keys: str, patience_s: float = 60.0) -> None:
    ends = time.monotonic() + patience_s
    while time.monotonic() < ends:
        try:
            for key in keys:
                board = rpc.Board.at(tracker, key)
                board.check()
                assert board._ask([TrackerCode.SUMMARY], 1.0)["queue_info"][key]["free"] == 1
        except (CostError, AssertionError, KeyError):
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"no free server with each of the keys {keys} within {patience_s} s")


@contextmanager
def fails_within(seconds: float, *words: str) -> Iterator[None]:
    """A CostError of one line with all these words, in time, that leaves no process behind."""
    started = time.monotonic()
    with pytest.raises(CostError) as caught:
        yield
    assert time.monotonic() < started + seconds
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def start(kernels: list[Kernel], tracker: str, key: str, deadline_s: float) -> Iterator[timing.KernelTiming]:
    return rpc.time_kernels_remotely(kernels, TARGET, tracker, key, deadline_s=deadline_s, compile_processes=1)


def test_kernels_are_timed_on_the_board(lab: tuple[str, dict[str, int]]) -> None:
    kernels, seen = [SOFTMAX, GATHER], []
    timings = list(
        rpc.time_kernels_remotely(
            kernels, TARGET, lab[0], "well", progress=lambda *at: seen.append(at), compile_processes=1
        )
    )
    assert {item.kernel for item in timings} == set(kernels)
    assert seen == [(1, 2), (2, 2)]
    assert all(1e-8 < item.latency_s <= item.repeat_s < 1e-3 for item in timings)
    wait_until_free(lab[0], "well", patience_s=10.0)


def test_a_killed_server_costs_only_what_it_was_timing(lab: tuple[str, dict[str, int]]) -> None:
    with closing(start(SLOW, lab[0], "killed", 60.0)) as timings:
        assert next(timings).kernel in SLOW
        os.killpg(lab[1]["killed"], signal.SIGKILL)
        with fails_within(10.0, "key 'killed' at 127.0.0.1:", "linear 192x1024x", "start it again", "rpc_server"):
            list(timings)


def test_a_server_that_hangs_is_given_up(lab: tuple[str, dict[str, int]]) -> None:
    with closing(start(SLOW, lab[0], "stopped", 2.0)) as timings:
        assert next(timings).kernel in SLOW
        os.killpg(lab[1]["stopped"], signal.SIGSTOP)
        with fails_within(10.0, "key 'stopped' at 127.0.0.1:", "no sign of life for 2 s while", "--key stopped"):
            list(timings)


def test_a_busy_server_is_not_waited_for_longer_than_the_deadline(lab: tuple[str, dict[str, int]]) -> None:
    host, port = lab[0].split(":")
    wait_until_free(lab[0], "well")
    tracker = tvm_rpc.connect_tracker(host, int(port))
    session = tracker.request("well")
    try:
        with fails_within(5.0, "every server with key 'well'", "busy for 0.5 s", "wait until its client ends"):
            rpc.Board.at(lab[0], "well").request(0.5)
    finally:
        del session
        tracker.close()
    wait_until_free(lab[0], "well", patience_s=10.0)  # a request that was given up takes no server


def test_an_unknown_key_names_the_known_ones(lab: tuple[str, dict[str, int]]) -> None:
    with fails_within(
        5.0,
        "no server with key 'pi4'",
        "well: 1 free of 1",
        f"rpc_server --host 127.0.0.1 --tracker {lab[0]} --key pi4",
    ):
        next(start([SOFTMAX], lab[0], "pi4", 60.0))


def test_an_absent_tracker_is_told_at_once() -> None:
    with fails_within(5.0, "no tracker at 127.0.0.1:", "refused", "python -m tvm.exec.rpc_tracker"):
        next(start([SOFTMAX], f"127.0.0.1:{free_port()}", "pi4", 60.0))


def test_what_is_no_tracker_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "_TRACKER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening, fails_within(5.0, "no TVM tracker that works"):
        next(start([SOFTMAX], f"127.0.0.1:{listening.getsockname()[1]}", "pi4", 60.0))


@pytest.mark.parametrize("tracker", ["", "board", "board:", ":9190", "board:x", "board:0", "board:70000"])
def test_a_tracker_is_host_and_port(tracker: str) -> None:
    with pytest.raises(CostError, match="HOST:PORT"):
        rpc.Board.at(tracker, "pi4")


def test_only_a_server_behind_a_tracker_here_listens_here_alone() -> None:
    assert "--host" not in rpc.Board.at("10.0.0.2:9190", "pi4").start_command


@pytest.mark.parametrize("key", ["", "two words", "pi4 -timeout=1"])
def test_a_key_is_one_word(key: str) -> None:
    with pytest.raises(CostError, match="one word"):
        rpc.Board.at("[::1]:9190", key)


@pytest.mark.slow
def test_documented_commands_give_the_times_of_this_machine() -> None:
    """The network is in no figure: a server on this machine agrees with timing without one."""
    port = free_port()
    commands = [
        ["rpc_tracker", "--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)],
        ["rpc_server", "--host", "127.0.0.1", "--tracker", f"127.0.0.1:{port}", "--key", "here"],
    ]
    processes = []
    try:
        for module, *options in commands:
            command = [sys.executable, "-m", f"tvm.exec.{module}", *options]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            processes.append(subprocess.Popen(command, start_new_session=True, **quiet))
        wait_until_free(f"127.0.0.1:{port}", "here")
        kernels = [SOFTMAX, GATHER, *SLOW, Kernel(KernelKind.LINEAR, 1, 1024, 512)]
        with closing(start(SLOW, f"127.0.0.1:{port}", "here", 60.0)) as timings:
            assert next(timings).kernel in SLOW
        wait_until_free(f"127.0.0.1:{port}", "here", patience_s=10.0)  # a session that was given up ends in order
        here = {item.kernel: item.latency_s for item in timing.time_kernels(kernels, TARGET, compile_processes=1)}
        there = dict.fromkeys(kernels, math.inf)
        for _ in range(4):  # nothing waits for quiet moments there, and this machine has other things to do
            for item in start(kernels, f"127.0.0.1:{port}", "here", 60.0):
                there[item.kernel] = min(there[item.kernel], item.latency_s)
            apart = statistics.median(abs(math.log(there[kernel] / here[kernel])) for kernel in kernels)
            if apart < 0.15:
                break
        assert apart < 0.15
    finally:
        for process in processes:
            kill_group(process.pid)
            process.wait()
