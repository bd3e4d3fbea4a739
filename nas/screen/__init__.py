"""What the command line shows: tables, progress, JSON. Milliseconds and megabytes appear only here and in reports."""

from nas.screen.benchmarks import show_fewshot, show_latency, show_proxies, show_searches, show_validation
from nas.screen.choosing import show_advice, show_chosen, show_compared, show_front, show_fronts
from nas.screen.console import err, out, print_json, progress_bar
from nas.screen.devices import devices_note, devices_table, facts_table, show_agreement, show_calibration, show_device
from nas.screen.models import (
    basis_line,
    beside_table,
    compressed_table,
    detail_table,
    front_models,
    front_table,
    measured_table,
    place_table,
    prediction_table,
    prediction_totals,
    systems_table,
)

__all__ = [
    "basis_line",
    "beside_table",
    "compressed_table",
    "detail_table",
    "devices_note",
    "devices_table",
    "err",
    "facts_table",
    "front_models",
    "front_table",
    "measured_table",
    "out",
    "place_table",
    "prediction_table",
    "prediction_totals",
    "print_json",
    "progress_bar",
    "show_advice",
    "show_agreement",
    "show_calibration",
    "show_chosen",
    "show_compared",
    "show_device",
    "show_fewshot",
    "show_front",
    "show_fronts",
    "show_latency",
    "show_proxies",
    "show_searches",
    "show_validation",
    "systems_table",
]
