"""Configs of decoders: transformers' class of each family; OpenELM's as Apple's own code reads it."""

from __future__ import annotations

import math
from typing import Any

from nas.hugging_face.part import NoClassError, Part
from nas.proxies.hub import hub_package
from search_spaces import LanguageConfig

#: The class of a decoder's config by family; openelm has none in transformers.
_DECODERS = {
    "llama": "LlamaConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "gemma": "GemmaConfig",
    "gemma2": "Gemma2Config",
    "gemma3": "Gemma3TextConfig",
    "phi": "PhiConfig",
    "gpt_neox": "GPTNeoXConfig",
    "stablelm": "StableLmConfig",
    "stablelm2": "StableLmConfig",
    "olmo": "OlmoConfig",
}
#: Families whose class knows no width of a head but that of its share of a token.
_PLAIN_HEADS = ("gpt_neox", "stablelm", "stablelm2")


def decoder_config(language: LanguageConfig) -> Any:
    """The config of a decoder; raises NoClassError where transformers has no class that builds it."""
    transformers, family, windowed = hub_package("transformers"), language.family, ("llama", "gemma2", "gemma3")
    if family not in _DECODERS:
        raise NoClassError(f"transformers has no class for decoders of the family {family}")
    if language.adapter_width or language.first_heads or language.first_feed_forward:
        raise NoClassError("no decoder of transformers has adapters, or layers that grow")
    if language.window and family not in windowed:
        raise NoClassError(f"windows are known of {', '.join(windowed)}, not of {family}")
    inner = language.heads * language.head_width
    if family in _PLAIN_HEADS and inner != language.width:
        raise NoClassError(f"heads of {family} fill a token, but {inner} channels are not {language.width}")
    if family == "gpt_neox" and language.queries_per_kv_head > 1:
        raise NoClassError("every head of gpt_neox has keys of its own")
    fields: dict[str, Any] = {
        "vocab_size": language.vocabulary,
        "hidden_size": language.width,
        "intermediate_size": language.feed_forward,
        "num_hidden_layers": language.depth,
        "num_attention_heads": language.heads,
        "tie_word_embeddings": not language.untied,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if family != "gpt_neox":
        fields["num_key_value_heads"] = language.kv_heads
    if family not in _PLAIN_HEADS:
        fields["head_dim"] = language.head_width
    if family == "stablelm2":
        fields["use_qkv_bias"] = True
    kind = _DECODERS[family]
    if family in ("gemma2", "gemma3"):
        fields["query_pre_attn_scalar"] = language.head_width
        fields["layer_types"] = ["sliding_attention" if layer.window else "full_attention" for layer in language.layers]
        fields |= {"sliding_window": language.window} if language.window else {}
    elif language.window:
        if language.global_every:
            raise NoClassError("every layer of Mistral has the window")
        kind, fields["sliding_window"] = "MistralConfig", language.window
    return getattr(transformers, kind)(**fields)


def decoder_part(language: LanguageConfig) -> Part:
    """The decoder alone; raises NoClassError where nothing builds it."""
    if language.family == "openelm":
        needs = "Apple's code (apple/OpenELM on the hub, trust_remote_code=True)"
        return Part("decoder", openelm_fields(language), language.parameters, needs=needs)
    return Part("decoder", decoder_config(language), language.parameters, "AutoModelForCausalLM")


def openelm_fields(language: LanguageConfig) -> dict[str, Any]:
    """What OpenELM's config.json has: heads and feed-forwards grow as Apple's OpenELMConfig computes it from these.

    Names: apple/OpenELM-270M, configuration_openelm.py.
    """
    if language.adapter_width or language.window:
        raise NoClassError("OpenELM has neither adapters nor windows")
    if language.heads * language.head_width != language.width:
        raise NoClassError("the last block's heads of OpenELM fill a token")
    layers, last = language.layers, language.heads
    first = (language.first_heads or last) / last
    wide = [layer.feed_forward for layer in layers]
    return {
        "architectures": ["OpenELMForCausalLM"],
        "model_type": "openelm",
        "vocab_size": language.vocabulary,
        "max_context_length": 2048,
        "rope_max_length": 4096,
        "rope_freq_constant": 10000,
        "num_transformer_layers": language.depth,
        "model_dim": language.width,
        "head_dim": language.head_width,
        "num_gqa_groups": language.queries_per_kv_head,
        "qkv_multipliers": [first, 1.0],
        "num_query_heads": [layer.kv_heads * language.queries_per_kv_head for layer in layers],
        "num_kv_heads": [layer.kv_heads for layer in layers],
        "ffn_multipliers": [width / language.width for width in wide],
        "ffn_dim_divisor": math.gcd(256, *wide),
        "ffn_with_glu": True,
        "activation_fn_name": "swish",
        "normalization_layer_name": "rms_norm",
        "normalize_qk_projections": True,
        "share_input_output_layers": not language.untied,
        "initializer_range": 0.02,
        "use_cache": True,
    }
