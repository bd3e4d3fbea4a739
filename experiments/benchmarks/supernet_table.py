"""The supernet's accuracies of all 18,432 points of `tiny` narrowed to few values of each choice: a table to search in.

    python -m experiments.benchmarks.supernet_table --workers 2

makes what `data/supernet_tiny.npz` lacks; half an hour of two cores. An encoder sees the scenes once for all decoders
behind it, and 160 of the validation scenes judge, so that a point takes 0.1 s.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from concurrent.futures import as_completed
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.promotion import worker_pool
from search_spaces import SPACES, Point, SearchSpace, Value

TABLE = Path(__file__).parent / "data" / "supernet_tiny.npz"
#: What is left of the choices of `tiny`; the first four and last kinds of choice are the ones that cost most to change.
ONLY: dict[str, tuple[Value, ...]] = {
    "image_px": (24, 72),
    "vision_depth": (1, 3, 6),
    "vision_heads": (1, 3),
    "vision_head_width": (16, 32),
    "vision_expansion": (2.0,),
    "projector": ("average_pool", "ldpv2", "mlp", "resampler"),
    "image_tokens": (9, 36),
    "language_depth": (1, 2, 4),
    "language_queries_per_kv_head": (1, 2),
    "language_head_width": (16, 32),
    "language_expansion": (1.0, 3.0),
}
_SCENES = 160
_ENCODER = ("encoder", "image_px", "vision_depth", "vision_heads", "vision_head_width", "vision_expansion")


def narrowed() -> SearchSpace:
    """The space whose points the table holds."""
    return SPACES["tiny"].narrowed(ONLY)


def read() -> NDArray[np.float64]:
    """Accuracy of every point, by the indices of its values; NaN where it is not made yet."""
    shape = tuple(len(values) for values in narrowed().choices.values())
    if not TABLE.is_file():
        return np.full(shape, np.nan)
    with np.load(TABLE, allow_pickle=False) as stored:
        return np.asarray(stored["accuracy"], np.float64).reshape(shape)


def judged(encoder: Point) -> NDArray[np.float64]:
    """Accuracy of every point with this encoder, in a worker; in the order of the space's other choices."""
    import torch

    from nas.proxies.packing import IGNORED, pack, text_logits, to_pixels, turn
    from nas.proxies.supernet_work import SHIPPED, _loaded

    supernet, vocabulary, data = _loaded(SHIPPED / "tiny.safetensors")
    scenes, space = data.validation, narrowed()
    rows = [
        (i, asked[k : k + 8]) for i, asked in enumerate(scenes.questions[:_SCENES]) for k in range(0, len(asked), 8)
    ]
    parts = [rows[start : start + 64] for start in range(0, len(rows), 64)]
    packed = [pack([[turn(q, vocabulary, end=True) for q in asked] for _, asked in part], vocabulary) for part in parts]
    images = [to_pixels(scenes, (i for i, _ in part), int(encoder["image_px"])) for part in parts]
    others = {name: values for name, values in space.choices.items() if name not in _ENCODER}
    seen: dict[int, list[torch.Tensor]] = {}
    found = []
    with torch.no_grad():
        for values in itertools.product(*others.values()):
            point = {**encoder, **dict(zip(others, values, strict=True))}
            network = supernet.slice(space.decode(point).with_vocabulary(len(vocabulary))).eval()
            grid = network.config.vision.grid
            if grid not in seen:
                seen[grid] = [network.encode(each) for each in images]
            right = asked_of = 0
            for features, part, together in zip(seen[grid], parts, packed, strict=True):
                logits = text_logits(network, network.project(features), together)
                wrong = (logits.argmax(-1) != together.targets) & (together.targets != IGNORED)
                for row, (_, asked) in enumerate(part):
                    right += len(asked) - len(set(together.turns[row][wrong[row]].tolist()))
                    asked_of += len(asked)
            found.append(right / asked_of)
    return np.array(found)


def main() -> None:
    """Judge what the table lacks; what is done is stored as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    workers = parser.parse_args().workers
    space, table = narrowed(), read()
    shape = table.shape
    flat = table.reshape(_encoders(space), -1)  # the encoder's choices stand first
    encoders = [
        dict(zip(_ENCODER, values, strict=True)) for values in itertools.product(*(space.choices[n] for n in _ENCODER))
    ]
    with worker_pool(workers) as pool:
        jobs = {pool.submit(judged, encoders[at]): at for at in np.flatnonzero(np.isnan(flat).any(1)).tolist()}
        for done, job in enumerate(as_completed(jobs), 1):
            flat[jobs[job]] = job.result()
            np.savez_compressed(TABLE, accuracy=flat.reshape(shape).astype(np.float32))
            sys.stderr.write(f"{done} of {len(jobs)} encoders\n")


def _encoders(space: SearchSpace) -> int:
    if tuple(space.choices)[: len(_ENCODER)] != _ENCODER:
        raise ValueError(f"the choices of an encoder must come first in the space {space.name}")
    return int(np.prod([len(space.choices[name]) for name in _ENCODER]))


if __name__ == "__main__":
    main()
