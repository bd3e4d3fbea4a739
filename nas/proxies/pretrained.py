"""Vision-language models of published parts: an image encoder, a projector of this house, a language decoder.

Encoders are SigLIP and CLIP, decoders of Llama's architecture (SmolLM2 and others) and Qwen2.5's, from a name on a hub
or a local folder, by transformers. Weights are read by safetensors only, and no code of a checkpoint runs.

B batch, T image tokens, D decoder width, V vocabulary. A sequence is the prompt's beginning, image tokens, the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.proxies.checkpoint_facts import check_parameters, decoder_facts, encoder_facts
from nas.proxies.data import DataError, Dataset
from nas.proxies.hub import checkpoint_folder, first_line, hub_package, quiet
from nas.proxies.weights import read_tensors
from search_spaces import PROJECTORS, unknown
from search_spaces.reference import ReferenceDecoder, ReferenceEncoder

#: The components, in the order of the data.
PARTS = ("encoder", "projector", "decoder")
#: What stands around image and question; `{image}` and `{question}` occur once each, in this order.
PROMPT = "{image}\nQuestion: {question}\nAnswer:"
_FORMAT = "edge-vlm-nas projector 1"
_SOME_LEFT_OUT = ("text_model.", "text_projection.", "visual_projection.", "logit_", "head.", "embeddings.position_ids")


@dataclass(frozen=True, slots=True)
class _Family:
    """How an encoder is read: its class, the layer whose output is taken, tokens before those of the patches, pixels.

    Pixels enter as (value / 255 - mean) / std where the checkpoint does not say otherwise.
    """

    name: str
    layer: int
    prefix_tokens: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# SigLIP's last layer with its norm, as PaliGemma (arXiv:2407.07726) and nanoVLM; CLIP's last but one without the class
# token, as LLaVA-1.5 (haotian-liu/LLaVA: mm_vision_select_layer -2, mm_vision_select_feature patch).
_SIGLIP = _Family("SiglipVision", -1, 0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP = _Family(
    "CLIPVision", -2, 1, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
)  # openai/CLIP, clip/clip.py
_ENCODERS = {"siglip": _SIGLIP, "siglip_vision_model": _SIGLIP, "clip": _CLIP, "clip_vision_model": _CLIP}
_DECODERS = {"llama": "Llama", "qwen2": "Qwen2"}


class PretrainedEncoder(nn.Module):
    """A published encoder: normalised images (B, 3, image_px, image_px) -> tokens (B, grid * grid, width)."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, family: _Family, mean: Sequence[float], std: Sequence[float], name: str) -> None:
        super().__init__()
        self.model, self.family = model, family
        config = model.config
        self.image_px: int = config.image_size
        self.grid: int = config.image_size // config.patch_size
        self.width: int = config.hidden_size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        counted = sum(p.numel() for p in model.parameters())
        self.facts: ReferenceEncoder = check_parameters(encoder_facts(config, family.prefix_tokens, name), counted)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, image_px, image_px) -> (B, grid * grid, width)."""
        if self.family.layer == -1:
            return self.model(images).last_hidden_state
        hidden = self.model(images, output_hidden_states=True).hidden_states[self.family.layer]
        return hidden[:, self.family.prefix_tokens :]


class PretrainedVLM(nn.Module):
    """Encoder, projector and decoder with the decoder's own tokenizer."""

    def __init__(
        self, encoder: PretrainedEncoder, projector: str, decoder: Any, tokenizer: Any, name: str, prompt: str = PROMPT
    ) -> None:
        super().__init__()
        if projector not in PROJECTORS:
            raise unknown("projector", projector, PROJECTORS)
        kind = PROJECTORS[projector]()
        if kind.levels > 1 or kind.joins_tiles:
            raise DataError(f"{projector} needs more than the last tokens of one picture: choose another projector")
        if not 0 <= prompt.find("{image}") < prompt.find("{question}") or prompt.count("{") != 2:
            raise DataError(f"a prompt holds {{image}} and then {{question}}, once each, but got {prompt!r}")
        counted = sum(p.numel() for p in decoder.parameters())
        self.facts: ReferenceDecoder = check_parameters(decoder_facts(decoder.config, name), counted)
        self.projector_kind, self.prompt, self.tokenizer = projector, prompt, tokenizer
        self.image_tokens = kind.tokens(encoder.grid)
        self.encoder = encoder
        self.projector = kind.build(encoder.grid, encoder.width, decoder.config.hidden_size)
        self.decoder = decoder
        if not isinstance(tokenizer.eos_token_id, int):
            raise DataError(f"{name}: its tokenizer has no token that ends a text")
        if len(tokenizer) > decoder.config.vocab_size:
            raise DataError(f"{name}: {len(tokenizer)} tokens, but embeddings of {decoder.config.vocab_size}")
        self.end: int = tokenizer.eos_token_id
        before, rest = prompt.split("{image}")
        self._between, self._after = rest.split("{question}")
        # A tokenizer that begins every text by a token wants it before the image.
        begins = [i for i in tokenizer("").input_ids if i == tokenizer.bos_token_id and i != self.end][:1]
        self._head = (*begins, *self._ids(before, own=True))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def parameter_counts(self) -> dict[str, int]:
        """Parameters by component; tied ones once."""
        return {part: sum(p.numel() for p in getattr(self, part).parameters()) for part in PARTS}

    def pixels(self, data: Dataset, indices: Sequence[int]) -> Tensor:
        """Images of a dataset as the encoder takes them: (B, 3, image_px, image_px)."""
        images = torch.from_numpy(data.images(indices, self.encoder.image_px)).to(self.device)
        return (images.float() / 255.0 - self.encoder.mean) / self.encoder.std

    def encode(self, images: Tensor) -> Tensor:
        """Vision tokens: (B, 3, image_px, image_px) -> (B, grid * grid, vision width)."""
        return self.encoder(images)

    def project(self, vision_tokens: Tensor) -> Tensor:
        """Image tokens: (B, grid * grid, vision width) -> (B, T, D)."""
        return self.projector(vision_tokens)

    def hidden(self, image_tokens: Tensor, token_ids: Tensor) -> Tensor:
        """Rows of the text after the image, normed: (B, T, D), ids (B, L) -> (B, L, D).

        Rows see those before them only, so whatever fills up a row on the right changes nothing.
        """
        rows = self._rows(image_tokens, token_ids)
        return self.decoder.model(inputs_embeds=rows, use_cache=False).last_hidden_state[:, -token_ids.shape[1] :]

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return self.decoder.lm_head(hidden)

    def forward(self, images: Tensor, token_ids: Tensor) -> Tensor:
        """Logits of every row of the text: images (B, 3, image_px, image_px), ids (B, L) -> (B, L, V)."""
        return self.logits(self.hidden(self.project(self.encode(images)), token_ids))

    def question_ids(self, question: str) -> tuple[int, ...]:
        """Tokens from the image to the answer. Special tokens are read from the prompt, never from the question."""
        return (*self._ids(self._between, own=True), *self._ids(question), *self._ids(self._after, own=True))

    def answer_ids(self, answer: str) -> tuple[int, ...]:
        """Tokens of an answer, with that which ends it."""
        return (*self._ids(f" {answer}"), self.end)

    @torch.no_grad()
    def answer(self, image: Tensor, question: str, most_tokens: int = 32) -> str:
        """The greedy answer to a question about one image (1, 3, image_px, image_px)."""
        self.eval()
        ids = torch.tensor([self.question_ids(question)], device=self.device)
        rows, cache = self._rows(self.project(self.encode(image)), ids), None
        found: list[int] = []
        while len(found) < most_tokens:
            out = self.decoder.model(inputs_embeds=rows, past_key_values=cache, use_cache=True)
            token = self.logits(out.last_hidden_state[:, -1]).argmax(-1)  # (1,)
            if int(token) == self.end:
                break
            found.append(int(token))
            rows, cache = self._embedded(token[None]), out.past_key_values
        return str(self.tokenizer.decode(found, skip_special_tokens=True)).strip()

    def save(self, folder: Path) -> None:
        """Write weights (safetensors), configs and tokenizer; `load_saved` reads them back."""
        from safetensors.torch import save_file

        transformers = hub_package("transformers")
        folder.mkdir(parents=True, exist_ok=True)
        with quiet(transformers):
            self.encoder.model.save_pretrained(folder / "encoder")
            self.decoder.save_pretrained(folder / "decoder")
            self.tokenizer.save_pretrained(folder / "decoder")
        pixels = {"image_mean": self.encoder.mean.flatten().tolist(), "image_std": self.encoder.std.flatten().tolist()}
        (folder / "encoder" / "preprocessor_config.json").write_text(json.dumps(pixels), encoding="utf-8")
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.projector.state_dict().items()}
        about = {"format": _FORMAT, "projector": self.projector_kind, "prompt": self.prompt}
        save_file(weights, folder / "projector.safetensors", about)

    def _ids(self, text: str, *, own: bool = False) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=not own).input_ids
        return [int(i) for i in ids]

    def _embedded(self, token_ids: Tensor) -> Tensor:
        return self.decoder.get_input_embeddings()(token_ids)

    def _rows(self, image_tokens: Tensor, token_ids: Tensor) -> Tensor:
        head = torch.tensor([self._head], dtype=torch.int64, device=self.device).expand(len(image_tokens), -1)
        rows = torch.cat([self._embedded(head), image_tokens, self._embedded(token_ids)], dim=1)
        if rows.shape[1] > self.decoder.config.max_position_embeddings:
            most = self.decoder.config.max_position_embeddings
            raise DataError(f"{self.facts.name}: a sequence of {rows.shape[1]} tokens, at most {most} were trained")
        return rows


