"""Configs for Hugging Face's transformers: a model of the same shape, as its own classes build it.

Where a composite class has encoder, projector and decoder, one config.json; else each part in a folder of its own. What
a config here does not say (RoPE's base, the longest text, special tokens, epsilons) is what transformers has for that
class; the image token is the last of the vocabulary. Weights are not written.
"""

from nas.hugging_face.part import NoClassError
from nas.hugging_face.write import write_hugging_face

__all__ = ["NoClassError", "write_hugging_face"]
