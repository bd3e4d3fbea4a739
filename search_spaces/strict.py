"""The strict JSON form of configs: what is told, and how it is read back; every error names the rule and the key."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

from search_spaces.errors import ConfigError, unknown

_T = TypeVar("_T")
_Choice = TypeVar("_Choice", bound=StrEnum)

#: Version of the JSON form; a config of another version is refused.
CONFIG_VERSION = 1


def identity(told: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that depend on every field of a JSON form and on nothing else."""
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def check_version(fields: Mapping[str, Any]) -> None:
    """Raise ConfigError for a JSON form of another version."""
    version = fields.get("version")
    if version != CONFIG_VERSION:
        raise ConfigError(
            f"config has version {version!r}, but this release reads version {CONFIG_VERSION}; "
            "export it again with the release that wrote it"
        )


def told_fields(part: Any) -> dict[str, Any]:
    """Fields of a part that have no default, another value than it, or are always told."""
    return {
        field.name: getattr(part, field.name)
        for field in dataclasses.fields(part)
        if getattr(part, field.name) != field.default or field.metadata.get("told")
    }


def mapping(data: object, where: str) -> Mapping[str, Any]:
    """The data as a mapping; anything else raises ConfigError."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} must be a mapping, but got {type(data).__name__}")
    return data


def member(registry: Mapping[str, _T], kind: str, name: object) -> _T:
    """What a registry has by that name; an unknown one raises ConfigError with the nearest."""
    if not isinstance(name, str) or name not in registry:
        raise unknown(kind, name, registry)
    return registry[name]


def choice(kind: type[_Choice], what: str, value: object) -> _Choice:
    """The member of an enumeration; an unknown one raises ConfigError with the nearest."""
    try:
        return kind(str(value))
    except ValueError:
        raise unknown(what, value, [one.value for one in kind]) from None


def check_keys(data: Mapping[str, Any], names: tuple[str, ...], where: str, optional: tuple[str, ...] = ()) -> None:
    """Raise ConfigError for a key that is not known, or a name that is missing."""
    for key in data:
        if key not in names and key not in optional:
            raise unknown(f"key in {where}", key, (*names, *optional))
    missing = [name for name in names if name not in data]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")


#: Types of fields as they are written, with how each is told.
_KINDS: dict[str, tuple[type, str]] = {
    "int": (int, "a whole number"),
    "str": (str, "a name"),
    "bool": (bool, "true or false"),
    "tuple[int, ...]": (tuple, "a list of whole numbers"),
}


def read_part(cls: type[_T], data: Mapping[str, Any], where: str) -> _T:
    """A dataclass of whole numbers, names, switches and lists of numbers; what does not fit raises ConfigError."""
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    required = tuple(field.name for field in fields if field.default is dataclasses.MISSING)
    check_keys(data, required, where, tuple(field.name for field in fields if field.name not in required))
    values = {}
    for field in fields:
        if field.name in data:
            kind, meant = _KINDS[str(field.type)]
            value = data[field.name]
            if kind is tuple and isinstance(value, list | tuple):
                value = tuple(value)
            right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            if kind is tuple and right:
                right = all(isinstance(one, int) and not isinstance(one, bool) for one in value)
            if not right:
                raise ConfigError(f"{where}.{field.name} must be {meant}, but got {data[field.name]!r}")
            values[field.name] = value
    return cls(**values)
