"""Where a model may be cut between a device and a cloud, and how many bytes of a request then leave the device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from search_spaces.config import VLMConfig
from search_spaces.errors import unknown
from search_spaces.kernels import Phase, Precision, Workload

#: Bytes of a token on the link: as a number of 32 bits, or as text (assumed: four letters).
TOKEN_BYTES = 4.0
#: Bits of a JPEG image by pixel. Assumed: 1.4 to 2.4 at quality 85, in scikit-learn's two photographs at 224 to 427 px.
BITS_PER_PIXEL = 2.0


class Cut(StrEnum):
    """What runs on the device: all, all before the decoder, the encoder alone, or nothing."""

    DEVICE = "device"
    AFTER_PROJECTOR = "after_projector"
    AFTER_ENCODER = "after_encoder"
    CLOUD = "cloud"

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases that run on the device; the others run in the cloud."""
        return tuple(Phase)[: _ON_DEVICE[self]]


_ON_DEVICE = {Cut.DEVICE: 4, Cut.AFTER_PROJECTOR: 2, Cut.AFTER_ENCODER: 1, Cut.CLOUD: 0}


def cuts_named(names: Iterable[str], no_pixels_leave: bool = False) -> tuple[Cut, ...]:
    """The cuts of these names, without those that `no_pixels_leave` forbids; an unknown one raises ConfigError."""
    found = set()
    for name in names:
        if name not in tuple(Cut):
            raise unknown("cut", name, list(Cut))
        found.add(Cut(name))
    return tuple(cut for cut in Cut if cut in found and not (no_pixels_leave and cut is Cut.CLOUD))


@dataclass(frozen=True, slots=True)
class Sent:
    """Bytes of one request that leave the device, by what they are."""

    pixel_bytes: float = 0.0
    feature_bytes: float = 0.0
    text_bytes: float = 0.0

    @property
    def total_bytes(self) -> float:
        """Sum of the three."""
        return self.pixel_bytes + self.feature_bytes + self.text_bytes


def sent(config: VLMConfig, workload: Workload, cut: Cut, features: Precision, bits_per_pixel: float) -> Sent:
    """What leaves the device under a cut: features in a precision, with a scale a token in int8, or images as JPEG.

    Learned rows of the prompt are kept where the decoder is. The overview of an image in tiles is not sent: it is the
    same image, smaller.
    """
    if cut is Cut.DEVICE:
        return Sent()
    text_bytes = workload.prompt_tokens * TOKEN_BYTES
    if cut is Cut.CLOUD:
        pixels = workload.images * max(config.tiles - 1, 1) * config.vision.image_px**2
        return Sent(pixel_bytes=pixels * bits_per_pixel / 8, text_bytes=text_bytes)
    if cut is Cut.AFTER_ENCODER:
        rows = workload.images * config.tiles * config.vision.tokens * config.projector.levels
        width = config.vision.width
    else:
        rows, width = workload.images * config.image_tokens, config.language.width
    return Sent(feature_bytes=features.matrix_bytes(rows, width), text_bytes=text_bytes)
