"""The short names a model can be asked for by."""

import json
from functools import cache
from importlib.resources import files
from pathlib import Path

DEMO = "demo"


@cache
def read_published_models() -> dict[str, str]:
    """Return Hub ids by short name, for published models known without a network."""
    text = files("moetool.catalogue").joinpath("published.json").read_text(encoding="utf-8")
    models: dict[str, str] = json.loads(text)
    return models


def demo_folder() -> Path:
    """Return the folder of the demonstration checkpoint that ships with moetool."""
    return Path(str(files("moetool.catalogue").joinpath("demo")))
