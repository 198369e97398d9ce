"""Trace a GGUF model through llama.cpp, into a trace like any other."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from moetool.anatomy.gguf.table import count_gguf
from moetool.checkpoint.gguf.files import GgufModel, open_gguf
from moetool.errors import DenseModelError, InputError, UsageError
from moetool.inspection.gguf.facts import read_facts
from moetool.interchange.imports.runs import DECODER, Facts, LayerChoices, TokenRun, TraceImport
from moetool.interchange.imports.shapes import make_shapes
from moetool.interchange.imports.write import ImportResult, write_trace
from moetool.library.trace import Trace
from moetool.printable import printable
from moetool.trace.decisions import PHASES
from moetool.trace.reading.counts import count_experts
from moetool.trace.reading.reader import open_trace
from moetool.trace.writing.targets import check_target
from moetool.tracing.llama_cpp.options import LlamaCppOptions
from moetool.tracing.llama_cpp.record import RecordedPrompt, record_prompts
from moetool.tracing.prompts.prompts import Prompt, hash_prompts

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NAME = "llama.cpp"
_PACKAGES = ("llama-cpp-python", "numpy", "pyarrow")


def trace_gguf(
    path: Path,
    prompts: Sequence[Prompt],
    output: Path,
    *,
    options: LlamaCppOptions | None = None,
    overwrite: bool = False,
) -> ImportResult:
    """Run prompts through llama.cpp, write each layer's decisions as a trace, and describe it.

    Prompts run one after the other. The decisions are those that the running llama.cpp carries out,
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
        UntraceableError: llama.cpp crashed, or routes in a way that is not known.
        UsageError: The output can't be written, or a layer to record does not route.
    """
    model = open_gguf(path)
    check_target(output, replace_existing=overwrite, inputs=[Path(p.path) for p in model.parts])
    num_experts, top_k = (model.read_count(f"expert_{name}count") for name in ("", "used_"))
    routed = {layer for _, layer in count_gguf(model).num_experts}
    if not num_experts or not routed:
        raise DenseModelError(
            f"'{printable(path)}' is a dense model: it has no experts to route to.",
            hint="Name a Mixture-of-Experts model.",
        )
    options = options or LlamaCppOptions()
    _check_layers(options.layers, routed)
    texts = _list_texts(prompts)
    facts = Facts(_NAME, model=str(path), num_experts=num_experts, top_k=top_k)
    facts.of_run = _describe_run(model, prompts, options)
    recorded = record_prompts(model.path, texts, options, routed_layers=routed)
    opened = TraceImport(
        runs=_list_runs(recorded, prompts, facts),
        columns=frozenset({"domain", "phase", "token_id", "token", "rank", "weight"}),
        facts=facts,
    )
    shapes = make_shapes(layers=None, num_layers=None, num_experts=None, top_k=None, of_model=None)
    return write_trace(opened, shapes, output, overwrite=overwrite)


def make_gguf_trace(
    path: Path,
    prompts: Sequence[Prompt],
    output: Path | None,
    *,
    options: LlamaCppOptions,
    overwrite: bool,
) -> Trace:
    """Do the same, and return the trace, whose rows are in memory if no output is named.

    See `trace_gguf` for arguments and errors.
    """
    if output is not None:
        return _open(trace_gguf(path, prompts, output, options=options, overwrite=overwrite))
    with TemporaryDirectory(prefix="moetool-") as folder:
        rows = Path(folder) / "trace.parquet"
        trace = _open(trace_gguf(path, prompts, rows, options=options))
        source = trace.open()
        return replace(trace, path=None, tables=tuple(source.iter_tables(source.columns)))


def _open(written: ImportResult) -> Trace:
    """Return the trace that was written and, on the way, checked."""
    source = open_trace(written.path)
    assert source.metadata is not None
    counts = count_experts(source, by="domain", validate=False)
    return Trace(source.metadata, written.num_rows, counts, written.path)


def _check_layers(wanted: frozenset[int] | None, routed: Collection[int]) -> None:
    missing = sorted((wanted or frozenset()) - set(routed))
    if missing:
        raise UsageError(
            f"Layer {missing[0]} has no experts.",
            hint=f"Name layers from {min(routed)} to {max(routed)}, or leave out --layers.",
        )


def _list_texts(prompts: Sequence[Prompt]) -> list[str]:
    if not prompts:
        raise InputError("There are no prompts to trace.", hint="Name some with --prompts.")
    for prompt in prompts:
        if prompt.messages is not None:
            raise InputError(
                f"{prompt.origin}: prompt '{printable(prompt.prompt_id)}' is a conversation, and "
                "chat templates of GGUF files are not applied.",
                hint="Write it as one text, with the template's tokens.",
            )
    return [prompt.text for prompt in prompts]


def _describe_run(
    model: GgufModel, prompts: Sequence[Prompt], options: LlamaCppOptions
) -> dict[str, object]:
    """Return what is known of a run before it, as fields of the trace's metadata."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "model_type": model.architecture,
        "quantization": read_facts(model).file_type,
        "special_tokens": "tokenizer" if options.special_tokens else "none",
        "max_prompt_tokens": options.max_prompt_tokens,
        "max_new_tokens": options.max_new_tokens,
        "prompts_sha256": hash_prompts(prompts),
        "batch_size": 1,
        "versions": versions,
    }


def _list_runs(
    recorded: Iterator[RecordedPrompt], prompts: Sequence[Prompt], facts: Facts
) -> Iterator[TokenRun]:
    """Yield what was recorded, and count the new tokens and the cut prompts."""
    num_new_tokens = num_cut = 0
    for prompt, found in zip(prompts, recorded, strict=True):
        num_new_tokens += found.num_new_tokens
        num_cut += found.is_cut
        facts.of_run |= {"num_new_tokens": num_new_tokens, "num_cut_prompts": num_cut}
        yield TokenRun(
            source=prompt.origin,
            prompt_id=prompt.prompt_id,
            position=np.arange(len(found.tokens), dtype=np.int64),
            layers=[
                LayerChoices(DECODER, each.layer, each.experts, each.weights)
                for each in found.layers
            ],
            domain=prompt.domain,
            phase=_list_phases(found),
            token_id=np.array(found.tokens, dtype=np.int64),
            token=found.texts,
        )


def _list_phases(found: RecordedPrompt) -> NDArray[np.int64]:
    phases = np.full(len(found.tokens), PHASES.index("decode"), dtype=np.int64)
    phases[: found.num_prompt_tokens] = PHASES.index("prefill")
    return phases
