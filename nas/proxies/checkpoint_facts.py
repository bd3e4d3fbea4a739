"""What a checkpoint's config says, in the terms of `search_spaces.reference`."""

from __future__ import annotations

from typing import Any, TypeVar

from nas.proxies.data import DataError
from search_spaces import LanguageConfig
from search_spaces.reference import ReferenceDecoder, ReferenceEncoder
from search_spaces.vision import VisionTransformer

_T = TypeVar("_T", ReferenceDecoder, ReferenceEncoder)

#: How far a described model's parameters may be from those of its weights.
PARAMETER_TOLERANCE = 0.01


def decoder_facts(config: Any, name: str) -> ReferenceDecoder:
    """The decoder that transformers' LlamaConfig or Qwen2Config describes; `name` is its source too."""
    heads, width = config.num_attention_heads, config.hidden_size
    head_width = getattr(config, "head_dim", None) or width // heads
    # Qwen2's code has biases of Q, K and V without a field for them
    biased = config.model_type == "qwen2" or bool(getattr(config, "attention_bias", False))
    described = LanguageConfig(
        depth=config.num_hidden_layers,
        kv_heads=config.num_key_value_heads,
        queries_per_kv_head=heads // config.num_key_value_heads,
        head_width=head_width,
        feed_forward=config.intermediate_size,
        vocabulary=config.vocab_size,
        family="qwen2" if biased else "llama",
        token_width=0 if heads * head_width == width else width,
        untied=not config.tie_word_embeddings,
    )
    return ReferenceDecoder(name=name, config=described, source=name, basis="datasheet")


def encoder_facts(config: Any, prefix_tokens: int, name: str) -> ReferenceEncoder:
    """The encoder that transformers' SiglipVisionConfig or CLIPVisionConfig describes; `name` is its source too."""
    described = VisionTransformer(
        image_px=config.image_size,
        grid=config.image_size // config.patch_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        head_width=config.hidden_size // config.num_attention_heads,
        feed_forward=config.intermediate_size,
        style="clip" if prefix_tokens else "plain",
    )
    return ReferenceEncoder(name=name, config=described, source=name, basis="datasheet")


def check_parameters(facts: _T, counted: int) -> _T:
    """`facts`, if their parameters are those `counted` in the weights; a DataError where the config tells too little.

    The price of a model is that of its facts: options that they cannot express would go unpriced.
    """
    if abs(facts.parameters - counted) > PARAMETER_TOLERANCE * counted:
        raise DataError(
            f"{facts.name}: its config means {facts.parameters} parameters, its weights have {counted}: "
            "it has parts that are not priced"
        )
    return facts
