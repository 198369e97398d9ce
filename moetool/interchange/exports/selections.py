"""Selections of experts as the files of tools that fine-tune or prune."""

from __future__ import annotations

import json
import re
import shlex

from moetool.analysis.selection.result import Selection
from moetool.errors import UsageError
from moetool.interchange.exports.selection_formats import SelectionFormat
from moetool.plain import make_plain

_IDS = re.compile(r"\[\n([\d,\s]+)\]")
# What LoRA on target_parameters takes in PEFT 0.21.
_PEFT = {"target_modules": [], "lora_dropout": 0.0}


def render_selection(selection: Selection, kind: SelectionFormat) -> str:
    """Return a selection as the JSON that another tool takes.

    Raises:
        UsageError: The selection lacks what the file is made of, or ESFT can't express it.
    """
    if kind is SelectionFormat.ESFT:
        if len({layer.stack for layer in selection.layers}) > 1:
            raise UsageError(
                "ESFT names layers by number alone, and the model routes in several stacks.",
                hint="Choose layers of one stack with --layers, or --format json.",
            )
        return _write(selection.to_esft())
    if kind is SelectionFormat.LLM_COMPRESSOR:
        if selection.pruning is None:
            raise UsageError(
                "llm-compressor's list has the experts that stay, and none are dropped.",
                hint="Add a ratio of experts to drop: --prune-ratio 0.25.",
            )
        return _write(selection.pruning.retained)
    names = selection.freeze_list
    if names is None:
        raise UsageError(
            f"A file for {kind} is made of a freeze list, which the selection lacks.",
            hint="Ask for one: freeze_list=True.",
        )
    if kind is SelectionFormat.FREEZE_LIST:
        return _write(names)
    if not names.target_parameters:
        raise UsageError(
            "No parameter holds several experts, and PEFT's target_parameters name such.",
            hint="Name the modules of --export freeze-list in target_modules.",
        )
    return _write({"target_parameters": names.target_parameters, **_PEFT})


def explain_selection(kind: SelectionFormat, name: str) -> str:
    """Return what uses the file of this name."""
    if kind is SelectionFormat.ESFT:
        return f"python train.py --expert_config={shlex.quote(name)} (ESFT)"
    load = f"json.load(open({name!r}))"
    if kind is SelectionFormat.PEFT:
        return f"LoraConfig(r=…, **{load}) (PEFT)"
    if kind is SelectionFormat.FREEZE_LIST:
        return f"names = {load} and the loop in docs/questions/select.md"
    return f"{load}, the experts that stay in each block: no tool takes such a list as its input"


def _write(value: object) -> str:
    text = json.dumps(make_plain(value), allow_nan=False, indent=1)
    # Lists of ids on a line each; a line break in JSON is never part of a string.
    return _IDS.sub(lambda ids: f"[{' '.join(ids[1].split())}]", text) + "\n"
