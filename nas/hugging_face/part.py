"""What is written into one folder: a config, and how the network that it describes is built and counted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.errors import NasError
from nas.proxies.hub import hub_package


class NoClassError(NasError):
    """A part that no class builds; the message says which, and why."""


@dataclass(frozen=True, slots=True)
class Part:
    """A config of transformers, or the fields of one that it has no class for.

    `build`: the class that builds it, an Auto class or another, with `arguments`; `parameters` are expected of it, and
    `beyond` says what of them is not in the description. `needs`: what builds it where transformers alone cannot.
    """

    name: str
    config: Any
    parameters: int
    build: str = "AutoModel"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    beyond: str = ""
    needs: str = ""

    def write(self, folder: Path) -> Path:
        """Write config.json."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "config.json"
        if isinstance(self.config, dict):
            path.write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")
        else:
            self.config.save_pretrained(folder)
        return path

    def compared(self, folder: Path) -> str:
        """One line: what is built of the folder's config against what is described."""
        if self.needs:
            return f"{self.name}: config written; building it needs {self.needs}"
        built = built_parameters(folder, self.build, self.arguments)
        told = "".join(f", {name}={value}" for name, value in self.arguments.items())
        how = f"{self.build}.from_config(config{told})" if self.build.startswith("Auto") else self.build
        same = f"as described{self.beyond}"
        if built != self.parameters:
            same = f"where {self.parameters:,} are described{self.beyond}"
        return f"{self.name}: transformers' {how} builds {built:,} parameters, {same}"


def built_parameters(folder: Path, build: str, arguments: Mapping[str, Any]) -> int:
    """Parameters of the network that a class of transformers builds of a folder's config, on torch's meta device."""
    import torch

    transformers = hub_package("transformers")
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    made = getattr(transformers, build)
    with torch.device("meta"):
        network = made.from_config(config, **arguments) if build.startswith("Auto") else made(config, **arguments)
    return sum(parameter.numel() for parameter in network.parameters())
