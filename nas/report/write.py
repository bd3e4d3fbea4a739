"""The report of an experiment as one self-contained HTML file."""

from __future__ import annotations

import importlib.metadata
from html import escape
from pathlib import Path

import yaml

from hardware_profiles import Basis, Profile
from nas.archive import Archive
from nas.proxies import PROXIES
from nas.report.course import history_section, importance_section, training_section
from nas.report.findings import Findings
from nas.report.fleet import fleet_section
from nas.report.overview import front_section, header, table_section
from nas.report.page import badge, number, page, save
from nas.report.published import beside_section
from nas.report.trust import agreement_section, operations_section, proxy_section

_GLOSSARY = {
    Basis.MEASURED: "observed: timed on the device that is named, or answered by a network that was trained",
    Basis.CALIBRATED: "predicted, then corrected with a few measurements of the same device",
    Basis.PREDICTED: "computed by a cost model, or by a proxy that only ranks",
    Basis.STATIC: "counted from shapes or compiled code, without running anything",
    Basis.DATASHEET: "from the manufacturer's documents",
    Basis.ASSUMED: "set by hand: no source measures it on this device",
}


def write_report(archive: Archive, profile: Profile, path: Path) -> Path:
    """Write the page to `path` and return it; raises NasError for an empty front or a path that cannot be written."""
    found = Findings.of(archive, profile)
    sections = (
        header,
        front_section,
        fleet_section,
        beside_section,
        table_section,
        agreement_section,
        history_section,
        importance_section,
        proxy_section,
        training_section,
        operations_section,
        _footer,
    )
    title = f"{escape(archive.experiment.name)} on {escape(found.profile.full_title)}"
    return save(path, page(title, "\n".join(told(found) for told in sections)))


def _footer(found: Findings) -> str:
    experiment, power = found.experiment, found.profile.power.active_w
    glossary = "".join(
        f"<div><dt>{badge(basis)} {basis}</dt><dd>{text}</dd></div>" for basis, text in _GLOSSARY.items()
    )
    kinds = ((experiment.proxy.dear, "Accuracy"), (experiment.proxy.cheap, "Cheap score"))
    proxies = "".join(
        f"<li>{label} “{escape(name)}”: {escape(PROXIES[name].told()) if name in PROXIES else 'unknown here'}.</li>"
        for name, label in kinds
    )
    how = (
        f"<ul>{proxies}<li>Data: {escape(experiment.data.named())}.</li>"
        f"<li>Latency: the sum of the model's kernels by the cost model “{experiment.cost_model}”, phase by phase.</li>"
        f"<li>Energy: latency × {number(power.value)} W active power of the board{badge(power.basis)} "
        f"({escape(power.source)}).</li>"
        "<li>Memory: weights + KV cache + the largest set of activations alive at once, from shapes.</li></ul>"
    )
    packages = ("edge-vlm-nas", "torch", "apache-tvm", "optuna")
    versions = ", ".join(f"{name} {_version(name)}" for name in packages)
    text = yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    name = escape(experiment.name)
    repeat = (
        f"<p>Written with {escape(versions)}; seed {experiment.seed}. To repeat it, save this as "
        f"<code>{name}.yaml</code> and run <code>nas search {name}.yaml</code>.</p>"
        f"<details><summary>{name}.yaml</summary><pre>{escape(text)}</pre></details>"
    )
    return (
        f"<footer><h2>How each number was obtained</h2><dl>{glossary}</dl>{how}<h2>To repeat it</h2>{repeat}</footer>"
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
