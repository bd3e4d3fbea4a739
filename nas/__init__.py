"""Which vision-language model is worth running on a device: search, archive, query and export."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("edge-vlm-nas")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
