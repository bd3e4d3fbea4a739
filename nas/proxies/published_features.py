"""Facts of a model as numbers that a regression weighs, each growing with what is expected to help.

Units are such that a step of one is a large but usual difference between two published models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from nas.proxies.published_facts import Facts, decoders

Array = NDArray[np.float64]

#: What is weighed; `KINDS` below are effects of names.
FEATURES = (
    "decoder size",
    "text score",
    "resolution",
    "image tokens",
    "encoder size",
    "training samples",
    "release",
    "weight bits",
    "trained on VQA",
    "full tuning",
    "tokens kept in the decoder",
    "tokens kept before the decoder",
    "tokens kept, tuned",
    "tokens not resampled",
    "undisclosed",
)
#: Names whose effects are estimated: of few rows each, so drawn towards zero.
KINDS = ("encoder family", "decoder family", "recipe", "projector", "same facts")

# The numbers below are assumed, but where a source is named.
#: More samples than this help no further: web pairs in billions against millions of instructions.
_MOST_SAMPLES = 5e7
#: Taken where a fact is not known: the tables' medians, but of encoders between their two commonest sizes.
_USUAL = {"image_px": 384.0, "image_tokens": 576.0, "encoder_parameters": 4e8, "training_samples": 2e6}
#: Of models whose makers do not tell: the order of what open models of their day used.
_UNDISCLOSED = {"image_px": 1000.0, "image_tokens": 576.0, "encoder_parameters": 4e8, "training_samples": 5e7}
#: The tables' median.
_USUAL_YEAR = 2024.2
#: Bounds of what is estimated of a decoder, parameters and MMLU (guesses reach 25), and its size if neither is known.
_MOST_PARAMETERS, _LEAST_TEXT, _MOST_TEXT, _NO_PARAMETERS = 7e10, 25.0, 85.0, 3e10
#: What weights of so many bits or fewer cost.
_BITS = {8: -0.3, 4: -1.0}
#: Decoder layers over which the tokens of fusion layers are averaged, and the encoder's patch: those of Vicuna-7B and
#: of CLIP-L, from which LLaVA-Mini is made (arXiv:2501.03895).
_LAYERS, _PATCH = 32, 14


def missing(facts: Facts) -> tuple[str, ...]:
    """Facts that are not known and for which something usual is taken."""
    names = ("decoder_parameters", "text_score", *_USUAL, "released")
    return tuple(name for name in names if getattr(facts, name) is None)


def features(facts: Facts) -> Array:
    """The numbers of `FEATURES`."""
    undisclosed = facts.recipe == "undisclosed"
    year = _USUAL_YEAR if facts.released is None else facts.released
    size, text = _decoder(facts, year)
    taken = {
        name: float(getattr(facts, name) or usual) for name, usual in (_UNDISCLOSED if undisclosed else _USUAL).items()
    }
    px, tokens = taken["image_px"], taken["image_tokens"]
    kept = 0.0
    if facts.pruning:
        whole = max(facts.unpruned_tokens or tokens, tokens)
        kept, tokens = -math.log(whole / tokens), whole
    tokens += facts.fusion_layers / _LAYERS * (px / _PATCH) ** 2  # an average over layers
    return np.array(
        [
            math.log(size / 3e9),
            (text - 50) / 15,
            math.log(px / 384) / 0.5,
            math.log(tokens / 576),
            math.log(taken["encoder_parameters"] / 4e8),
            math.log(min(taken["training_samples"], _MOST_SAMPLES) / 1.2e6) / 2,
            (year - _USUAL_YEAR) / 0.5,
            next((cost for bits, cost in sorted(_BITS.items()) if facts.weight_bits <= bits), 0.0),
            0.0 if facts.trained_on_vqa else -1.0,
            -1.0 if facts.low_rank_tuned else 0.0,
            kept if facts.pruning == "decoder" else 0.0,
            kept if facts.pruning == "encoder" else 0.0,
            kept if facts.pruning == "tuned" else 0.0,
            -1.0 if facts.projector in ("qformer", "resampler") else 0.0,
            1.0 if undisclosed else 0.0,
        ]
    )


def names(facts: Facts) -> tuple[str, ...]:
    """The names of `KINDS`."""
    return (facts.encoder_family, facts.decoder_family, facts.recipe, facts.projector, repr(facts))


def matrix(facts: Sequence[Facts]) -> Array:
    """Features of models, a row each."""
    known = {one: features(one) for one in dict.fromkeys(facts)}
    return np.array([known[one] for one in facts])


def _decoder(facts: Facts, year: float) -> tuple[float, float]:
    """Parameters and MMLU in percent; what is not known from what is, by the decoders whose both are."""
    of_text, of_size = _decoder_fits()
    size, text = facts.decoder_parameters, facts.text_score
    if size is None:
        size = _NO_PARAMETERS if text is None else min(math.exp(of_size @ [1.0, text, year]), _MOST_PARAMETERS)
    if text is None:
        text = min(max(float(of_text @ [1.0, math.log(size), year]), _LEAST_TEXT), _MOST_TEXT)
    return size, text


@cache
def _decoder_fits() -> tuple[Array, Array]:
    known = [row for row in decoders() if row["mmlu"] and row["parameters_b"]]
    year = [Facts.of(row["name"]).released or _USUAL_YEAR for row in known]
    size = np.log([float(row["parameters_b"]) * 1e9 for row in known])
    text = np.array([float(row["mmlu"]) for row in known])
    one = np.ones(len(known))
    return (
        np.linalg.lstsq(np.column_stack([one, size, year]), text, rcond=None)[0],
        np.linalg.lstsq(np.column_stack([one, text, year]), size, rcond=None)[0],
    )
