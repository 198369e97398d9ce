"""References to models: the `MODEL` that a user typed, resolved without the network."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from moetool.catalogue.names import DEMO, demo_folder
from moetool.catalogue.published import read_published_models, read_reported_systems
from moetool.choices import take_text
from moetool.errors import InputError, UsageError

# The Hub's own rule for repository ids, with the organisation required.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w][\w.-]*")


class ModelKind(Enum):
    """The kind of thing that a model reference names."""

    FOLDER = "folder"
    CONFIG = "config.json"
    HUB = "Hub id"
    PUBLISHED = "catalogue name"
    REPORTED = "name of a system known from reports"


@dataclass(frozen=True)
class ModelReference:
    """A model someone named.

    Attributes:
        text: The name as typed.
        kind: What the name stands for.
        path: The folder, or the config.json; None for all others.
        hub_id: `org/name` on the Hub; None for local paths and reported systems.
    """

    text: str
    kind: ModelKind
    path: Path | None = None
    hub_id: str | None = None

    def check_revision(self, revision: str | None) -> None:
        """Check that a revision is only given for a Hub id.

        Raises:
            UsageError: It is given for something else.
        """
        if revision is not None and self.kind is not ModelKind.HUB:
            raise UsageError(
                f"'{self.text}' is local: it has no revision '{revision}'.",
                hint="Leave out --revision, or name a Hub id.",
            )


def resolve_model(text: str) -> ModelReference:
    """Return the model that `text` names.

    It may be a folder, a config.json, a Hub id, `demo`, or a catalogue name: that of a published
    model or of a system known from reports. An existing path takes precedence over a Hub id of the
    same spelling. Nothing is downloaded or opened.

    Raises:
        InputError: It is none of these.
        UsageError: It is not a string.
    """
    text = take_text(text, name="model")
    if not text.strip():
        raise InputError(
            "No model '': the name is empty.", hint="Name a folder, a Hub id, or 'demo'."
        )
    path = Path(text).expanduser()
    if text == DEMO:
        return ModelReference(text=text, kind=ModelKind.FOLDER, path=demo_folder())
    # os.path returns False where pathlib raises, for example for a text too long for a path.
    if os.path.isdir(path):
        return ModelReference(text=text, kind=ModelKind.FOLDER, path=path)
    if os.path.isfile(path):
        return _resolve_file(text, path)
    published = read_published_models()
    if text.lower() in published:
        hub_id = published[text.lower()].hub_id
        return ModelReference(text=text, kind=ModelKind.PUBLISHED, hub_id=hub_id)
    if text.lower() in read_reported_systems():
        return ModelReference(text=text, kind=ModelKind.REPORTED)
    if _HUB_ID.fullmatch(text) and not text.endswith(".json"):
        return ModelReference(text=text, kind=ModelKind.HUB, hub_id=text)
    raise _unknown_model(text)


def _resolve_file(text: str, path: Path) -> ModelReference:
    if path.suffix == ".json":
        return ModelReference(text=text, kind=ModelKind.CONFIG, path=path)
    if path.suffix == ".gguf":
        raise InputError(
            f"'{text}' is a GGUF file, llama.cpp's format, which moetool does not read yet.",
            hint="Name the original checkpoint: a folder or a Hub id with config.json and safetensors.",
        )
    raise InputError(
        f"'{text}' is a file, but not a config.json.",
        hint="Name the folder that holds the checkpoint.",
    )


def _unknown_model(text: str) -> InputError:
    if "/" in text or "\\" in text or text.startswith((".", "~")):
        return InputError(
            f"No model at '{text}': no such path, and not a Hub id.",
            hint="Hub ids look like org/name, for example Qwen/Qwen3-30B-A3B.",
        )
    known = [DEMO, *read_published_models(), *read_reported_systems()]
    close = difflib.get_close_matches(text.lower(), known, n=1)
    return InputError(
        f"No model '{text}': no such path, and not a catalogue name.",
        hint=f"Did you mean '{close[0]}'?"
        if close
        else "Name a folder, a Hub id such as Qwen/Qwen3-30B-A3B, or 'demo'.",
    )
