"""The proxy `published`: the score that published results lead to expect of a config, a mean of benchmarks.

A config says nothing of training. Every one is taken to be trained alike, with LLaVA-1.5's 1.2 million samples in 2025
(assumed); its decoder to be pretrained as published ones of its size are, or as the published one that it is. No table
has an encoder below 300 million parameters; a smaller one is taken to cost HALVING points each time it is halved. Nor
has any an encoder, projector or KV cache of fewer bits: ROUNDED says what these are taken to cost. Learned rows of the
prompt and adapters are taken to gain nothing: no table says what.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import cache, lru_cache

from nas.proxies.published import BENCHMARKS, PublishedModel, Score
from nas.proxies.published_facts import Facts, decoders
from search_spaces import Phase, Precision, VLMConfig
from search_spaces.language import LanguageConfig
from search_spaces.projectors import TokenMerging
from search_spaces.reference import plain, reference_decoders
from search_spaces.vision import VisionTransformer

#: LLaVA-1.5's two stages: 558,000 and 665,000 samples (arXiv:2310.03744), and a year like the newest tables'.
SAMPLES, YEAR = 1.2e6, 2025.0
#: Percent of a benchmark that halving the encoder costs, where it is smaller than any in the tables, and as much again
#: either way that nobody knows. Assumed: with CLIP's B/16 instead of its L/14, two halvings, a model loses about three.
HALVING = 1.5
#: Percent of a benchmark that rounding a part to so many bits costs, and as much again either way. Assumed: weight-only
#: rounding to 8 bits is nearly free in all parts, to 4 bits it costs some tenths of a point to a point; of a decoder's
#: weights the tables tell.
ROUNDED = {
    "encoder": {16: 0.0, 8: 0.1, 4: 0.6},
    "projector": {16: 0.0, 8: 0.05, 4: 0.2},
    "kv_cache": {16: 0.0, 8: 0.05, 4: 0.5},
}
#: Families of encoders, as the tables call them, by how a vision transformer is written.
_ENCODERS = {
    "plain": "siglip",
    "clip": "clip",
    "dinov2": "dinov2",
    "intern": "internvit",
    "eva": "eva",
    "eva02": "eva",
    "aimv2": "aimv2",
    "qwen2_vl": "qwen-vit",
}
#: Kinds of projectors, as the tables call them; pooling and merging end in the mlp of their score.
_PROJECTORS = {
    "linear": "linear",
    "pixel_shuffle": "pixel-shuffle",
    "shuffled_mlp": "pixel-shuffle",
    "patch_merger": "pixel-shuffle",
    "ldp": "ldp",
    "ldpv2": "ldp",
    "xdp": "ldp",
    "resampler": "resampler",
    "cross_attention": "resampler",
    "q_former": "qformer",
    "c_abstractor": "c-abstractor",
    "token_packer": "tokenpacker",
}
_BITS = {Precision.FP32: 16, Precision.FP16: 16, Precision.INT8: 8, Precision.W8A8: 8, Precision.INT4: 4}


def facts_of(config: VLMConfig) -> Facts:
    """What the regression weighs of a config."""
    vision, language = config.vision, config.language
    family = _ENCODERS.get(vision.style, "") if isinstance(vision, VisionTransformer) else vision.family
    found = Facts(
        encoder_family=family,
        encoder_parameters=float(vision.parameters - vision.idle_parameters),
        image_px=vision.image_px * math.sqrt(max(config.tiles - 1, 1)),  # one tile is an overview
        image_tokens=float(config.image_tokens),
        projector=_PROJECTORS.get(config.projector.kind, "mlp"),
        decoder_parameters=float(_unadapted(language).parameters),
        training_samples=SAMPLES,
        released=YEAR,
        weight_bits=_BITS[config.precision_of(Phase.DECODE)],
    )
    row = _published(language)
    if row is not None:
        score = float(row["mmlu"]) if row["mmlu"] else None
        found = dataclasses.replace(found, decoder=row["name"], decoder_family=row["family"], text_score=score)
    if isinstance(config.projector, TokenMerging):
        found = dataclasses.replace(found, pruning="encoder", unpruned_tokens=float(vision.tokens * config.tiles))
    return found


@lru_cache(maxsize=1 << 12)
def _unadapted(language: LanguageConfig) -> LanguageConfig:
    """A decoder without adapters, which make no larger model of it."""
    return dataclasses.replace(language, adapter_width=0) if language.adapter_width else language


@cache
def _by_shape() -> Mapping[LanguageConfig, list[tuple[int, Mapping[str, str]]]]:
    """Vocabularies and rows of the published decoders of a shape."""
    rows = {plain(row["name"]): row for row in decoders()}
    found: dict[LanguageConfig, list[tuple[int, Mapping[str, str]]]] = {}
    for name, decoder in reference_decoders().items():
        if plain(name) in rows:
            own = (decoder.config.vocabulary, rows[plain(name)])
            found.setdefault(_shape(decoder.config), []).append(own)
    return found


def _shape(language: LanguageConfig) -> LanguageConfig:
    """A decoder without its vocabulary, which vision-language models extend."""
    return dataclasses.replace(language, vocabulary=1, untied=False, adapter_width=0)


@lru_cache(maxsize=1 << 12)
def _published(language: LanguageConfig) -> Mapping[str, str] | None:
    """The decoder of that shape with the nearest vocabulary, the best of equals (Qwen2 and Qwen2.5 have the same)."""
    known = _by_shape().get(_shape(language), [])
    ranked = sorted(known, key=lambda one: (abs(one[0] - language.vocabulary), -float(one[1]["mmlu"] or 0)))
    return ranked[0][1] if ranked else None


@lru_cache(maxsize=1 << 14)
def _scores(facts: Facts) -> Mapping[str, Score]:
    return PublishedModel.fitted().predict(facts)


def scores(config: VLMConfig) -> Mapping[str, Score]:
    """A score by benchmark, each with its interval."""
    facts = facts_of(config)
    lost = _lost(facts) + rounding(config)
    return {name: score if name == "MME" else _moved(score, -lost, lost) for name, score in _scores(facts).items()}


@lru_cache(maxsize=1 << 14)
def _lost(facts: Facts) -> float:
    """Percent that an encoder smaller than any in the tables is taken to cost."""
    known = [size for row in PublishedModel.fitted().rows if (size := row.facts.encoder_parameters)]
    return HALVING * max(math.log2(min(known) / (facts.encoder_parameters or min(known))), 0.0)


def rounding(config: VLMConfig) -> float:
    """Percent that precisions of encoder, projector and KV cache are taken to cost; the decoder's is among facts."""
    cached = config.kv_precision or Precision.FP16
    found = {
        "encoder": config.precision_of(Phase.VISION),
        "projector": config.precision_of(Phase.PROJECTOR),
        "kv_cache": cached,
    }
    return sum(ROUNDED[part][_BITS[precision]] for part, precision in found.items())


