"""An experiment: one question as a YAML file, read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from hardware_profiles.catalog import called
from nas.asked import share_of
from nas.errors import NasError
from nas.objectives import CAPS, OBJECTIVES
from nas.proxies import PROXIES, proxy
from search_spaces import SPACES, SearchSpace, Workload, unknown
from search_spaces.placement import BITS_PER_PIXEL, Cut, cuts_named
from search_spaces.systems import QUANTS

Positive = Annotated[int, Field(ge=1, strict=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WorkloadSpec(_Strict):
    """The request that is priced."""

    images: Positive = 1
    prompt_tokens: Positive = 10
    new_tokens: Positive = 2

    def workload(self) -> Workload:
        """As the spaces take it."""
        return Workload(self.images, self.prompt_tokens, self.new_tokens)


#: The keys that each source of data reads.
_SOURCE_KEYS: dict[str, tuple[str, ...]] = {
    "digit_scenes": ("limit",),
    "llava": ("json_file", "image_folder"),
    "huggingface": ("dataset", "revision", "subset", "image_subset", "split", "limit"),
}
_NEEDED_KEYS: dict[str, tuple[str, ...]] = {
    "digit_scenes": (),
    "llava": ("json_file", "image_folder"),
    "huggingface": ("dataset",),
}


class DataSpec(_Strict):
    """What accuracy is measured on: the digit scenes, a LLaVA-format JSON file, or a Hugging Face dataset.

    `dataset` is OWNER/NAME with its revision, or a folder; see `nas.proxies.hub_data.HubSource` for the other keys.
    `limit` takes so many of its rows, or of the digit scenes so many in all three splits: a quick trial.
    `seed` divides it into train, validation and test; the experiment's own seed leaves that as it is.
    """

    source: Literal["digit_scenes", "llava", "huggingface"] = "digit_scenes"
    json_file: str | None = None
    image_folder: str | None = None
    dataset: str | None = None
    revision: str | None = None
    subset: str | None = None
    image_subset: str | None = None
    split: str | None = None
    limit: Positive | None = None
    seed: Annotated[int, Field(ge=0, strict=True)] = 0

    @model_validator(mode="after")
    def _keys_are_of_the_source(self) -> DataSpec:
        for key, value in self:
            if key not in ("source", "seed") and value is not None and key not in _SOURCE_KEYS[self.source]:
                owners = " or ".join(source for source, keys in _SOURCE_KEYS.items() if key in keys)
                raise ValueError(f"{key} is a key of the source {owners}, but the source is {self.source}")
        for key in _NEEDED_KEYS[self.source]:
            if getattr(self, key) is None:
                raise ValueError(f"the source {self.source} needs the key {key}")
        return self

    def named(self) -> str:
        """The source and what is given of it, for a report."""
        named = " ".join(str(value) for key, value in self if value is not None and key != "seed")
        return f"{named}, divided by seed {self.seed}"


class Rung(_Strict):
    """A proxy between the cheap and the dear one: the most promising of those below are estimated by it too."""

    proxy: str
    promote: Positive
    seconds: Annotated[float, Field(gt=0)] = 150.0
    steps: Positive | None = None

    @field_validator("proxy")
    @classmethod
    def _proxy_is_known(cls, name: str) -> str:
        if name not in PROXIES:
            raise unknown("proxy", name, PROXIES)
        return name


class ProxySpec(_Strict):
    """How accuracy is estimated: every candidate by the cheap proxy, the promoted ones by dearer ones, rung by rung."""

    cheap: str = "synflow"
    between: tuple[Rung, ...] = ()
    dear: str = "trained"
    promote: Annotated[int, Field(ge=0, strict=True)] = 12
    seconds: Annotated[float, Field(gt=0)] = 150.0
    steps: Positive | None = None
    workers: Positive = 2

    @model_validator(mode="after")
    def _rungs_differ(self) -> ProxySpec:
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"every rung needs a proxy of its own, but got {', '.join(self.names)}")
        for fidelity in ("cheap", "dear"):
            proxy(getattr(self, fidelity), fidelity)
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The proxies of all rungs, the cheapest first."""
        return (self.cheap, *(rung.proxy for rung in self.between), self.dear)


