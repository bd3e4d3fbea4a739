"""Models on the screen: fronts, single models, predictions beside measurements, published systems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from hardware_profiles import Profile
    from nas.archive import Archive, Evaluation
    from nas.beside import Standing


def front_table(
    members: Sequence[Evaluation], archive: Archive, profile: Profile, title: str, knee: Evaluation | None = None
) -> Table:
    """One row a member: accuracy, latency with what was measured beside it, memory, parameters, where it is cut.

    The row of the `knee`, if there is one, is marked in a column of its own.
    """
    from nas.objectives import OBJECTIVES
    from nas.query import is_measured

    own, placed = is_measured(archive, profile), any(member.cost.away for member in members)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("id", no_wrap=True)
    for heading in ("accuracy", "predicted", "measured", "error", "memory", "params", *(("cut", "sent") * placed)):
        table.add_column(heading, justify="right", no_wrap=True)
    if knee:
        table.add_column("", no_wrap=True)
    for member in members:
        measured = archive.measured(member.id) if own else None
        beside = ("-", "-")
        if measured:
            seconds, predicted = measured["latency_measured_s"], measured["latency_predicted_s"]
            beside = (OBJECTIVES["latency"].show(seconds), f"{(predicted / seconds - 1) * 100:+.0f} %")
        accuracy, latency, memory, parameters = (
            OBJECTIVES[name].show(OBJECTIVES[name].value(member.cost, member.accuracy))
            for name in ("accuracy", "latency", "peak_memory", "parameters")
        )
        away = (a.cut.value, OBJECTIVES["sent"].show(a.sent.total_bytes)) if (a := member.cost.away) else ()
        mark = ("knee" if member is knee else "",) if knee else ()
        row = (member.id, accuracy, latency, *beside, memory, parameters, *away, *mark)
        table.add_row(*row, style="bold" if member is knee else None)
    return table


def front_models(members: Sequence[Evaluation], archive: Archive) -> str:
    """The models of a table in words, a line each."""
    from nas.query import describe

    return "\n".join(f"{member.id}  {describe(member, archive)}" for member in members)


def detail_table(member: Evaluation, archive: Archive, profile: Profile, title: str) -> Table:
    """Every objective of one model with its basis, its latency by phase, and what was measured of it."""
    from nas.objectives import OBJECTIVES, objectives_of
    from nas.query import describe, is_measured, phases_s

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_column()
    table.add_row("id", member.id)
    table.add_row("model", describe(member, archive))
    for name, objective in objectives_of(member.cost, member.accuracy).items():
        value = objective.value(member.cost, member.accuracy)
        table.add_row(name, objective.show(value), objective.basis(member.cost, member.accuracy, profile).value)
    if away := member.cost.away:
        table.add_row("latency of the link", OBJECTIVES["latency"].show(away.link.latency_s), away.link.basis.value)
    for phase, seconds in phases_s(member.cost).items():
        table.add_row(f"latency of {phase}", OBJECTIVES["latency"].show(seconds), member.cost.basis.value)
    measured = archive.measured(member.id) if is_measured(archive, profile) else None
    if measured:
        table.add_row("latency, end to end", OBJECTIVES["latency"].show(measured["latency_measured_s"]), "measured")
    return table


def basis_line(members: Sequence[Evaluation], archive: Archive, profile: Profile) -> str:
    """How the numbers of a table were obtained."""
    from nas.objectives import OBJECTIVES
    from nas.query import is_measured

    first = members[0]
    told = [
        f"{name} {OBJECTIVES[name].basis(first.cost, first.accuracy, profile).value}"
        for name in ("accuracy", "latency", "peak_memory", "energy")
    ]
    proxy = first.accuracy.proxy if first.accuracy else "none"
    share = f"{100 * first.cost.total.timed_share:.0f} % of its latency from kernels timed on {profile.name}"
    own = is_measured(archive, profile)
    records = [record for member in members if own and (record := archive.measured(member.id))]
    disturbed = sum(not record["quiet"] for record in records)
    warning = (
        f"\n{disturbed} of {len(records)} were measured while something else slowed this machine down: "
        "run the search again to measure them again"
    )
    told_basis = f"basis: {', '.join(told)} (accuracy by the proxy {proxy}; of the first row {share})"
    return told_basis + (warning if disturbed else "")


def prediction_table(predicted: dict[str, Any]) -> Table:
    """Kernels by phase, dearest first."""
    table = Table(title=f"{predicted['id']} on {predicted['device']}", title_justify="left", box=None, pad_edge=False)
    for heading in ("phase", "kernel"):
        table.add_column(heading)
    for heading in ("count", "one run", "in all", "share"):
        table.add_column(heading, justify="right")
    table.add_column("basis")
    if placed := predicted["placement"]:
        told = f"{placed['sent_bytes']['total_bytes'] / 1e6:.3g} MB leave the device"
        table.add_row(
            "link", told, "", "", f"{placed['link_s'] * 1e3:.3f} ms", "100 %", placed["link_basis"], style="bold"
        )
    for name, phase in predicted["phases"].items():
        where = f"on {phase['device']}" if placed else ""
        unsure = "" if phase["deviation_s"] is None else f" ± {phase['deviation_s'] * 1e3:.3f}"
        table.add_row(name, where, "", "", f"{phase['latency_s'] * 1e3:.3f}{unsure} ms", "100 %", "", style="bold")
        for row in phase["kernels"]:
            share = row["total_s"] / phase["latency_s"]
            one, whole = f"{row['seconds'] * 1e6:.1f} us", f"{row['total_s'] * 1e3:.3f} ms"
            table.add_row("", row["kernel"], str(row["count"]), one, whole, f"{share:.0%}", row["basis"])
        if phase["overhead_s"] > 1e-9:
            whole, share = f"{phase['overhead_s'] * 1e3:.3f} ms", phase["overhead_s"] / phase["latency_s"]
            table.add_row("", "beside the kernels", "", "", whole, f"{share:.0%}", "predicted")
    return table


def prediction_totals(predicted: dict[str, Any]) -> str:
    """One line an objective, with its basis."""
    from nas.objectives import OBJECTIVES

    lines = [
        f"{name:20} {OBJECTIVES[name].show(number['value']):>12}  {number['basis']}"
        for name, number in predicted["objectives"].items()
    ]
    if "described" in predicted:
        row = predicted["described"]
        note = f" ({row['note']})" if row["note"] else ""
        lines.append(f"{row['name']} is described by {row['source']}; {row['basis']}{note}")
    if not predicted["fits_in_memory"]:
        would = ", ".join(f"{quant} ({size / 1e9:.2f} GB)" for quant, size in predicted["would_fit"].items())
        told = f"; as {would} it would" if would else "; nor under any quantisation"
        usable = predicted["usable_memory_bytes"] / 1e9
        lines.append(f"does not fit into the {usable:.2f} GB that {predicted['device']} has left{told}")
    if predicted.get("scores"):
        lines.append("expected of it by published results, trained as LLaVA-1.5 (assumed), nine in ten between:")
        lines += [
            f"{name:20} {score['value']:>12.0f}  {score['low']:.0f} to {score['high']:.0f}, {score['basis']}"
            for name, score in predicted["scores"].items()
        ]
        lines += [f"  {why}" for why in predicted["scores_outside"]]
    elif predicted.get("scores_outside"):
        lines += [f"no scores are expected of it: {why}" for why in predicted["scores_outside"]]
    return "\n".join(lines)


def measured_table(record: dict[str, Any]) -> Table:
    """Predicted beside measured, by phase."""
    table = Table(title=f"{record['id']} on {record['device']}", title_justify="left", box=None, pad_edge=False)
    table.add_column("phase")
    for heading in ("predicted", "measured", "error"):
        table.add_column(heading, justify="right")
    rows = [(name, record["predicted_s"][name], seconds) for name, seconds in record["measured_s"].items()]
    rows.append(("request", record["latency_predicted_s"], record["latency_measured_s"]))
    for name, predicted, measured in rows:
        error = f"{(predicted / measured - 1) * 100:+.1f} %"
        table.add_row(name, f"{predicted * 1e3:.3f} ms", f"{measured * 1e3:.3f} ms", error)
    table.caption = (
        f"largest error against torch: ONNX {record['onnx_max_error']:.1e}, TVM {record['tvm_max_error']:.1e}"
    )
    return table


def compressed_table(found: dict[str, Any]) -> Table:
    """A model before and after it was made smaller."""
    from nas.objectives import OBJECTIVES

    before, after = found["before"], found["after"]
    table = Table(title=f"{before['id']} on {found['device']}", title_justify="left", box=None, pad_edge=False)
    for heading in ("", "before", "after", "basis"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("id", before["id"], after["id"], "")
    for name in ("accuracy", "test_accuracy"):
        table.add_row(name.replace("_", " "), f"{before[name]:.1%}", f"{after[name]:.1%}", "measured")
    sizes = [f"{each['weight_bytes'] / 1e6:.3f} MB" for each in (before, after)]
    table.add_row("weights", *sizes, "static")
    if before["objectives"] and after["objectives"]:
        for name in ("latency", "peak_memory"):
            values = [OBJECTIVES[name].show(each["objectives"][name]["value"]) for each in (before, after)]
            table.add_row(name.replace("_", " "), *values, after["objectives"][name]["basis"])
    table.caption = f"right after the cut {found['accuracy_untrained']:.1%}, then {found['steps']} steps"
    return table


def beside_table(rows: Sequence[Standing], profile: Profile) -> Table:
    """One row a published model beside a front."""
    title = f"published models on {profile.full_title}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("model", "as", "score", "request", "by", "ahead", "faster"):
        table.add_column(heading, no_wrap=True, justify="left" if heading in ("model", "as") else "right")
    for each in rows:
        ahead, times = each.ahead, each.times_faster
        table.add_row(
            each.name,
            each.quant,
            f"{each.score.value * 100:.1f}",
            f"{each.cost.latency_s:.2f} s",
            each.member.id[:8] if each.beaten else "none",
            f"{ahead.value * 100:+.1f} ({ahead.low * 100:+.1f}..{ahead.high * 100:+.1f})",
            f"{times:.2f}x" if times else "-",
        )
    return table


def place_table(found: dict[str, Any]) -> Table:
    """One row a cut."""
    from nas.objectives import OBJECTIVES

    link = found["link"]
    title = (
        f"{found['id']} between {found['device']} and {found['cloud']}: {link['uplink_bits_per_s'] / 1e6:g} Mbit/s up, "
        f"{link['round_trip_s'] * 1e3:g} ms round trip ({link['basis']})"
    )
    columns = {
        "time_to_first_token": "first token",
        "decode_s_per_token": "per token",
        "latency": "request",
        "sent": "leaves the device",
        "energy": "device energy",
        "peak_memory": "device memory",
        "cloud_memory": "cloud memory",
    }
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("cut", no_wrap=True)
    for heading in columns.values():
        table.add_column(heading, justify="right")
    table.add_column("", overflow="fold")
    for row in found["cuts"]:
        shown = [OBJECTIVES[name].show(row["objectives"][name]["value"]) for name in columns]
        best = row["cut"] == found["best"]
        notes = [row["objectives"]["latency"]["basis"], *(["best"] if best else []), *row["refused"]]
        table.add_row(row["cut"], *shown, ", ".join(notes), style="bold" if best else None)
    return table


def systems_table(systems: Sequence[dict[str, Any]]) -> Table:
    """One row a published model."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("parameters", justify="right")
    for heading in ("encoder", "projector", "decoder or text"):
        table.add_column(heading, overflow="fold")
    table.add_column("basis", no_wrap=True)
    for system in systems:
        if "head" in system:
            between = f"{system['head']}, {system['labels']} labels"
            text = system["text_encoder"] or "known beforehand"
        else:
            between, text = f"{system['projector']} to {system['image_tokens']}", system["decoder"]
        table.add_row(
            system["name"],
            system["kind"],
            f"{system['parameters'] / 1e6:,.0f} M",
            f"{system['encoder']} at {system['image_px']} px",
            between,
            text,
            system["basis"],
        )
    return table
