"""Show bars on stderr: how many of some things are done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from moetool.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


@contextmanager
def show_bar(unit: str, *, is_quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """Yield a function that shows how many of some things are done, on a line that vanishes.

    It takes the number that is done, the number of all, and the name of the last. It shows nothing
    if asked to be quiet, or if stderr is not a terminal.

    Args:
        unit: The name of the things, such as `models`.
    """
    if is_quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.progress import TextColumn, TimeElapsedColumn

    columns = (TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with build_bar(unit, columns) as progress:
        task = progress.add_task("", total=None, visible=False)
        yield lambda num_done, num_all, name: progress.update(
            task, completed=num_done, total=num_all, description=printable(name), visible=True
        )


def build_bar(unit: str, columns: Iterable[ProgressColumn], *, label: str = "") -> Progress:
    """Return a bar with the number of things that are done, which vanishes in the end.

    Args:
        unit: The name of the things, such as `models`.
        columns: What follows the number.
        label: What stands before the bar.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    # A column's text is a format.
    shown = printable(label).replace("{", "{{").replace("}", "}}")
    return Progress(
        *([TextColumn(shown, markup=False)] if label else []),
        BarColumn(),
        TextColumn(f"{{task.completed:,.0f}} of {{task.total:,.0f}} {unit}", markup=False),
        *columns,
        console=Console(stderr=True),
        transient=True,
    )
