"""What nvcc says of compiled GPU functions: registers from ptxas's log, executed instructions from the PTX text.

Loops of a kernel have constant bounds, so that PTX alone says how often each block runs: only the integers that
backward branches hang on are evaluated. Code behind a condition that depends on the thread counts as executed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from cost_models.errors import CostError
from cost_models.static_gpu import Work

_MOST_STEPS = 2_000_000
_ENTRY = re.compile(r"\.entry\s+(\w+)")
_INSTRUCTION = re.compile(r"^(?:@(!?)(%\w+)\s+)?([a-z][\w.]*)\s*([^;]*);")
_LOGGED = re.compile(r"Compiling entry function '(\w+)'")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_ARITHMETIC = re.compile(r"(?:fma|mul|add|sub|max|min|neg|abs)\..*f(?:16|16x2|32)$")
_SPECIAL = re.compile(r"(?:ex2|lg2|rcp|rsqrt|sqrt|sin|cos|tanh|div)\..*f(?:16|16x2|32)$")
_TYPE_BITS = re.compile(r"[a-z](\d+)$")
_REGISTER = re.compile(r"%\w+")
_RESULT = re.compile(r"\{[^}]*\}|[^,]*")
#: What is no instruction of the machine, or none worth an issue slot.
_FREE = ("ld.param", "mov", "cvta", "ret")
#: Bytes a lane of a matrix fragment of 16 x 16 halves, and operations of one product of two.
_FRAGMENT_BYTES, _FRAGMENT_OPS = 16.0, 2.0 * 16**3


@dataclass(frozen=True, slots=True)
class Resources:
    """Registers of a thread, static shared memory of a block, and bytes a thread spills, by ptxas."""

    registers: int
    shared_bytes: int
    spill_bytes: int


def resources(log: str) -> dict[str, Resources]:
    """Each function's resources from the output of ptxas -v."""
    found: dict[str, Resources] = {}
    for part in re.split(r"(?=Compiling entry function)", log):
        name, used = _LOGGED.search(part), _REGISTERS.search(part)
        if name and used:
            shared, spills = _SHARED.search(part), _SPILLS.search(part)
            spilled = sum(map(int, spills.groups())) if spills else 0
            found[name[1]] = Resources(int(used[1]), int(shared[1]) if shared else 0, spilled)
    return found


def executed(text: str) -> dict[str, Work]:
    """What a thread of each function executes, from the PTX of a module."""
    starts = list(_ENTRY.finditer(text))
    ends = [match.start() for match in starts[1:]] + [len(text)]
    return {
        match[1]: _Function(match[1], text[match.end() : end]).run() for match, end in zip(starts, ends, strict=True)
    }


@dataclass(slots=True)
class _Block:
    """Instructions up to a label or a branch: their counts, loads and barriers in order, and what decides."""

    counts: Counter[str] = field(default_factory=Counter)
    events: str = ""  # L: global load, B: barrier
    integers: list[tuple[str, list[str]]] = field(default_factory=list)
    branch: tuple[str, bool, str] | None = None  # predicate or "", negated, label
    returns: bool = False
    depths: dict[str, int] = field(default_factory=dict)  # of each value: instructions that wait for each other

    def follow(self, code: str, text: str) -> None:
        """Note how many instructions of this block an instruction waits for, one after the other."""
        result, sources = _RESULT.match(text), _REGISTER.findall(text)
        depth = 1 + max((self.depths.get(source, 0) for source in sources), default=0)
        if result and not code.startswith("st."):
            self.depths.update(dict.fromkeys(_REGISTER.findall(result[0]), depth))
        self.counts["depth"] = max(self.counts["depth"], depth)

    @property
    def only_jumps(self) -> bool:
        """Whether it does nothing but lead elsewhere, as in front of what a condition skips."""
        return self.branch is not None and not self.branch[0] and self.counts["instructions"] == 1