def load_encoder(source: str, revision: str | None = None) -> PretrainedEncoder:
    """SigLIP or CLIP from OWNER/NAME with its revision, or from a folder; of a checkpoint with a text tower, the other.

    Raises DataError for another architecture, weights that are not safetensors or lack something.
    """
    folder = checkpoint_folder(source, revision)
    transformers = hub_package("transformers")
    kind = _model_type(folder, _ENCODERS, source)
    family = _ENCODERS[kind]
    with quiet(transformers):
        config = getattr(transformers, f"{family.name}Config").from_pretrained(folder, local_files_only=True)
        if family is _SIGLIP:
            config.vision_use_head = False  # its tokens are taken, not their pooling
        model, unexpected = _load(getattr(transformers, f"{family.name}Model"), folder, config, source)
    if foreign := sorted(key for key in unexpected if not key.removeprefix("vision_model.").startswith(_SOME_LEFT_OUT)):
        raise DataError(f"{source}: weights that a {kind} does not have: {', '.join(foreign[:3])}")
    mean, std = _normalisation(folder, family, source)
    return PretrainedEncoder(model, family, mean, std, source)


def load_decoder(source: str, revision: str | None = None) -> tuple[Any, Any]:
    """A decoder of Llama's or Qwen2's architecture, and its tokenizer; source and errors as `load_encoder`."""
    folder = checkpoint_folder(source, revision)
    transformers = hub_package("transformers")
    kind = _model_type(folder, _DECODERS, source)
    if not (folder / "tokenizer.json").is_file():
        raise DataError(f"{source}: no tokenizer.json; transformers' save_pretrained of its tokenizer writes one")
    with quiet(transformers):
        config = getattr(transformers, f"{_DECODERS[kind]}Config").from_pretrained(folder, local_files_only=True)
        model, unexpected = _load(getattr(transformers, f"{_DECODERS[kind]}ForCausalLM"), folder, config, source)
        try:
            # tokenizer.json as it stands: AutoTokenizer's class for Qwen2 adds a token without an embedding.
            tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # of the tokenizer's own code for whatever its files hold
            raise DataError(f"{source}: no usable tokenizer: {first_line(error)}") from error
    if unexpected:
        raise DataError(f"{source}: weights that a {kind} does not have: {', '.join(sorted(unexpected)[:3])}")
    return model, tokenizer


