"""What is told of long work where there is no terminal."""

from __future__ import annotations

from nas.screen import console


def test_a_line_for_every_tenth_and_every_minute() -> None:
    clock = [0.0]
    with console.err.capture() as shown:
        show = console._line_progress(lambda: clock[0])
        for done, second in (
            (0, 0.0),
            (1, 30.0),
            (2, 59.0),
            (3, 60.0),
            (4, 61.0),
            (20, 62.0),
            (21, 121.0),
            (22, 122.0),
        ):
            clock[0] = second
            show("search", done, 200)
        show("report", 0, 3, "tables")
    assert shown.get().splitlines() == [
        "search: 0 of 200 ",
        "search: 3 of 200 ",
        "search: 20 of 200 ",
        "search: 22 of 200 ",
        "report: 0 of 3 tables",
    ]
