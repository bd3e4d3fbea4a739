"""Rebuilds the static tables of shipped devices, and the counted cycles that come with the product.

    python -m experiments.shipped_tables [DEVICE ...]

Needs llvm-mca (Debian: llvm-19) and, for GPUs, nvcc. Counts are kept in the data folder, so a killed run goes on. The
kernels are those of the table as it is; `nas device estimate NAME` draws new ones.
"""

from __future__ import annotations

import gzip
import sys

from cost_models import table
from hardware_profiles import Basis, load, names
from hardware_profiles.catalog import SHIPPED
from hardware_profiles.cores import core_type
from nas.estimate import CYCLES, GPU_TILES, Store, described, estimate


def main() -> None:
    """Rebuild the named devices, or all."""
    for name in sys.argv[1:] or [name for name in names() if (SHIPPED / name).is_dir()]:
        profile = load(SHIPPED / name)
        rows = table.read(profile.kernels_csv)
        if not rows:
            print(f"{name}: has no table, and is priced by its sheet")
            continue
        if any(row.basis is not Basis.STATIC for row in rows.values()):
            print(f"{name}: its table is measured; left alone")
            continue
        if profile.runs_on == "gpu":
            refit(name)
            continue
        found = estimate(profile, list(rows), told)
        store = Store(described(profile), core_type(profile.llvm_cpu).mca)
        for outdated in store.shipped_files():
            outdated.unlink()
        CYCLES.mkdir(exist_ok=True)
        kept = {item.kernel: store.line(item) for item in store.read().values() if item.kernel in rows}
        packed = gzip.compress("".join(kept.values()).encode(), mtime=0)
        (CYCLES / f"{store.path.name}.gz").write_bytes(packed)
        print(f"{name}: {found.kernels} kernels, {len(packed)} bytes of cycles, failed: {found.failed}", flush=True)


def refit(name: str) -> None:
    """Fit the predictor of a device anew on its table as it is."""
    from cost_models.learned import LearnedModel

    model = LearnedModel.fit(load(SHIPPED / name), GPU_TILES)
    model.save()
    print(f"{name}: predictor fitted on {model.error.kernels} kernels")


def told(stage: str, done: float, total: float, note: str = "") -> None:
    """Progress on a line of its own, where there is any."""
    if done % 100 == 0:
        print(f"  {stage}: {done:g} of {total:g} {note}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
