"""What the extra `hub` brings: its packages, and checkpoints as local folders that hold safetensors.

Nothing here runs code from a hub or unpickles: of a checkpoint only JSON, the tokenizer and safetensors are fetched.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nas.proxies.data import DataError

#: What is fetched of a checkpoint; pickled weights (.bin, .pt) are not.
CHECKPOINT_FILES = ("*.json", "*.safetensors", "merges.txt", "*.jinja")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def hub_package(name: str) -> Any:
    """The imported package; a DataError that names the extra where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise DataError(f"{error.name} is not installed; pip install 'edge-vlm-nas[hub]' brings it") from error


def place_of(source: str, revision: str | None) -> Path | None:
    """The local folder that `source` names, or None where it is OWNER/NAME on a hub; anything else is a DataError.

    A folder that exists comes first and has no revision; a name needs one, for what a hub holds changes.
    """
    folder = Path(source)
    if folder.is_dir():
        if revision is not None:
            raise DataError(f"{source}: a local folder has no revision, but got {revision!r}")
        return folder
    if not _NAME.fullmatch(source):
        raise DataError(f"{source}: neither a folder nor a name on a hub (OWNER/NAME)")
    if revision is None:
        raise DataError(f"{source}: no such folder, and a name on a hub needs a revision, best a commit")
    return None


def checkpoint_folder(source: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint, fetched where `source` is a name on a hub; it has config.json and safetensors.

    Raises DataError where these are missing, which tells what to do about pickled weights.
    """
    folder = place_of(source, revision)
    if folder is None:
        hub = hub_package("huggingface_hub")
        try:
            folder = Path(hub.snapshot_download(source, revision=revision, allow_patterns=list(CHECKPOINT_FILES)))
        except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:  # refused, not found, or no network
            raise DataError(f"{source}: cannot be fetched: {first_line(error)}") from error
    if not (folder / "config.json").is_file():
        raise DataError(f"{source}: no checkpoint: it has no config.json")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
        found = f"{pickled[0]} is pickled and could run code" if pickled else "it has none"
        raise DataError(
            f"{source}: weights are read from .safetensors only, but {found}; choose a revision that has them, or, "
            "where you trust the file, write them by transformers' save_pretrained(..., safe_serialization=True)"
        )
    return folder


def first_line(error: Exception) -> str:
    """What an error says, without the advice that follows."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers' own reports off the user's screen: they are judged here; errors still raise."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
