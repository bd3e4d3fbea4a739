"""`nas reference`: the published models, as the product knows them."""

from __future__ import annotations

import typer

from nas.commands.options import AsJson

reference_app = typer.Typer(help="Published vision-language models, at full size.", no_args_is_help=True)


@reference_app.command("list")
def reference_list(as_json: AsJson = False) -> None:
    """List them: parameters, parts, and where their description stands."""
    from nas import screen
    from nas.predict import told_systems

    systems = told_systems()
    if as_json:
        screen.print_json(systems)
    else:
        screen.out.print(screen.systems_table(systems))
        screen.out.print("price one: nas predict NAME --device DEVICE --quant w4a16", markup=False)
