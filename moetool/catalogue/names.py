"""The demonstration model's name, and the folder of its checkpoint."""

from importlib.resources import files
from pathlib import Path

DEMO = "demo"


def demo_folder() -> Path:
    """Return the folder of the demonstration checkpoint that ships with moetool."""
    return Path(str(files("moetool.catalogue").joinpath("demo")))