class PlacementSpec(_Strict):
    """Where candidates may run: each is priced at its best cut between the device and `cloud`, another device's name.

    Of the link, the device's profile tells what is left out. `features` and `bits_per_pixel`: how they are sent.
    `cloud_quant`: the scheme under which the cloud runs a model, as it is by default.
    """

    cloud: str
    uplink_mbit: Annotated[float, Field(gt=0)] | None = None
    downlink_mbit: Annotated[float, Field(gt=0)] | None = None
    round_trip_ms: Annotated[float, Field(ge=0)] | None = None
    cuts: tuple[str, ...] = tuple(cut.value for cut in Cut)
    no_pixels_leave: bool = False
    features: Literal["fp32", "fp16", "int8", "int4"] = "fp16"
    bits_per_pixel: Annotated[float, Field(gt=0)] = BITS_PER_PIXEL
    cloud_quant: str | None = None

    @model_validator(mode="after")
    def _names_are_known(self) -> PlacementSpec:
        if not cuts_named(self.cuts, self.no_pixels_leave):
            raise ValueError("cuts: [cloud] and no_pixels_leave: true leave no cut; add device or after_encoder")
        if self.cloud_quant is not None and self.cloud_quant not in QUANTS:
            raise unknown("quantisation", self.cloud_quant, QUANTS)
        return self


