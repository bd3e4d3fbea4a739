"""Which blocks a compiled kernel runs, in order: its control flow walked through, value by value.

All loops of a kernel have constant bounds, so that LLVM IR alone says what runs; nothing is executed. Only the integers
that branches hang on are evaluated; one that is read from memory is taken to be 0. A loop of one block is one step with
a count.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cost_models.errors import CostError

#: More steps than this in one call of a kernel are taken for a loop that never ends.
_MOST_STEPS = 5_000_000
_FUNCTION = re.compile(r"^define .*?@\"?([\w.$]+)\"?\(")
_LABEL = re.compile(r'^"?([\w.$-]+)"?:')
_ASSIGN = re.compile(r"^\s+%\"?([\w.$-]+)\"? = (.*)$")
_PHI_ARM = re.compile(r"\[ ([^,\]]+), %\"?([\w.$-]+)\"? \]")
_BRANCH = re.compile(r"label %\"?([\w.$-]+)\"?")
_NAME = re.compile(r"%\"?([\w.$-]+)\"?")
_INTRINSIC = re.compile(r"call .*?@llvm\.(umin|umax|smin|smax)\.i(\d+)\(i\d+ ([^,]+), i\d+ ([^)]+)\)")
_LENGTH = re.compile(r"@llvm\.experimental\.get\.vector\.length\.i\d+\(i\d+ ([^,]+), i32 (\d+), i1 true\)")
_TYPE = re.compile(r"\b(i\d+)\b")
_FLAGS = frozenset({"nuw", "nsw", "exact", "disjoint", "nneg", "samesign", "trunc", "tail", "fast"})


@dataclass(slots=True)
class Block:
    """One basic block: phis, the other assignments' texts, and where it branches to."""

    name: str
    phis: dict[str, dict[str, str]] = field(default_factory=dict)
    condition: str | None = None
    targets: tuple[str, ...] = ()
    cases: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class Function:
    """One function's control flow: blocks by name, and each assigned value's text."""

    name: str
    blocks: dict[str, Block] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)


def functions(text: str) -> Iterator[Function]:
    """Every function of LLVM IR in text form."""
    function: Function | None = None
    block: Block | None = None
    lines = iter(text.splitlines())
    for line in lines:
        if function is None:
            if found := _FUNCTION.match(line):
                function, block = Function(found[1]), None
            continue
        if line.startswith("}"):
            yield function
            function = None
            continue
        if label := _LABEL.match(line):
            block = Block(label[1])
            function.blocks[block.name] = block
            continue
        if block is None:
            block = Block("entry")
            function.blocks["entry"] = block
        if assigned := _ASSIGN.match(line):
            name, value = assigned[1], assigned[2].split(", !")[0]
            if value.startswith("phi "):
                block.phis[name] = {source: given.strip() for given, source in _PHI_ARM.findall(value)}
                width = _TYPE.search(value)
                function.values[name] = f"phi {width[1] if width else '?'}"
            else:
                function.values[name] = value
            function.where[name] = block.name
        elif line.startswith("  br i1 "):
            block.condition = line[len("  br i1 ") :].split(",")[0]
            block.targets = tuple(_BRANCH.findall(line))
        elif line.startswith("  br "):
            block.targets = tuple(_BRANCH.findall(line))
        elif line.startswith("  switch "):
            block.condition = line.split(",")[0].split()[-1]
            block.targets = (_BRANCH.findall(line)[0],)
            for case in lines:
                if case.lstrip().startswith("]"):
                    break
                block.cases[int(case.split(",")[0].split()[-1])] = _BRANCH.findall(case)[0]


