"""Times kernels on a board, through TVM's own tracker and server: compiled here, run and timed there.

The protocol is timing.py's, on the board's clock, so that the network is in no figure; there is no canary, because a
board has no neighbours. Native calls to a board that has vanished or hangs may never return. So what can hang runs in
a process of its own, which sends each timing through a pipe as soon as it exists; the parent asks the tracker, waits
for every sign of life no longer than a deadline, and then kills that process.
"""

from __future__ import annotations

import multiprocessing
import operator
import os
import signal
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax, rpc
from tvm.rpc import base

from cost_models.errors import CostError
from cost_models.tvm.chains import Chain
from cost_models.tvm.runtime import silent
from cost_models.tvm.timing import Clock, KernelTiming, Library, compile_libraries, time_chain
from search_spaces.kernels import Kernel

#: Longest silence of a board: no single upload or measurement takes longer, even on a slow one.
DEADLINE_S = 60.0
_TRACKER_S = 10.0  # a tracker answers at once or never
_START_S = 120.0  # for importing TVM on a busy machine
# A server whose session is cut in the middle of a call serves nobody again (so TVM 0.27), so let the call end.
_GRACE_S = 5.0
_Address = tuple[str, int, str]  # host, port, and what the server knows its client by


@dataclass(frozen=True, slots=True)
class Board:
    """The servers that are registered with one key at a tracker."""

    host: str
    port: int
    key: str

    @classmethod
    def at(cls, tracker: str, key: str) -> Board:
        """Read HOST:PORT and a key; nothing is connected yet."""
        host, _, port = tracker.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
            raise CostError(f"a tracker is given as HOST:PORT, e.g. 127.0.0.1:9190, but got {tracker!r}")
        if key.split() != [key]:
            raise CostError(f"a key is one word, e.g. pi4, but got {key!r}")
        return cls(host.strip("[]"), int(port), key)

    @property
    def tracker(self) -> str:
        """The tracker as HOST:PORT."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def start_command(self) -> str:
        """What starts a server on the board."""
        # a tracker on this side of a tunnel: anyone who reaches a server runs code on the board
        host = "--host 127.0.0.1 " if self.host in ("127.0.0.1", "localhost", "::1") else ""
        return f"python -m tvm.exec.rpc_server {host}--tracker {self.tracker} --key {self.key}"

    @property
    def _tracker_mend(self) -> str:
        return f"start one: python -m tvm.exec.rpc_tracker --host 127.0.0.1 --port {self.port}"

    def check(self) -> None:
        """Raise CostError unless the tracker answers and has a server with this key, free or busy."""
        try:
            summary = self._ask([base.TrackerCode.SUMMARY], _TRACKER_S)
        except TimeoutError:
            raise CostError(f"the tracker at {self.tracker} hangs; {self._tracker_mend}") from None
        total: dict[str, int] = {}
        for server in summary["server_info"]:
            name = server["key"].removeprefix("server:")
            total[name] = total.get(name, 0) + 1
        if self.key not in total:
            free = {name: queue["free"] for name, queue in summary["queue_info"].items()}
            known = ", ".join(f"{name}: {free.get(name, 0)} free of {total[name]}" for name in sorted(total))
            raise CostError(
                f"no server with key {self.key!r} at {self.tracker} (known keys: {known or 'none'}); "
                f"start one on the board: {self.start_command}"
            )

    def request(self, deadline_s: float) -> _Address:
        """Wait in the tracker's queue for a free server: (host, port, what the server knows its client by)."""
        self.check()
        try:
            host, port, word = self._ask([base.TrackerCode.REQUEST, self.key, "", 1], deadline_s)
        except TimeoutError:
            raise CostError(
                f"every server with key {self.key!r} at {self.tracker} has been busy for {deadline_s:g} s; wait until "
                f"its client ends, or start it again on the board: {self.start_command}"
            ) from None
        return host, port, word

    def _ask(self, question: list[Any], patience_s: float) -> Any:
        """The tracker's answer; TimeoutError where it took the question but gives no answer in time."""
        try:
            tracker = socket.create_connection((self.host, self.port), _TRACKER_S)
        except OSError as error:
            raise CostError(f"no tracker at {self.tracker} ({error.strerror or error}); {self._tracker_mend}") from None
        with tracker:
            try:
                tracker.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
                if struct.unpack("<i", base.recvall(tracker, 4))[0] != base.RPC_TRACKER_MAGIC:
                    raise OSError("its first answer is not TVM's")
            except OSError as error:
                raise CostError(f"what listens at {self.tracker} is no TVM tracker that works ({error})") from None
            try:
                tracker.settimeout(patience_s)
                base.sendjson(tracker, question)
                code, answer = base.recvjson(tracker)
            except TimeoutError:
                raise
            except (OSError, ValueError) as error:
                raise CostError(f"lost the tracker at {self.tracker} ({error}); {self._tracker_mend}") from None
        if code != base.TrackerCode.SUCCESS:
            raise CostError(f"the tracker at {self.tracker} refused (code {code}); {self._tracker_mend}")
        return answer