def _moved(score: Score, by: float, either_way: float) -> Score:
    """A score moved by so much, its interval wider for what is unknown either way."""
    value = score.value + by
    return Score(
        value,
        value - math.hypot(score.value - score.low, either_way),
        value + math.hypot(score.high - score.value, either_way),
    )


def outside(config: VLMConfig) -> list[str]:
    """Why a config's scores are extrapolated; empty where the tables cover it."""
    found = PublishedModel.fitted().outside(facts_of(config))
    if cost := rounding(config):
        found.append(f"precisions beside the decoder's: no table has them, {cost:.2g} points are taken off (assumed)")
    for count, what in ((config.soft_tokens, "soft tokens"), (config.language.adapter_width, "adapters")):
        if count:
            found.append(f"{what}: no table says what they gain, none is taken (assumed)")
    return found


def mean_score(config: VLMConfig) -> Score:
    """The mean over the benchmarks in percent, as a share, and the mean of their intervals' ends."""
    found = [score for name, score in scores(config).items() if name != "MME"]

    def mean(ends: list[float]) -> float:
        return sum(ends) / len(ends) / 100

    return Score(mean([s.value for s in found]), mean([s.low for s in found]), mean([s.high for s in found]))


def lead(config: VLMConfig, other: VLMConfig) -> Score:
    """By how much `mean_score` of the first is expected above the second's, with an interval; nine in ten."""
    names = tuple(name for name in BENCHMARKS if name != "MME")
    first, second = facts_of(config), facts_of(other)
    behind = _lost(second) + rounding(other) - _lost(first) - rounding(config)
    found = _moved(PublishedModel.fitted().lead(first, second, names), behind, behind)
    return Score(found.value / 100, found.low / 100, found.high / 100)


def published(config: VLMConfig, seed: int) -> float:
    """The cheap proxy: `mean_score`. Higher is better; no seed changes it."""
    del seed
    return mean_score(config).value
