"""`nas supernet`: train one set of weights for a whole space, and ask it for a model's accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nas.commands.options import DEFAULT_STORAGE, AsJson, ConfigOrId, Name, Storage

supernet_app = typer.Typer(help="Train or ask the weights that all models of a space share.", no_args_is_help=True)


@supernet_app.command("train")
def supernet_train(
    space: Annotated[str, typer.Option(help="The space.")] = "tiny",
    steps: Annotated[int, typer.Option(min=10, help="Steps in all; more than last time go on from there.")] = 12000,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, data and slices.")] = 0,
    folder: Annotated[Path, typer.Option("--folder", "-o", help="Where checkpoint and weights are kept.")] = Path(
        "runs/supernet-tiny"
    ),
    device: Annotated[str, typer.Option(help="cpu, or cuda where there is one.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Processor threads.")] = 2,
    checkpoint_s: Annotated[float, typer.Option(min=0, help="Seconds between checkpoints.")] = 120.0,
    as_json: AsJson = False,
) -> None:
    """Train a supernet, or go on with it; ends with its weights and a page with its loss curves."""
    from nas import screen
    from nas.proxies.supernet_work import train
    from nas.report.curves import write_curves

    with screen.progress_bar() as progress:
        found = train(space, steps, seed, folder, device, threads, checkpoint_s, progress)
    found["report"] = str(write_curves(f"supernet of {space}", found["curve"], folder / "report.html"))
    if as_json:
        screen.print_json(found)
    else:
        screen.out.print(
            f"{found['steps']} steps in {found['seconds']:.0f} s; weights: {found['weights']}; curves: "
            f"{found['report']}",
            markup=False,
            soft_wrap=True,
        )


@supernet_app.command("evaluate")
def supernet_evaluate(
    config: ConfigOrId,
    weights: Annotated[Path | None, typer.Option(help="Weights of your own; the product's by default.")] = None,
    storage: Storage = DEFAULT_STORAGE,
    experiment: Name = None,
    as_json: AsJson = False,
) -> None:
    """The accuracy of a model as a slice of the supernet, by kind of question."""
    from nas import predict, screen
    from nas.proxies.supernet_work import evaluate_slice

    found = evaluate_slice(predict.generating(predict.config_of(config, storage, experiment)), weights)
    if as_json:
        screen.print_json(found)
    else:
        kinds = ", ".join(f"{kind} {share:.1%}" for kind, share in found["by_kind"].items())
        screen.out.print(
            f"{found['id']}: {found['accuracy']:.1%} of the validation questions ({kinds}); predicted from a slice, "
            f"{found['seconds']:.1f} s",
            markup=False,
            soft_wrap=True,
        )
