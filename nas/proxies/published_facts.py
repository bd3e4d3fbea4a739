"""What is known of a published vision-language model's architecture and recipe, read from the names papers give it.

Three tables stand beside this file: language decoders, image encoders, and models that are made of them, each row with
a pattern for its name, and its source. What the text of a row states itself, such as `Res.=672` or `LLM=Phi-2`, goes
before what the tables say of the model.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from nas.errors import NasError
from search_spaces import unknown

DATA = Path(__file__).parent / "published_data"

#: How image tokens were dropped after training: while the decoder runs, before it, or before it with some tuning.
PRUNINGS = ("", "decoder", "encoder", "tuned")


@dataclass(frozen=True, slots=True)
class Facts:
    """A full-size vision-language model as facts; None is "not known". `described` reads them from a name.

    `decoder_parameters` and `encoder_parameters` are counts, `text_score` is the decoder's MMLU in percent,
    `training_samples` image-text samples of all stages, `released` a year with fraction, `image_px` the largest side
    of what the encoder sees of an image (tiles together), `image_tokens` what the decoder gets of it.
    """

    decoder: str = ""
    decoder_family: str = ""
    decoder_parameters: float | None = None
    text_score: float | None = None
    encoder: str = ""
    encoder_family: str = ""
    encoder_parameters: float | None = None
    image_px: float | None = None
    image_tokens: float | None = None
    projector: str = ""
    recipe: str = ""
    training_samples: float | None = None
    released: float | None = None
    trained_on_vqa: bool = True
    low_rank_tuned: bool = False
    weight_bits: int = 16
    pruning: str = ""
    unpruned_tokens: float | None = None
    fusion_layers: int = 0

    def __post_init__(self) -> None:
        """Refuse what no model has."""
        for name in ("decoder_parameters", "encoder_parameters", "image_px", "image_tokens", "training_samples"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise NasError(f"{name} must be more than 0, or None where it is not known, but is {value}")
        if self.text_score is not None and not 1 < self.text_score < 100:
            raise NasError(f"text_score is MMLU in percent, between 1 and 100, but is {self.text_score}")
        if not 2 <= self.weight_bits <= 32:
            raise NasError(f"weight_bits must be 2 to 32, but is {self.weight_bits}")
        if self.pruning not in PRUNINGS:
            raise NasError(f"pruning must be one of {', '.join(map(repr, PRUNINGS))}, but is {self.pruning!r}")

    @classmethod
    def of(cls, decoder: str = "", encoder: str = "", **more: object) -> Facts:
        """From names of a decoder and an encoder, such as `qwen2.5-0.5b` and `siglip-b`, and any other facts."""
        found = cls()
        if decoder:
            found = _with_decoder(found, _known("decoder", decoder, decoders()))
        if encoder:
            found = _with_encoder(found, _known("encoder", encoder, encoders()))
        return replace(found, **more)  # type: ignore[arg-type]


def described(model: str, config: str = "", group: str = "") -> Facts:
    """Facts of a row of a paper's table, from the model's name, the row's `key=value; ...` and the table's name.

    What none of the tables knows is left None: `PublishedModel.outside` tells.
    """
    name, stated = _plain(model), _stated(config)
    said = " ; ".join([name, *(_plain(stated[key]) for key in ("llm", "version") if key in stated)])
    pruning = next((kind for pattern, kind in _PRUNED if re.search(pattern, name)), "")
    free = "" if "=" in config else _plain(config)
    about = "" if "compare" in group else _plain(group)
    found, row = Facts(), _first(said, models())
    of_group = _first(about, models())
    if row is None or (pruning and of_group is not None and of_group["recipe"].startswith("llava-next")):
        row = of_group
    if row is not None:
        found = _with_model(found, row, _size(f"{name} {_plain(stated.get('size', ''))} {about}"))
    if (row := _first(said, decoders()) or _first(free, decoders()) or _of_family(said, found)) is not None:
        found = _with_decoder(found, row)
    elif found.decoder_parameters is None and found.recipe != "undisclosed" and (size := _size(said)) is not None:
        found = replace(found, decoder_parameters=size)
    if at := re.search(_ENDS_IN_PX, name):
        found = _at_px(found, float(at[1]))
    named = re.search(_ENCODER_IN_NAME, name)
    found = _encoder_stated(found, {"encoder": named[0], **stated} if named else stated, config)
    found = _recipe_stated(found, name, stated, config.lower())
    return _tokens_stated(found, stated, pruning)


@cache
def decoders() -> tuple[Mapping[str, str], ...]:
    """Language decoders: parameters, MMLU, date, pattern, source."""
    return _table("decoders.csv")


@cache
def encoders() -> tuple[Mapping[str, str], ...]:
    """Image encoders: parameters, native resolution, stride, pattern, source."""
    return _table("encoders.csv")


@cache
def models() -> tuple[Mapping[str, str], ...]:
    """Published vision-language models: parts, resolution, tokens, samples, date, pattern, source."""
    return _table("models.csv")


# What the text of a row may state, by its key: letters only, without what stands in brackets.
_KEYS = {
    "llm": ("llm", "languagemodel", "lm", "llmbackbone", "languagedecoder", "decoder", "backbone", "basellm"),
    "version": ("version", "method", "base"),
    "size": ("size", "params", "parameters", "modelsize"),
    "encoder": ("visionencoder", "visualencoder", "imageencoder", "encoder", "vt", "ve", "visiontower", "vit"),
    "px": ("res", "resolution", "imagesize", "inputres", "inputresolution", "imageresolution", "imgsize", "imageres"),
    "tokens": ("tokens", "visualtokens", "vistok", "visiontokens", "imagetokens", "numtokens", "tok", "vtokens"),
    "recipe": ("recipe", "schedule", "tuning"),
    "bits": ("quantization", "quantisation", "prec", "precision", "bits", "weights"),
    "fusion": ("prefusion",),
    "released": ("released", "release", "date"),
    "projector": ("projector", "connector", "adapter"),
    "data": ("data", "samples", "trainingdata"),
}
_KEY_OF = {key: name for name, keys in _KEYS.items() for key in keys}
_PROJECTORS = (
    (r"q-?former", "qformer"),
    (r"c-?abs", "c-abstractor"),
    (r"d-?abs", "d-abstractor"),
    (r"resampl|perceiver", "resampler"),
    (r"ldp|xdp", "ldp"),
    (r"token-?packer", "tokenpacker"),
    (r"shuffle|merg", "pixel-shuffle"),
    (r"mlp", "mlp"),
    (r"linear", "linear"),
)
_PRUNED = (
    (r"vision-?zip.*(ft|‡|tuned)", "tuned"),
    (r"vision-?zip|pru-?merge", "encoder"),
    (r"fast-?v\b|sparse-?vlm|pyramid-?drop|tome\b", "decoder"),
)
_FOUR_BITS = r"awq|int-?4|w4|4-?bit|q4"
_EIGHT_BITS = r"int-?8|w8|8-?bit|q8|quantized"
_SAMPLES = r"(?<![\w-])(\d+(?:\.\d+)?)(k|m)\b"
_ENDS_IN_PX = r"-(224|336|384|448|512|672|896|1024)(?:px)?$"
_ENCODER_IN_NAME = r"(?<![a-z0-9])(siglip|clip|eva|dinov2|internvit|fastvithd|vitamin)(?![a-z]).*"
_DATE = r"(20\d\d)-(\d\d)"


def _plain(text: str) -> str:
    return re.sub(r"[\s_/]+", "-", re.sub(r"(?<=\d)_(?=\d)", ".", text.strip().lower()))


def _stated(config: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in config.split(";"):
        key, equals, value = part.partition("=")
        name = _KEY_OF.get(re.sub(r"\(.*?\)|[^a-z]", "", key.lower()))
        if equals and name and value.strip() not in ("", "-", "UNK"):
            found.setdefault(name, value.strip())
    return found


def _first(text: str, rows: tuple[Mapping[str, str], ...]) -> Mapping[str, str] | None:
    return next((row for row in rows if text and re.search(row["pattern"], text)), None)


def _size(text: str) -> float | None:
    sizes = re.findall(r"(?<![\w.])(?:v-)?(\d+(?:\.\d+)?)(b|m)(?![a-z0-9])", re.sub(r"[-;]", " ", text))
    return float(sizes[0][0]) * (1e9 if sizes[0][1] == "b" else 1e6) if sizes else None


def _of_family(text: str, found: Facts) -> Mapping[str, str] | None:
    """The decoder of a family that is named without its size, by the size of the whole model."""
    size = _size(text) or found.decoder_parameters
    for family in sorted({row["family"] for row in decoders()}, key=len, reverse=True):
        own = [row for row in decoders() if row["family"] == family and row["parameters_b"]]
        named = re.search(rf"(?<![a-z0-9.]){re.escape(family)}(?![a-z0-9.]|-?(vl|v\b|llama))", text)
        if named and own and family != found.decoder_family:
            return min(own, key=lambda one: abs(math.log(float(one["parameters_b"]) * 1e9 / (size or 3e9))))
    return None


def _with_model(found: Facts, row: Mapping[str, str], size: float | None) -> Facts:
    if row["encoder"]:
        found = _with_encoder(found, _known("encoder", row["encoder"], encoders()))
    if row["decoder"]:
        known = [_known("decoder", name, decoders()) for name in row["decoder"].split("|")]
        if size is not None and len(known) > 1:
            known.sort(key=lambda one: abs(math.log(float(one["parameters_b"]) * 1e9 / size)))
        found = _with_decoder(found, known[0])
    elif size is not None:
        found = replace(found, decoder_parameters=size)
    samples = _number(row["samples_m"])
    return replace(
        found,
        image_px=_number(row["image_px"]),
        image_tokens=_number(row["image_tokens"]),
        projector=row["projector"],
        recipe=row["recipe"],
        training_samples=None if samples is None else samples * 1e6,
        released=_year(row["released"]),
        trained_on_vqa=row["vqa"] != "0",
        fusion_layers=4 if row["recipe"] == "llava-mini" else 0,
    )


def _with_decoder(found: Facts, row: Mapping[str, str]) -> Facts:
    parameters = _number(row["parameters_b"])
    return replace(
        found,
        decoder=row["name"],
        decoder_family=row["family"],
        decoder_parameters=None if parameters is None else parameters * 1e9,
        text_score=_number(row["mmlu"]),
        released=found.released if found.released is not None else _year(row["released"]),
    )


def _with_encoder(found: Facts, row: Mapping[str, str]) -> Facts:
    px = float(row["image_px"])
    return replace(
        found,
        encoder=row["name"],
        encoder_family=row["family"],
        encoder_parameters=float(row["parameters_m"]) * 1e6,
        image_px=px,
        image_tokens=float((px // float(row["stride"])) ** 2),
    )


def _encoder_stated(found: Facts, stated: Mapping[str, str], config: str) -> Facts:
    """The encoder, and the resolution with the tokens that follow from it, as far as the row states them."""
    text = _plain(stated.get("encoder", "" if "=" in config else config.split(";")[0].split("+")[0]))
    row = _first(text, encoders())
    if row is not None:
        if row["name"] != found.encoder:
            whole = found.projector in ("", "mlp", "linear")
            before, found = found.image_tokens, _with_encoder(found, row)
            found = replace(
                found, projector=found.projector or "mlp", image_tokens=found.image_tokens if whole else before
            )
        at = re.search(r"-(\d{3,4})(?:px)?$", text)
        found = _at_px(found, float(at[1])) if at else found
    px = re.search(r"(\d{3,4})", stated.get("px", "")) or re.search(r"\b(\d{3,4})px", config)
    if px and not (found.encoder_family == "mixture" and found.image_px and float(px[1]) < found.image_px):
        found = _at_px(found, float(px[1]))
    return found


def _at_px(found: Facts, px: float) -> Facts:
    if found.image_px is None or found.image_tokens is None or found.image_px == px:
        return replace(found, image_px=px)
    if found.projector in ("mlp", "linear"):
        stride = next((float(row["stride"]) for row in encoders() if row["name"] == found.encoder), 14.0)
        return replace(found, image_px=px, image_tokens=float((px // stride) ** 2))
    return replace(found, image_px=px)


def _recipe_stated(found: Facts, name: str, stated: Mapping[str, str], config: str) -> Facts:
    recipe = stated.get("recipe", "")
    if kind := next(
        (kind for pattern, kind in _PROJECTORS if re.search(pattern, stated.get("projector", "").lower())), ""
    ):
        found = replace(found, projector=kind)
    if "share" in recipe:
        found = replace(found, training_samples=1.9e6)
    elif recipe.startswith("base"):
        found = replace(found, training_samples=1.2e6)
    elif counts := re.findall(_SAMPLES, stated.get("data", "").lower() or re.sub(r"[\w# .()+]+=[^;]*;?", "", config)):
        found = replace(found, training_samples=sum(float(n) * (1e6 if unit == "m" else 1e3) for n, unit in counts))
    if "lora" in f"{recipe} {name}":
        found = replace(found, low_rank_tuned=True)
    width = " ".join([name, _plain(stated.get("bits", "")), "" if "=" in config else config])
    if re.search(_FOUR_BITS, width):
        found = replace(found, weight_bits=4)
    elif re.search(_EIGHT_BITS, width):
        found = replace(found, weight_bits=8)
    if date := re.search(_DATE, f"{name} {stated.get('released', '')}"):
        found = replace(found, released=_year(f"{date[1]}-{date[2]}"))
    if (layers := stated.get("fusion", "")).isdigit():
        found = replace(found, fusion_layers=int(layers))
    return found


def _tokens_stated(found: Facts, stated: Mapping[str, str], pruning: str) -> Facts:
    tokens = re.search(r"\d+", stated.get("tokens", ""))
    if tokens is None:
        return found
    whole = found.image_tokens if pruning else None
    return replace(found, image_tokens=float(tokens[0]), pruning=pruning, unpruned_tokens=whole)


def _known(kind: str, name: str, rows: tuple[Mapping[str, str], ...]) -> Mapping[str, str]:
    known = {row["name"]: row for row in rows}
    if name not in known:
        raise unknown(kind, name, known)
    return known[name]


def _table(name: str) -> tuple[Mapping[str, str], ...]:
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def _number(text: str) -> float | None:
    return float(text) if text else None


def _year(text: str) -> float | None:
    if not text:
        return None
    year, month = text.split("-")
    return int(year) + (int(month) - 0.5) / 12
