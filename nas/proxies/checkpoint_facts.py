"""What a checkpoint's config says, in the terms of `search_spaces.reference`."""

from __future__ import annotations

from typing import Any, TypeVar

from nas.proxies.data import DataError
from search_spaces.reference import ReferenceDecoder, ReferenceEncoder

_T = TypeVar("_T", ReferenceDecoder, ReferenceEncoder)

#: How far a described model's parameters may be from those of its weights.
PARAMETER_TOLERANCE = 0.01


def decoder_facts(config: Any, name: str) -> ReferenceDecoder:
    """The decoder that transformers' LlamaConfig or Qwen2Config describes; `name` is its source too."""
    heads = config.num_attention_heads
    return ReferenceDecoder(
        name=name,
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=heads,
        kv_heads=config.num_key_value_heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        feed_forward=config.intermediate_size,
        gated=True,
        vocabulary=config.vocab_size,
        tied=config.tie_word_embeddings,
        # Qwen2's code has these biases without a field for them.
        qkv_bias=config.model_type == "qwen2" or bool(getattr(config, "attention_bias", False)),
        norm="rms",
        qk_norm=False,
        source=name,
        basis="datasheet",
    )


def encoder_facts(config: Any, prefix_tokens: int, name: str) -> ReferenceEncoder:
    """The encoder that transformers' SiglipVisionConfig or CLIPVisionConfig describes; `name` is its source too."""
    return ReferenceEncoder(
        name=name,
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        feed_forward=config.intermediate_size,
        gated=False,
        patch_px=config.patch_size,
        image_px=config.image_size,
        prefix_tokens=prefix_tokens,
        source=name,
        basis="datasheet",
    )


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
