"""Names of models: the demonstration model's, and the names that come near to a text."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from moetool.catalogue.published import read_published_models, read_reported_systems

DEMO = "demo"

# Shorter texts are part of nearly every name.
_SHORTEST_PART = 3
_MOST_CLOSE = 3


@dataclass(frozen=True)
class NearNames:
    """The names that come near to a text, by how they do.

    Attributes:
        beginning: Those that begin with it or, if none does, contain it.
        close: Those that differ from it by a few letters, the closest first.
    """

    beginning: tuple[str, ...]
    close: tuple[str, ...]


def demo_folder() -> Path:
    """Return the folder of the demonstration checkpoint that ships with moetool."""
    return Path(str(files("moetool.catalogue").joinpath("demo")))


def find_near_names(text: str) -> NearNames:
    """Return the names of the catalogue that someone who typed a text may have meant.

    A Hub id without its organisation stands for the whole id.
    """
    typed = "-".join(text.lower().replace("_", "-").split())
    published = read_published_models()
    names = [DEMO, *published, *read_reported_systems()]
    hub_ids = {model.hub_id.partition("/")[2].lower(): model.hub_id for model in published.values()}
    if typed in hub_ids:
        return NearNames((hub_ids[typed],), ())
    beginning = [name for name in names if typed and name.startswith(typed)]
    if not beginning and len(typed) >= _SHORTEST_PART:
        beginning = [name for name in names if typed in name]
    return NearNames(
        tuple(beginning), tuple(difflib.get_close_matches(typed, names, n=_MOST_CLOSE))
    )


def find_published_name(hub_id: str) -> str | None:
    """Return the catalogue's name of a Hub repository, whatever its letters' case."""
    models = read_published_models().values()
    return next((each.name for each in models if each.hub_id.lower() == hub_id.lower()), None)