def load_vlm(
    encoder: str,
    decoder: str,
    projector: str = "mlp",
    *,
    seed: int,
    prompt: str = PROMPT,
    revisions: tuple[str | None, str | None] = (None, None),
) -> PretrainedVLM:
    """A model of two checkpoints with a new projector, drawn from `seed`; `revisions` of encoder and decoder."""
    vision = load_encoder(encoder, revisions[0])
    language, tokenizer = load_decoder(decoder, revisions[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PretrainedVLM(vision, projector, language, tokenizer, decoder, prompt).eval()


def load_saved(folder: Path) -> PretrainedVLM:
    """Read what `PretrainedVLM.save` wrote; anything else is a DataError."""
    path = folder / "projector.safetensors"
    weights, about = read_tensors(path, _FORMAT, needed=("projector", "prompt"))
    encoder, decoder = str(folder / "encoder"), str(folder / "decoder")
    model = load_vlm(encoder, decoder, about["projector"], seed=0, prompt=about["prompt"])
    try:
        model.projector.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(f"{path}: not this projector's weights: {first_line(error)}") from error
    return model


def _json(path: Path, source: str) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{source}: {path.name} cannot be read: {error}") from error
    if not isinstance(read, dict):
        raise DataError(f"{source}: {path.name} is a JSON object, but got {type(read).__name__}")
    return read


def _model_type(folder: Path, known: dict[str, Any], source: str) -> str:
    kind = _json(folder / "config.json", source).get("model_type")
    if kind not in known:
        raise DataError(f"{source}: {unknown('model_type', kind, known)}")
    return str(kind)


def _load(model: Any, folder: Path, config: Any, source: str) -> tuple[Any, set[str]]:
    # The model and the names of weights that it has no use for.
    try:
        loaded, info = model.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # safetensors', torch's or transformers' own, for whatever the files hold
        raise DataError(f"{source}: cannot be loaded: {first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):  # transformers would draw them at random
        raise DataError(f"{source}: weights are missing: {', '.join(missing[:3])}")
    return loaded.eval(), set(info["unexpected_keys"])


def _normalisation(folder: Path, family: _Family, source: str) -> tuple[Sequence[float], Sequence[float]]:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return family.mean, family.std
    told = _json(path, source)
    found = [told.get("image_mean", list(family.mean)), told.get("image_std", list(family.std))]
    for values in found:
        if not (isinstance(values, list) and len(values) == 3 and all(isinstance(v, int | float) for v in values)):
            raise DataError(f"{source}: {path.name}: image_mean and image_std are three numbers, but got {values!r}")
    return found[0], found[1]