class _Function:
    """One function's blocks, walked through from entry to return."""

    def __init__(self, name: str, body: str) -> None:
        self.name = name
        self.blocks = [_Block()]
        self.labels: dict[str, int] = {}
        for line in map(str.strip, body.splitlines()):
            if line.startswith("$") and line.endswith(":"):
                self._open()
                self.labels[line[:-1]] = len(self.blocks) - 1
            elif found := _INSTRUCTION.match(line.lstrip("{").lstrip()):
                self._add(found[1] == "!", found[2] or "", found[3], found[4])
        self._keep_deciding()

    def _open(self) -> None:
        self.blocks.append(_Block())

    def _add(self, negated: bool, predicate: str, code: str, text: str) -> None:
        block = self.blocks[-1]
        operands = [operand.strip() for operand in text.split(",")]
        if code in ("bra", "bra.uni"):
            block.branch = predicate, negated, operands[0]
            block.counts["instructions"] += 1
            self._open()
        elif code == "ret":
            block.returns = not predicate
            self._open()
        else:
            found = _counted(code)
            block.counts.update(found)
            if found:
                block.follow(code, text)
            block.events += "L" if code.startswith("ld.global") else "B" if code.startswith("bar") else ""
            block.integers.append((_UNKNOWN if predicate else code, operands))

    def _keep_deciding(self) -> None:
        """Drop the integers that no backward branch hangs on."""
        wanted = {
            block.branch[0]
            for index, block in enumerate(self.blocks)
            if block.branch and self.labels.get(block.branch[2], index + 1) <= index
        }
        size = -1
        while size != len(wanted):
            size = len(wanted)
            for block in self.blocks:
                for code, (result, *sources) in block.integers:
                    if result in wanted and code.split(".")[0] in _INTEGERS:
                        wanted.update(sources)
        for block in self.blocks:
            block.integers = [item for item in block.integers if item[1][0] in wanted]

    def run(self) -> Work:
        """Count what is executed; raises CostError for a loop that nothing decides."""
        counts: Counter[str] = Counter()
        visits: Counter[int] = Counter()
        rounds, waits = 0, True
        for steps, (index, repeats) in enumerate(self._walk()):
            if steps > _MOST_STEPS:
                raise CostError(f"{self.name}: more than {_MOST_STEPS} steps")
            visits[index] += 1
            waits = waits or repeats
            for event in self.blocks[index].events:
                rounds += waits and event == "L"
                waits = event == "B"
        for index, times in visits.items():
            counts.update({what: count * times for what, count in self.blocks[index].counts.items()})
        return Work(**{what: float(count) for what, count in counts.items()}, load_rounds=float(rounds))

    def _walk(self) -> Iterator[tuple[int, bool]]:
        """(block, whether a backward branch led to it) in the order of execution."""
        values: dict[str, int | None] = {}
        index, repeats = 0, False
        while index < len(self.blocks):
            block = self.blocks[index]
            yield index, repeats
            repeats = False
            for code, (result, *sources) in block.integers:
                values[result] = _evaluate(code, [_value(source, values) for source in sources])
            if block.returns:
                return
            following = index + 1
            if block.branch:
                predicate, negated, label = block.branch
                target = self.labels[label]
                taken = values.get(predicate) if predicate else 1
                if taken is None and target <= index:
                    raise CostError(f"{self.name}: nothing decides how often the loop at {label} runs")
                skipped = taken is None and self.blocks[following].only_jumps
                if skipped or (taken is not None and bool(taken) != negated):
                    following, repeats = target, target <= index
            index = following


def _counted(code: str) -> dict[str, float]:
    """What one instruction adds to a thread's work."""
    if code.startswith(_FREE):
        return {}
    found: dict[str, float] = {"instructions": 1}
    if code.startswith(("ld.global", "st.global", "ld.shared", "st.shared")):
        found["global_bytes" if ".global" in code else "shared_bytes"] = _bytes(code)
    elif code.startswith(("wmma.load", "wmma.store")):
        found["shared_bytes" if ".shared" in code else "global_bytes"] = _FRAGMENT_BYTES
    elif code.startswith(("wmma.mma", "mma.")):
        found["tensor_ops"] = _FRAGMENT_OPS
    elif _ARITHMETIC.match(code):
        found["arithmetic"] = 1
    elif _SPECIAL.match(code):
        found["special"] = 1
    elif code.startswith("bar"):
        found["barriers"] = 1
    elif code.startswith("shfl"):
        found["shuffles"] = 1
    return found


def _bytes(code: str) -> float:
    bits = _TYPE_BITS.search(code)
    vector = re.search(r"\.v(\d)", code)
    return (int(bits[1]) if bits else 32) / 8 * (int(vector[1]) if vector else 1)


_UNKNOWN = "unknown.value"
_INTEGERS = frozenset({"mov", "add", "sub", "shl", "mul", "setp"})


def _value(text: str, values: dict[str, int | None]) -> int | None:
    if text.startswith("%"):
        return values.get(text)
    try:
        return int(text, 0)
    except ValueError:
        return None


def _evaluate(code: str, sources: list[int | None]) -> int | None:
    """The integer that an instruction gives, None where it depends on the thread."""
    if not sources or any(source is None for source in sources):
        return None
    what, how, *_ = code.split(".")
    bits = int(_TYPE_BITS.search(code)[1]) if what == "setp" and ".u" in code else 0  # type: ignore[index]
    numbers = [source % (1 << bits) if bits else source for source in sources if source is not None]
    a, b = numbers[0], numbers[-1]
    if what == "setp":
        order = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
        return int(order[how]) if how in order else None
    return {"mov": a, "add": a + b, "sub": a - b, "shl": a << (b % 64), "mul": a * b}.get(what)