class Experiment(_Strict):
    """What to search, where, for what; unknown keys are errors. `only`: values that choices of the space may take.

    One device is written `device`, several are `devices`; both are there to be read, `device` being the first one.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*$")]
    space: str = "tiny"
    only: dict[str, tuple[int | float | str, ...]] = {}
    device: str = "host"
    devices: tuple[str, ...] = ()  # never empty once it is read
    cost_model: Literal["auto", "roofline", "learned"] = "auto"
    workload: WorkloadSpec = WorkloadSpec()
    objectives: tuple[str, ...] = ("accuracy", "latency")
    caps: dict[str, Annotated[float, Field(gt=0)]] = {}
    sampler: Literal["cost_aware", "gp", "nsga2", "nsga3", "random", "tpe"] = "cost_aware"
    trials: Positive = 150
    until_gain: Annotated[float | None, BeforeValidator(lambda asked: asked if asked is None else share_of(asked))] = (
        None
    )
    workers: Positive = 1
    seed: Annotated[int, Field(ge=0, strict=True)] = 0
    proxy: ProxySpec = ProxySpec()
    data: DataSpec = DataSpec()
    placement: PlacementSpec | None = None
    timed_kernels: Annotated[int, Field(ge=50, strict=True)] = 320
    measure: Annotated[int, Field(ge=0, le=32, strict=True)] = 8

    @model_validator(mode="before")
    @classmethod
    def _one_device_or_several(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if "device" in data and "devices" in data:
            raise ValueError("device and devices are both given: keep one of them, devices where there are several")
        if "devices" not in data:
            return {**data, "devices": [data.get("device", "host")]}
        several = data["devices"]
        if not isinstance(several, list | tuple) or not several or not all(isinstance(name, str) for name in several):
            raise ValueError(f"devices must be a list of one or more names of devices, but got {several!r}")
        if len({called(name) for name in several}) < len(several):
            raise ValueError(f"devices must be different ones, but got {', '.join(several)}")
        return {**data, "device": several[0]}

    @model_serializer(mode="wrap")
    def _as_written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = dump(self)
        data.pop("device" if len(self.devices) > 1 else "devices", None)
        return data

    @field_validator("space")
    @classmethod
    def _space_is_known(cls, name: str) -> str:
        if name not in SPACES:
            raise unknown("space", name, SPACES)
        return name

    @field_validator("objectives")
    @classmethod
    def _objectives_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in OBJECTIVES:
                raise unknown("objective", name, OBJECTIVES)
        if len(set(names)) < 2 or len(set(names)) != len(names):
            raise ValueError(f"objectives must be two or more different ones, but got {', '.join(names)}")
        if "accuracy" not in names:
            raise ValueError("objectives must hold accuracy: without it the smallest model always wins")
        return names

    @field_validator("caps")
    @classmethod
    def _caps_are_known(cls, caps: dict[str, float]) -> dict[str, float]:
        for name in caps:
            if name not in CAPS:
                raise unknown("cap", name, CAPS)
        return caps

    @model_validator(mode="after")
    def _values_are_known(self) -> Experiment:
        if self.searched.size < 2:  # raises where a name is unknown
            raise ValueError("only leaves a single model; nas predict prices it")
        return self

    @property
    def searched(self) -> SearchSpace:
        """The space, narrowed to `only`."""
        return SPACES[self.space].narrowed(self.only)

    @model_validator(mode="after")
    def _proxies_suit_the_size(self) -> Experiment:
        full, spec = SPACES[self.space].full_size, self.proxy
        if full != (spec.cheap == "published"):
            right = "published" if full else "combined or supernet"
            raise ValueError(f"the proxy {spec.cheap} does not suit the space {self.space}: choose cheap: {right}")
        if full and (spec.promote or spec.between):
            raise ValueError(f"models of the space {self.space} are not trained here: set promote: 0, and no between")
        return self

    @model_validator(mode="after")
    def _cuts_are_asked_for(self) -> Experiment:
        if self.placement is None:
            bounded = [name for name in self.caps if OBJECTIVES[CAPS[name]].placed]
            for name in (*bounded, *(name for name in self.objectives if OBJECTIVES[name].placed)):
                raise ValueError(f"{name} is of models that are placed between a device and a cloud: add `placement`")
        return self

    @model_validator(mode="after")
    def _a_placement_has_one_device(self) -> Experiment:
        if self.placement is not None and len(self.devices) > 1:
            raise ValueError("a placement is between one device and a cloud: give device instead of devices")
        return self

    @model_validator(mode="after")
    def _weights_know_the_data(self) -> Experiment:
        for name in self.proxy.names:
            known = PROXIES[name].scenes
            if known is not None and (self.data.source, self.data.seed) != ("digit_scenes", known):
                raise ValueError(
                    f"the weights behind the proxy {name} know the digit scenes of seed {known} only, but the data are "
                    f"{self.data.named()}; use the proxies combined and trained"
                )
        return self

    def identity(self) -> dict[str, Any]:
        """What must stay the same when a stored experiment is continued; budgets may grow.

        Of several devices it is the first, whose costs are stored; on the others all is priced anew, so that they may
        be added, removed and reordered.
        """
        free = {"trials", "until_gain", "workers", "seed", "measure", "timed_kernels", "caps", "sampler", "devices"}
        data = {**self.model_dump(mode="json", exclude=free), "device": self.device}
        between = [{"proxy": rung.proxy, "steps": rung.steps} for rung in self.proxy.between]
        data["proxy"] = {
            "cheap": self.proxy.cheap,
            "between": between,
            "dear": self.proxy.dear,
            "steps": self.proxy.steps,
        }
        return data


def read_experiment(path: Path) -> Experiment:
    """The experiment in a YAML file; anything wrong raises NasError with file, key and the nearest known name."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NasError(f"{path}: no such experiment file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise NasError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f", line {place.line + 1}" if place else ""
        raise NasError(f"{path}{line}: not YAML ({getattr(error, 'problem', None) or 'syntax error'})") from None
    if not isinstance(data, dict):
        raise NasError(f"{path}: an experiment is a mapping of keys to values, but got {type(data).__name__}")
    return parse_experiment(data, str(path))


def parse_experiment(data: dict[str, Any], where: str) -> Experiment:
    """The experiment in a mapping; `where` names its origin in errors."""
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        found = error.errors()
        # a misspelt key is unknown, and another one seems to be missing
        first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _fields_at(first["loc"][:-1])
            raise NasError(f"{where}: {unknown('key', first['loc'][-1], known)}") from None
        message = first["msg"].removeprefix("Value error, ")
        got = "" if first["type"] == "value_error" else f", but got {first['input']!r}"
        raise NasError(": ".join(filter(None, (where, key, f"{message}{got}")))) from None


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Experiment
    for part in location:
        if isinstance(part, str):  # a number is a place in a list, whose items are of one model
            annotation = model.model_fields[part].annotation
            kinds = (annotation, *get_args(annotation))
            model = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)
