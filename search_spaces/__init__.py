"""What a vision-language model is, and what work it does."""

from search_spaces.classifier import ClassifierConfig
from search_spaces.config import VLMConfig
from search_spaces.encoders import ENCODERS
from search_spaces.errors import ConfigError, unknown
from search_spaces.kernels import Kernel, KernelKind, Phase, Precision, Workload
from search_spaces.language import LanguageConfig
from search_spaces.priced import PricedConfig
from search_spaces.projectors import PROJECTORS, Projector
from search_spaces.space import Point, SearchSpace, Value
from search_spaces.spaces import SPACES
from search_spaces.vision import ImageEncoder, KernelGroup, VisionConfig

__all__ = [
    "ENCODERS",
    "PROJECTORS",
    "SPACES",
    "ClassifierConfig",
    "ConfigError",
    "ImageEncoder",
    "Kernel",
    "KernelGroup",
    "KernelKind",
    "LanguageConfig",
    "Phase",
    "Point",
    "Precision",
    "PricedConfig",
    "Projector",
    "SearchSpace",
    "VLMConfig",
    "Value",
    "VisionConfig",
    "Workload",
    "unknown",
]
