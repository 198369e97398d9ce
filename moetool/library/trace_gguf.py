"""Trace a GGUF model through llama.cpp, into a trace like any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moetool.checkpoint.gguf.files import open_gguf
from moetool.errors import DenseModelError, InputError
from moetool.interchange.imports.runs import DECODER, Facts, LayerChoices, TokenRun, TraceImport
from moetool.interchange.imports.shapes import make_shapes
from moetool.interchange.imports.write import ImportResult, write_trace
from moetool.printable import printable
from moetool.trace.writing.targets import check_target
from moetool.tracing.llama_cpp.record import LlamaCppOptions, RecordedPrompt, record_prompts

if TYPE_CHECKING:
    from moetool.tracing.prompts.prompts import Prompt

_NAME = "llama.cpp"
_PREFILL = 0
_NO_TEXTS = (
    "The tokens' texts are not recorded: token_id has their ids in the file's own vocabulary."
)


def trace_gguf(
    path: Path,
    prompts: Sequence[Prompt],
    output: Path,
    *,
    options: LlamaCppOptions | None = None,
    overwrite: bool = False,
) -> ImportResult:
    """Run prompts through llama.cpp, write each layer's decisions as a trace, and describe it.

    Prompts are read, not continued. The decisions are those that the running llama.cpp carries out,
    in the file's own types.

    Args:
        path: The GGUF file, any part of a split one, or a folder with one model.
        prompts: See `read_prompts`.
        output: The .parquet or .csv file to write.
        options: How llama.cpp runs the model.
        overwrite: Replace an existing file.

    Raises:
        InputError: The file can't be read or run, or llama.cpp is not installed.
        DenseModelError: The file states no experts.
        UntraceableError: llama.cpp crashed, or showed no decisions.
        UsageError: The output can't be written.
    """
    model = open_gguf(path)
    check_target(output, replace_existing=overwrite, inputs=[Path(p.path) for p in model.parts])
    num_experts, top_k = (model.read_count(f"expert_{name}count") for name in ("", "used_"))
    if not num_experts:
        raise DenseModelError(
            f"'{printable(path)}' is a dense model: it has no experts to route to.",
            hint="Name a Mixture-of-Experts model.",
        )
    if not prompts:
        raise InputError("There are no prompts to trace.", hint="Name some with --prompts.")
    facts = Facts(_NAME, model=str(path), num_experts=num_experts, top_k=top_k)
    facts.note(_NO_TEXTS)
    recorded = record_prompts(
        model.path, [prompt.text for prompt in prompts], options or LlamaCppOptions()
    )
    opened = TraceImport(
        runs=_list_runs(recorded, prompts),
        columns=frozenset({"domain", "phase", "token_id", "rank", "weight"}),
        facts=facts,
    )
    shapes = make_shapes(layers=None, num_layers=None, num_experts=None, top_k=None, of_model=None)
    return write_trace(opened, shapes, output, overwrite=overwrite)


def _list_runs(recorded: Iterator[RecordedPrompt], prompts: Sequence[Prompt]) -> Iterator[TokenRun]:
    for prompt, found in zip(prompts, recorded, strict=True):
        count = len(found.tokens)
        yield TokenRun(
            source=prompt.origin,
            prompt_id=prompt.prompt_id,
            position=np.arange(count, dtype=np.int64),
            layers=[
                LayerChoices(DECODER, each.layer, each.experts, each.weights)
                for each in found.layers
            ],
            domain=prompt.domain,
            phase=np.full(count, _PREFILL, dtype=np.int64),
            token_id=np.array(found.tokens, dtype=np.int64),
        )
