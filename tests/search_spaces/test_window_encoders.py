"""Swin, DAT++ and EfficientNet against torch's counts, published ones, and transformers' networks."""

from __future__ import annotations

import pytest
import torch
from test_truth import SMALL_DECODER, check

from search_spaces import PROJECTORS, ConfigError, ImageEncoder, Precision, VLMConfig
from search_spaces.dat import Dat
from search_spaces.efficientnet import EfficientNetB0
from search_spaces.kernels import MATRIX_KINDS
from search_spaces.reference import reference_encoder
from search_spaces.swin import Swin

EXAMPLES = [
    EfficientNetB0(256),
    Swin(224),
    Swin(384, first_width=32, depths=(1, 3, 2, 1), window=12),
    Swin(192, first_width=64, depths=(2, 1, 1, 3), window=6),
    Dat(224),
    Dat(96, first_width=32, depths=(2, 3, 1, 1), neighbours=5),
]


@pytest.mark.parametrize("encoder", EXAMPLES, ids=str)
def test_every_encoder_is_what_torch_counts(encoder: ImageEncoder) -> None:
    check(VLMConfig(encoder, PROJECTORS["linear"](), SMALL_DECODER))


@pytest.mark.parametrize(
    ("name", "stored"),
    [  # timm 1.0.31, without the classifier of 1,000: 769,000 in Swin, 1,281,000 in EfficientNet
        ("swin_tiny_patch4_window7_224", 28_288_354 - 769_000),
        ("swin_small_patch4_window7_224", 49_606_258 - 769_000),
        ("efficientnet_b0", 5_288_548 - 1_281_000),
    ],
)
def test_encoders_have_their_published_parameters(name: str, stored: int) -> None:
    assert reference_encoder(name).parameters == stored


@pytest.mark.parametrize(
    ("name", "giga_operations"),
    [  # multiply-adds at 224 px: arXiv:2103.14030 table 1, arXiv:1905.11946 table 2, arXiv:2309.01430 table 2
        ("swin_tiny_patch4_window7_224", 4.5),
        ("swin_small_patch4_window7_224", 8.7),
        ("efficientnet_b0", 0.39),
        ("dat_tiny_plus_224", 4.3),
    ],
)
def test_encoders_do_their_published_work(name: str, giga_operations: float) -> None:
    kernels = reference_encoder(name).kernels(None, Precision.FP32)
    counted = sum(kernel.ops * count for kernel, count in kernels if kernel.kind in MATRIX_KINDS)
    assert counted / 2e9 == pytest.approx(giga_operations, rel=0.07)


def test_dat_is_as_large_as_published() -> None:
    # 24 million with a classifier of 1,000: arXiv:2309.01430 table 2
    assert round((reference_encoder("dat_tiny_plus_224").parameters + 513_000) / 1e6) == 24


def test_swin_answers_as_transformers_does() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    depths = (2, 2, 2, 2)
    ours = Swin(224, first_width=32, depths=depths).build().eval()
    shape = {"image_size": 224, "embed_dim": 32, "depths": depths, "num_heads": (1, 2, 4, 8), "layer_norm_eps": 1e-6}
    theirs = transformers.SwinModel(transformers.SwinConfig(**shape), add_pooling_layer=False).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    ours.load_state_dict({_ours(key): _turned(key, value) for key, value in theirs.state_dict().items() if _kept(key)})
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images).last_hidden_state, atol=1e-4, rtol=1e-4)


_INNER = {
    "attention.q_proj": "attention.q",
    "attention.k_proj": "attention.k",
    "attention.v_proj": "attention.v",
    "attention.o_proj": "attention.out",
    "attention.relative_position_bias.relative_position_bias_table": "attention.biases",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "mlp.fc1": "feed_forward.up",
    "mlp.fc2": "feed_forward.down",
    "downsample.norm": "norm",
    "downsample.reduction": "reduce",
    "embeddings.patch_embeddings.projection": "patches",
    "embeddings.norm": "norm0",
    "layernorm": "norm",
}


def _kept(key: str) -> bool:
    return not key.endswith("relative_position_index")


def _turned(key: str, value: torch.Tensor) -> torch.Tensor:
    return value.T.contiguous() if key.endswith("bias_table") else value


def _ours(key: str) -> str:
    """Our name of a weight of transformers: two blocks a stage, and what shrinks the picture behind them."""
    where = ""
    if key.startswith("encoder.layers."):
        _, _, stage, rest = key.split(".", 3)
        place = 2
        if rest.startswith("blocks."):
            _, block, rest = rest.split(".", 2)
            place = int(block)
        where, key = f"layers.{3 * int(stage) + place}.", rest
    name, _, part = key.rpartition(".")
    return where + _INNER[key] if key in _INNER else f"{where}{_INNER[name]}.{part}"


def test_what_does_not_fit_says_the_rule() -> None:
    with pytest.raises(ConfigError, match="multiple of 224"):
        Swin(256)
    with pytest.raises(ConfigError, match="multiple of 32"):
        Dat(250)
    with pytest.raises(ConfigError, match="odd number"):
        Dat(224, neighbours=6)
