"""`nas reference`: the published models, as the product knows them."""

from __future__ import annotations

import typer

from nas.commands.options import DEFAULT_STORAGE, AsJson, Device, Name, Runtime, Storage

reference_app = typer.Typer(help="Published vision-language models, at full size.", no_args_is_help=True)


@reference_app.command("list")
def reference_list(as_json: AsJson = False) -> None:
    """List them: what they do, parameters, parts, and where their description stands."""
    from nas import screen
    from nas.predict import told_systems

    systems = told_systems()
    if as_json:
        screen.print_json(systems)
    else:
        screen.out.print(screen.systems_table(systems))
        screen.out.print("price one: nas predict NAME --device DEVICE --quant w4a16", markup=False)


@reference_app.command("beside")
def reference_beside(
    storage: Storage = DEFAULT_STORAGE,
    experiment: Name = None,
    device: Device = None,
    runtime: Runtime = None,
    as_json: AsJson = False,
) -> None:
    """Set a stored front beside every published model, on any device: what beats it, what is as good and faster.

    With --json in each precision, else in the one in which the model holds out best.
    """
    from nas import query, screen
    from nas.beside import as_json as standing_json
    from nas.beside import hardest, standings
    from nas.commands.opened import opened
    from nas.errors import NasError

    with opened(storage, experiment, device, runtime) as (archive, profile):
        found = standings(query.front(archive, profile), archive.experiment, profile)
        if not found:
            raise NasError(f"{archive.experiment.name} was not scored by published results, so nothing compares them")
        if as_json:
            screen.print_json([standing_json(each) for each in found])
        else:
            screen.out.print(screen.beside_table(hardest(found), profile))
            screen.out.print(
                "each in the precision in which it holds out best; ahead: by how many points of the mean score what "
                "beats it is expected to lead, nine in ten; faster: the soonest answer of those that score as high",
                markup=False,
            )
