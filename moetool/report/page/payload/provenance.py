"""Where the page's numbers come from, and what it leaves out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import moetool
from moetool.printable import printable
from moetool.report.page.contents import PageContents
from moetool.report.page.payload.values.names import show_model, show_path, show_sentence

_OF_COMMANDS = re.compile(r"--\w|[a-z]_[a-z]|loss")

# Names and values of a file may be of any length.
_LONGEST = 200

# Fields of a trace's metadata that say how it was made, and how the page names them.
_FIELDS = {
    "model_type": "family",
    "revision": "revision",
    "dtype": "dtype",
    "quantization": "quantization",
    "device": "device",
    "attention_implementation": "attention",
    "experts_implementation": "experts implementation",
    "imported_from": "imported from",
    "max_new_tokens": "new tokens asked for",
    "temperature": "temperature",
    "special_tokens": "special tokens",
    "prompts_sha256": "SHA-256 of the prompts",
}


def make_provenance(contents: PageContents) -> list[list[str]]:
    """Return pairs of a name and a value."""
    return [
        [
            printable(show_sentence(name), max_length=_LONGEST),
            printable(show_sentence(value), max_length=_LONGEST),
        ]
        for name, value in _list_facts(contents)
    ]


def _list_facts(contents: PageContents) -> Iterator[tuple[str, str]]:
    facts, metadata = contents.facts, contents.metadata
    if facts.trace is not None:
        yield "trace", show_path(facts.trace) or ""
    if facts.model is not None:
        yield "model", show_model(facts.model) or ""
    yield "complete", _show_flag(facts.complete)
    yield "exact", _show_flag(facts.exact)
    if metadata is not None:
        for field, name in _FIELDS.items():
            value = getattr(metadata, field)
            if value is not None:
                yield name, str(value)
        for package, number in metadata.versions.items():
            yield f"traced with {package}", number
        if metadata.moetool:
            yield "traced with moetool", metadata.moetool
    yield "page made with moetool", moetool.__version__


def make_notes(contents: PageContents) -> list[dict[str, Any]]:
    """Return the notes of all results, each with the name of what it is about, and once.

    Notes that name an option or a key of JSON are about commands, not about the page.
    """
    seen: set[str] = set()
    notes = []
    metadata = contents.metadata
    results = {
        "trace": metadata.notes if metadata and not contents.redacts_text else (),
        "balance": contents.balance.notes if contents.balance else (),
        "specialization": contents.specialization.notes if contents.specialization else (),
        "coactivation": contents.coactivation.notes if contents.coactivation else (),
        "placement": contents.placements[-1].notes if contents.placements else (),
        "cache": contents.caching.notes if contents.caching else (),
        "comparison": contents.comparison.notes if contents.comparison else (),
    }
    for about, sentences in results.items():
        for sentence in sentences:
            if sentence not in seen and not _OF_COMMANDS.search(sentence):
                seen.add(sentence)
                notes.append({"about": about, "text": show_sentence(sentence)})
    return notes


def _show_flag(flag: bool | None) -> str:
    return "unknown" if flag is None else "yes" if flag else "no"