class _Values:
    """Evaluates integers on demand under the present values of phis."""

    def __init__(self, function: Function, vscale: int) -> None:
        self.function, self.vscale = function, vscale
        self.phis: dict[str, int | None] = {}
        self.known: dict[str, int | None] = {}
        self.branch_phis = _branch_phis(function)

    def enter(self, block: Block, source: str) -> None:
        new = {
            name: self.value(arms[source])
            for name, arms in block.phis.items()
            if name in self.branch_phis and source in arms
        }
        self.phis.update(new)
        self.known.clear()

    def value(self, text: str) -> int | None:
        if text == "true":
            return 1
        if text in ("false", "null", "zeroinitializer"):
            return 0
        if text in ("poison", "undef"):
            return None
        if not text.startswith("%"):
            try:
                return int(text)
            except ValueError:
                return None
        name = text[1:].strip('"')
        if name in self.phis:
            return self.phis[name]
        if name not in self.known:
            self.known[name] = None
            written = self.function.values.get(name)
            self.known[name] = None if written is None else self._compute(written)
        return self.known[name]

    def _compute(self, text: str) -> int | None:
        words = text.split()
        code, rest = words[0], [word for word in words[1:] if word not in _FLAGS]
        if code == "call" or text.startswith("tail call"):
            return self._call(text)
        if code == "load" and rest[0].startswith("i"):
            return 0  # ids, and masks that let nothing through
        if code == "freeze":
            return self.value(rest[-1])
        if code in ("trunc", "zext", "sext"):
            value = self.value(rest[1])
            if value is None:
                return None
            bits, to = int(rest[0][1:]), int(rest[-1][1:])
            if code == "zext":
                return value % (1 << bits)
            if code == "sext":
                return _signed(value, bits)
            return value % (1 << to)
        if code == "select":
            choice, yes, no = (part.split()[-1] for part in text[len("select ") :].split(", ")[:3])
            chosen = self.value(choice)
            return None if chosen is None else self.value(yes if chosen % 2 else no)
        if code == "icmp":
            return self._compare(rest[0], rest[1], rest[2].rstrip(","), rest[3])
        if code in _ARITHMETIC and rest[0].startswith("i"):
            a, b = self.value(rest[1].rstrip(",")), self.value(rest[2])
            if a is None or b is None:
                return None
            bits = int(rest[0][1:])
            return _ARITHMETIC[code](_signed(a, bits), _signed(b, bits), bits)
        return None

    def _call(self, text: str) -> int | None:
        found = _INTRINSIC.search(text)
        if "@llvm.vscale." in text:
            return self.vscale
        if length := _LENGTH.search(text):
            left = self.value(length[1])
            return None if left is None else min(left, int(length[2]) * self.vscale)
        if found is None:  # of the runtime: 0 says that it succeeded
            return None if "@llvm." in text else 0
        a, b, bits = self.value(found[3].strip()), self.value(found[4].strip()), int(found[2])
        if a is None or b is None:
            return None
        a, b = (_signed(a, bits), _signed(b, bits)) if found[1][0] == "s" else (a % (1 << bits), b % (1 << bits))
        return min(a, b) if found[1].endswith("min") else max(a, b)

    def _compare(self, how: str, kind: str, left: str, right: str) -> int | None:
        if kind == "ptr":  # allocations succeed
            return int(how == "ne") if right == "null" else None
        a, b = self.value(left), self.value(right)
        if a is None or b is None or not kind.startswith("i"):
            return None
        bits = int(kind[1:])
        a, b = (a % (1 << bits), b % (1 << bits)) if how[0] == "u" else (_signed(a, bits), _signed(b, bits))
        return int({"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}[how[-2:]])


def _signed(value: int, bits: int) -> int:
    value %= 1 << bits
    return value - (1 << bits) if value >> (bits - 1) else value


_ARITHMETIC: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda a, b, bits: a + b,
    "sub": lambda a, b, bits: a - b,
    "mul": lambda a, b, bits: a * b,
    "shl": lambda a, b, bits: a << (b % bits),
    "lshr": lambda a, b, bits: (a % (1 << bits)) >> (b % bits),
    "ashr": lambda a, b, bits: a >> (b % bits),
    "and": lambda a, b, bits: a & b,
    "or": lambda a, b, bits: a | b,
    "xor": lambda a, b, bits: a ^ b,
    "udiv": lambda a, b, bits: (a % (1 << bits)) // (b % (1 << bits)),
    "urem": lambda a, b, bits: (a % (1 << bits)) % (b % (1 << bits)),
    "sdiv": lambda a, b, bits: int(a / b),
    "srem": lambda a, b, bits: a - b * int(a / b),
}


def _branch_phis(function: Function) -> frozenset[str]:
    """Phis that some branch hangs on, through whatever lies between."""
    wanted, seen = [block.condition for block in function.blocks.values() if block.condition], set()
    arms = {name: given for block in function.blocks.values() for name, given in block.phis.items()}
    while wanted:
        for name in _NAME.findall(wanted.pop() or ""):
            if name in seen:
                continue
            seen.add(name)
            wanted.extend(arms[name].values() if name in arms else [function.values.get(name, "")])
    return frozenset(seen & arms.keys())


def walk(function: Function, vscale: int = 1) -> list[tuple[str, int]]:
    """(block, times in a row) from entry to return; raises CostError for a branch that nothing decides.

    `vscale` is how many times 64 bits a scalable vector register holds.
    """
    values, steps, trace = _Values(function, vscale), 0, []
    source, block = "", next(iter(function.blocks.values()))
    lengths: dict[tuple[object, ...], int] = {}
    while True:
        count = 1
        if block.name in block.targets and block.condition:
            key = (block.name, *(values.phis.get(name) for name in block.phis if name in values.branch_phis))
            if key not in lengths:
                lengths[key] = _turns(block, values)
                count = lengths[key]
            else:
                count = lengths[key]
            following = next(target for target in block.targets if target != block.name)
            _leave(block, values, count)
        else:
            following = _next(block, values)
        trace.append((block.name, count))
        steps += 1
        if steps > _MOST_STEPS:
            raise CostError(f"{function.name}: more than {_MOST_STEPS} steps")
        if not following:
            return trace
        source, block = block.name, function.blocks[following]
        values.enter(block, source)


def _next(block: Block, values: _Values) -> str:
    if not block.targets:
        return ""
    if block.condition is None:
        return block.targets[0]
    chosen = values.value(block.condition)
    if chosen is None:
        raise CostError(f"{values.function.name}: nothing decides the branch behind {block.name} ({block.condition})")
    if block.cases or len(block.targets) == 1:
        return block.cases.get(chosen, block.targets[0])
    return block.targets[0 if chosen % 2 else 1]


def _turns(block: Block, values: _Values) -> int:
    """How often a block that branches to itself runs before it is left; leaves the phis as they were."""
    before = dict(values.phis)
    for turn in range(1, _MOST_STEPS):
        if _next(block, values) != block.name:
            values.phis = before
            values.known.clear()
            return turn
        values.enter(block, block.name)
    raise CostError(f"{values.function.name}: {block.name} is never left")


def _leave(block: Block, values: _Values, turns: int) -> None:
    """Set the phis of a self-loop to what they are in its last turn."""
    if turns == 1:
        return
    last: dict[str, int | None] = {}
    for name, arms in block.phis.items():
        if name in values.branch_phis:
            text = values.function.values.get(arms[block.name].lstrip("%").strip('"'), "")
            added = re.search(r"^add .*%\"?" + re.escape(name) + r"\"?, (\S+)$", text)
            start, step = values.phis.get(name), values.value(added[1]) if added else None
            last[name] = None if start is None or step is None else start + (turns - 1) * step
    values.phis.update(last)
    values.known.clear()
