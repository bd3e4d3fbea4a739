"""Configs of models that choose among labels: CLIP as a whole, and text encoders alone."""

from __future__ import annotations

from typing import Any

from nas.hugging_face.encoders import encoder_config
from nas.hugging_face.part import NoClassError, Part
from nas.proxies.hub import hub_package
from search_spaces.classifier import ClassifierConfig
from search_spaces.heads import Matching
from search_spaces.text import TextEncoder
from search_spaces.vision import VisionTransformer


def text_part(text: TextEncoder) -> Part:
    """The text encoder alone."""
    build = "CLIPTextModelWithProjection" if text.written.projected else "AutoModel"
    return Part("text", text_config(text), text.parameters, build)


def text_config(text: TextEncoder) -> Any:
    """The config of a text encoder."""
    transformers = hub_package("transformers")
    fields = {
        "hidden_size": text.width,
        "num_hidden_layers": text.depth,
        "num_attention_heads": text.heads,
        "intermediate_size": text.feed_forward,
        "vocab_size": text.vocabulary,
        "max_position_embeddings": text.context,
    }
    if text.written.projected:
        return transformers.CLIPTextConfig(projection_dim=text.projection, **fields)
    return transformers.BertConfig(type_vocab_size=text.written.segments, **fields)


def clip_part(config: ClassifierConfig) -> Part:
    """All of a plain CLIP; raises NoClassError for any other."""
    vision, head, text = config.vision, config.head, config.text
    if not isinstance(head, Matching) or text is None:
        raise NoClassError("CLIP compares features of an image with those of texts that it reads itself")
    if not isinstance(vision, VisionTransformer) or vision.style != "clip" or vision.skipped or vision.pooled:
        raise NoClassError("CLIP reads all of an encoder clip")
    if head.pooled != "first" or head.bias or head.norm or head.prompts or head.adapter:
        raise NoClassError("CLIP projects the first token by a matrix alone, and has neither prompts nor adapters")
    described = hub_package("transformers").CLIPConfig(
        vision_config=encoder_config(vision).to_dict(),
        text_config=text_config(text).to_dict(),
        projection_dim=head.width,
    )
    return Part("model", described, config.parameters + 1, beyond=", with the scale of the logits (1)")
