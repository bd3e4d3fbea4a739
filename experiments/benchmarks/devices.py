"""The cost models on devices that nobody here has touched: published latencies on a Raspberry Pi 4, prints JSON.

Nothing is fitted on these latencies but one factor for MAPE, the one by which measured and predicted seconds differ in
the geometric mean: both were measured in other runtimes than the product's. Ranks need no factor.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from cost_models.models import COST_MODELS, CostModel, cost_model
from experiments.benchmarks.networks import fbnet, hat
from hardware_profiles import load
from search_spaces import Kernel
from search_spaces.kernels import MATRIX_KINDS

DEVICE = "raspberry-pi-4"
Networks = Sequence[Sequence[tuple[Kernel, int]]]


def priced(networks: Networks, model: CostModel) -> NDArray[np.float64]:
    """Seconds of each network: (len(networks),); every kernel is priced once."""
    kernels = list(dict.fromkeys(kernel for network in networks for kernel, _ in network))
    seconds = dict(zip(kernels, model.latencies_s(kernels).tolist(), strict=True))
    return np.array([sum(seconds[kernel] * count for kernel, count in network) for network in networks])


def matrix_ops(networks: Networks) -> NDArray[np.float64]:
    """Operations of the matrix products of each network, what FLOPs usually mean."""
    counted = ([kernel.ops * count for kernel, count in network if kernel.kind in MATRIX_KINDS] for network in networks)
    return np.array([float(sum(ops)) for ops in counted])


def agreement(predicted: NDArray[np.float64], measured_s: NDArray[np.float64]) -> dict[str, float]:
    """Spearman's rank correlation; the factor from predicted to measured, and MAPE after it."""
    factor = float(np.exp(np.mean(np.log(measured_s / predicted))))
    return {
        "spearman": float(spearmanr(predicted, measured_s).statistic),
        "mape": float(np.mean(np.abs(predicted * factor / measured_s - 1.0))),
        "measured_over_predicted": factor,
    }


def told(networks: Networks, measured_ms: Iterable[float], model: CostModel) -> dict[str, object]:
    """The cost model beside FLOPs alone."""
    measured_s = np.array(list(measured_ms)) * 1e-3
    flops = agreement(matrix_ops(networks), measured_s)
    del flops["measured_over_predicted"]  # a unit, not an error
    return {"networks": len(networks), "cost_model": agreement(priced(networks, model), measured_s), "flops": flops}


def main() -> None:
    """Print Spearman, MAPE and the factor for each part."""
    parser = argparse.ArgumentParser(description="Cost models against published latencies on a Raspberry Pi 4.")
    parser.add_argument("--cost-model", default="auto", choices=[*COST_MODELS, "auto"])
    model = cost_model(parser.parse_args().cost_model, load(DEVICE))
    translators, classifiers = hat.read(), fbnet.read()
    encoders = [list(measured.encoder.kernels()) for measured in translators]
    decoders = [list(measured.decoder.kernels()) for measured in translators]
    whole = [encoder + decoder for encoder, decoder in zip(encoders, decoders, strict=True)]
    pictures = [list(measured.network.kernels()) for measured in classifiers]
    figures = {
        "device": DEVICE,
        "cost_model": type(model).__name__,
        "hat_encoder": told(encoders, (measured.encoder_ms for measured in translators), model),
        "hat_decoder": told(decoders, (measured.decoder_ms for measured in translators), model),
        "hat_total": told(whole, (measured.encoder_ms + measured.decoder_ms for measured in translators), model),
        "fbnet": told(pictures, (measured.latency_ms for measured in classifiers), model),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
