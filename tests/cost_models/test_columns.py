"""Kernels as columns: the same numbers as each kernel tells itself, in every precision."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from cost_models.columns import Columns, seconds_and_bases
from cost_models.features import cached_weight_bytes
from cost_models.memory import live
from cost_models.models import plain_model
from hardware_profiles import load
from search_spaces import SPACES, Kernel, Phase, Precision, Workload

WORKLOAD = Workload(prompt_tokens=20, new_tokens=8)


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    rng, found = random.Random(0), dict[Kernel, None]()
    for name in ("tiny", "edge", "assembled"):
        for _ in range(6):
            config = SPACES[name].decode(SPACES[name].sample(rng))
            for phase in Phase:
                for group, _ in config.groups(phase, WORKLOAD, Precision.FP32):
                    found |= dict.fromkeys(group)
    return list(found)


@pytest.mark.parametrize("precision", Precision)
def test_columns_tell_what_kernels_tell(kernels: list[Kernel], precision: Precision) -> None:
    columns = Columns()
    rows = np.array(columns.rows(kernels))
    assert columns.rows(kernels) == rows.tolist()
    assert columns.kernels == kernels
    asked = [replace(kernel, precision=precision) for kernel in kernels]
    for found, expected in (
        (columns.ops(rows), [kernel.ops for kernel in asked]),
        (columns.work(rows), [kernel.ops + kernel.epilogue_ops for kernel in asked]),
        (columns.bytes_moved(rows, precision), [kernel.bytes_moved for kernel in asked]),
        (columns.cached_weight_bytes(rows, precision), [cached_weight_bytes(kernel) for kernel in asked]),
        (columns.live(rows, precision).T, [live([kernel]) for kernel in asked]),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("device", ["raspberry-pi-5", "jetson-orin-nano", "nvidia-l4", "raspberry-pi-5@llama.cpp"])
@pytest.mark.parametrize("precision", Precision)
def test_columns_are_priced_as_kernels_are(kernels: list[Kernel], device: str, precision: Precision) -> None:
    model, columns = plain_model("auto", load(device)), Columns()
    rows = np.array(columns.rows(kernels))[:300]
    asked = [replace(kernel, precision=precision) for kernel in kernels[:300]]
    seconds, bases = seconds_and_bases(model, columns, rows, precision)
    np.testing.assert_allclose(seconds, model.latencies_s(asked), rtol=1e-9)
    assert bases == model.bases(asked)
