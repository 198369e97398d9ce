"""Write a placement as the file that an engine loads, and say how it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from moetool.errors import UsageError
from moetool.interchange.exports import json_files, tensor_files, tensorrt_llm
from moetool.interchange.exports.slots import SlotPlan, say_layers
from moetool.wording import join_words


class Engine(StrEnum):
    """Tools that load a placement from a file."""

    SGLANG = "sglang"
    TENSORRT_LLM = "tensorrt-llm"
    VLLM_ASCEND = "vllm-ascend"
    EPLB = "eplb"
    KTRANSFORMERS = "ktransformers"


@dataclass(frozen=True)
class Format:
    """The file of an engine.

    Attributes:
        suffixes: Of the file's name; the engine, or people, tell the format by it.
        render: Returns its bytes.
        explain: Returns the options that use the file, given its name.
        has_every_layer: Whether it has a row for each hidden layer, dense ones included.
    """

    suffixes: tuple[str, ...]
    render: Callable[[SlotPlan], bytes]
    explain: Callable[[SlotPlan, str], str]
    has_every_layer: bool = False


FORMATS: Mapping[Engine, Format] = {
    Engine.SGLANG: Format(
        (".json",), json_files.render_sglang, json_files.explain_sglang, has_every_layer=True
    ),
    Engine.TENSORRT_LLM: Format((".yaml", ".yml"), tensorrt_llm.render, tensorrt_llm.explain),
    Engine.VLLM_ASCEND: Format(
        (".json",), json_files.render_vllm_ascend, json_files.explain_vllm_ascend
    ),
    Engine.EPLB: Format((".pt",), tensor_files.render_eplb, tensor_files.explain_eplb),
    Engine.KTRANSFORMERS: Format(
        (".pt",),
        tensor_files.render_ktransformers,
        tensor_files.explain_ktransformers,
        has_every_layer=True,
    ),
}


def list_remarks(engine: Engine, plan: SlotPlan) -> tuple[str, ...]:
    """Return what a reader of the file should know, as sentences."""
    if FORMATS[engine].has_every_layer:
        unrouted = plan.list_unrouted()
        if not unrouted:
            return ()
        return (
            f"the trace has no routing in {say_layers(unrouted)}, so the file treats "
            f"{'it' if len(unrouted) == 1 else 'them'} as dense",
        )
    if engine is Engine.EPLB:
        return ()
    return (
        f"{engine} needs every routed layer of the model; the file has {say_layers(plan.layers)}",
    )


def check_suffix(engine: Engine, path: Path) -> None:
    """Check the name of a file for an engine.

    Raises:
        UsageError: It has the suffix of another format.
    """
    suffixes = FORMATS[engine].suffixes
    if path.suffix not in suffixes:
        raise UsageError(
            f"'{path}' is not a name for a file that {engine} loads.",
            hint=f"End the name in {join_words(suffixes, last='or')}.",
        )
