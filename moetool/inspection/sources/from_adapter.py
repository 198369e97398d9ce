"""The inspection of an adapter: what it adds to its base model."""

from __future__ import annotations

from dataclasses import replace

from moetool.checkpoint.layouts.adapter import find_base
from moetool.checkpoint.subject import Subject
from moetool.inspection.figures import Adapter
from moetool.inspection.result import Inspection
from moetool.printable import printable


def add_base(added: Inspection, subject: Subject, base: Inspection | None) -> Inspection:
    """Return the inspection of an adapter together with its base model.

    Args:
        added: Of the adapter's own tensors.
        subject: The adapter.
        base: Of its base model; None if the catalogue does not have it.
    """
    assert subject.adapter is not None
    assert added.parameters is not None
    named, _ = find_base(subject.adapter)
    method, rank = subject.adapter.get("peft_type"), subject.adapter.get("r")
    parameters = base.parameters if base else None
    total = parameters.total if parameters else None
    active = parameters.active_params if parameters else None
    note = "These are the parameters that the adapter adds; its base model's are not among them."
    if named is None:
        note += " The adapter names no base model."
    elif base is None:
        note += f" The base model's are unknown: the catalogue does not have {printable(named)}."
    return replace(
        added,
        notes=(note, *added.notes),
        adapter=Adapter(
            method=printable(method) if isinstance(method, str) else None,
            rank=rank if type(rank) is int else None,
            base=named,
            base_params=total,
            base_active_params=active,
            params=_add(total, added.parameters.total),
            active_params=_add(active, added.parameters.active_params),
        ),
    )


def _add(base: int | None, added: int | None) -> int | None:
    return None if base is None or added is None else base + added