def time_kernels_remotely(
    kernels: Sequence[Kernel],
    target: Mapping[str, object],
    tracker: str,
    key: str,
    *,
    progress: Callable[[int, int], None] | None = None,
    deadline_s: float = DEADLINE_S,
    compile_processes: int = 2,
    seed: int = 0,
) -> Iterator[KernelTiming]:
    """Compile all kernels for the board's target, then time one after the other there, as `time_kernels` does here.

    Ends in CostError when the board is silent for `deadline_s`, vanishes or refuses; what was yielded stays true.
    """
    board = Board.at(tracker, key)
    board.check()  # before minutes of compiling
    with tempfile.TemporaryDirectory(prefix="kernels-") as folder:
        libraries = compile_libraries(kernels, target, Path(folder), compile_processes)
        for done, timing in enumerate(_converse(board, libraries, seed, deadline_s), start=1):
            yield timing
            if progress is not None:
                progress(done, len(kernels))


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What the board answered when something failed there."""

    message: str


def _converse(board: Board, libraries: Sequence[Library], seed: int, deadline_s: float) -> Iterator[KernelTiming]:
    """Run the conversation in a child process; it sends what it does next, timings, or a refusal, and None at last."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_speak, args=(theirs, list(libraries), seed), daemon=True)
    child.start()
    theirs.close()
    server, step = f"the server with key {board.key!r} at {board.tracker}", "starting"
    try:
        if not ours.poll(_START_S):
            raise CostError(f"TVM could not be imported within {_START_S:g} s: this machine has too much else to do")
        _receive(ours, 0.0)
        host, port, _ = address = board.request(deadline_s)
        ours.send(address)
        server = f"the server with key {board.key!r} at {host}:{port}"
        while (message := _receive(ours, deadline_s)) is not None:
            if isinstance(message, KernelTiming):
                yield message
            elif isinstance(message, _Refusal):
                raise CostError(f"{server} failed while {step}: {message.message}; {_mend(message.message, board)}")
            else:
                step = message
    except TimeoutError:
        child.kill()
        raise CostError(
            f"{server} gave no sign of life for {deadline_s:g} s while {step}; if it hangs or is cut off, start it "
            f"again on the board: {board.start_command}"
        ) from None
    except (EOFError, ConnectionError):
        child.join(_GRACE_S)
        raise CostError(
            f"the process that spoke to {server} died while {step} (code {child.exitcode}); try again"
        ) from None
    finally:
        ours.close()  # the child's next message fails, and it ends the session
        child.join(_GRACE_S)
        child.kill()
        child.join()
        child.close()


def _receive(pipe: Connection, patience_s: float) -> Any:
    if not pipe.poll(patience_s):
        raise TimeoutError
    return pipe.recv()


def _mend(message: str, board: Board) -> str:
    if "shared library" in message or "shared object" in message:
        return "does tvm_target in the device's profile describe this board?"
    if "connect" in message.lower() and "reset" not in message.lower():
        return "the address must be reachable from here: forward its port, or start the server with --custom-addr"
    return (
        f"start it again on the board: {board.start_command}; if it dies at the same kernel again, it has too little "
        "memory, or lacks instructions that tvm_target in its profile names"
    )


def _speak(pipe: Connection, libraries: Sequence[Library], seed: int) -> None:
    """What the child process does: take an address, time everything there, tell each step before it is taken."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with suppress(ConnectionError, EOFError), silent(), pipe:  # a parent that wants no more closes its end
        pipe.send("ready")
        host, port, word = pipe.recv()
        try:
            pipe.send("connecting")
            session = rpc.connect(host, port, word)
            free_memory = session.get_function("vm.builtin.memory_manager.clear")
            rng = np.random.default_rng(seed)
            for library in libraries:
                pipe.send("loading a library")
                session.upload(str(library.path))
                module = session.load_module(library.path.name)
                for name, chain in library.chains.items():
                    pipe.send(_time_there(session, module, name, chain, rng, pipe.send))
                    free_memory()  # its pool would keep the operands of every kernel, and boards have little
            pipe.send(None)
        except ConnectionError:
            raise  # the pipe's: TVM's sockets fail with errors of its own
        except (RuntimeError, OSError) as error:  # TVM's own errors are RuntimeErrors
            lines = [line for line in str(error).splitlines() if line.strip()]
            pipe.send(_Refusal(lines[-1].rpartition(" is false: ")[2].strip() if lines else type(error).__name__))


def _die_with_parent() -> None:
    """A parent that was killed cannot kill this process, and a native call may never return."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        time.sleep(_GRACE_S)
        os._exit(1)


def _time_there(
    session: Any, module: Any, name: str, chain: Chain, rng: np.random.Generator, tell: Callable[[str], None]
) -> KernelTiming:
    device = session.cpu(0)
    arrays: dict[str, Any] = {}
    for operand in chain.operands:
        tell(f"receiving operands of {chain.kernel}")
        arrays[operand.name] = tvm.runtime.tensor(operand.example(rng), device)
    shared = [arrays[operand.name] for operand in chain.operands if not operand.own]
    own = [arrays[operand.name] for operand in chain.operands if operand.own]
    machine = relax.VirtualMachine(module, device)
    saved: list[str] = []

    def load() -> Clock:
        tell(f"loading {chain.kernel}")
        # The board copies every operand of a saved call to memory of its own: so each call of the chain gets weights
        # of its own although they cross the network once, and each measurement gets fresh operands.
        saved.append(f"timed{len(saved)}")
        machine.save_function(name, saved[-1], *shared, *own * chain.calls, include_return=False)
        return least_s

    def least_s(runs: int) -> float:
        tell(f"timing {chain.kernel}")
        times = machine.time_evaluator(saved[-1], device, number=1, repeat=runs)().results
        return float(min(times))

    return time_chain(chain, load, operator.call)
