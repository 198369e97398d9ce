"""`moetool route-trace`: which experts does each token go to?"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_model_files, list_prompt_files
from moetool.cli.options import parse_layers
from moetool.errors import UsageError

if TYPE_CHECKING:
    from moetool.trace.metadata import TraceMetadata
    from moetool.trace.writing.writer import TraceSink
    from moetool.tracing.generation_options import GenerationOptions
    from moetool.tracing.prompts.prompts import Prompt
    from moetool.tracing.prompts.tokens import SpecialTokens
    from moetool.tracing.running.texts import TextFile


class TraceFormat(StrEnum):
    """How a trace is written."""

    PARQUET = "parquet"
    CSV = "csv"


class Dtype(StrEnum):
    """What the weights are converted to."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class CacheKind(StrEnum):
    """Which of transformers' caches generation uses."""

    DYNAMIC = "dynamic"
    STATIC = "static"


@speaks_errors
def route_trace(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A folder, a Hub id (org/name), or 'demo'.",
            show_default=False,
        ),
    ],
    prompts: Annotated[
        str | None,
        typer.Option(
            help="A .jsonl, .csv, .parquet or .txt file, a folder of them, or - for JSONL on stdin."
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="One prompt, instead of --prompts.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="A .parquet or .csv file, or - for CSV on stdout (the default in a pipe).",
        ),
    ] = None,
    output_format: Annotated[
        TraceFormat | None, typer.Option("--format", help="By default what the suffix says.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Prompts that go through the model together.")
    ] = 8,
    dtype: Annotated[Dtype | None, typer.Option(help="By default the checkpoint's own.")] = None,
    device: Annotated[str | None, typer.Option(help="By default a GPU, if there is one.")] = None,
    device_map: Annotated[
        str | None,
        typer.Option(
            help="Spread the model: auto (CPU and disk take what no GPU holds), balanced, "
            "sequential, or a .json file of module paths and devices."
        ),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Only these layers, as in 0,2-5.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N prompts.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Send each prompt through the chat template.")
    ] = False,
    special_tokens: Annotated[
        bool, typer.Option(help="Let the tokenizer add tokens such as <s>.")
    ] = True,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Cut prompts after N tokens.")
    ] = None,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities", help="Also write the routers' probabilities, next to the output."
        ),
    ] = False,
    allow_inexact: Annotated[
        bool,
        typer.Option(
            "--allow-inexact",
            help="Trace also models whose experts don't carry out what their router chose.",
        ),
    ] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Continue each prompt, and trace this too.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Sample; by default the most likely token is taken.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample among tokens of this total probability.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of sampling.")] = 0,
    cache: Annotated[
        CacheKind, typer.Option(help="Which KV cache to write with.")
    ] = CacheKind.DYNAMIC,
    save_text: Annotated[
        Path | None, typer.Option(help="A .jsonl file for what the model wrote.")
    ] = None,
    id_field: Annotated[str, typer.Option(help="The prompts' column of ids.")] = "id",
    text_field: Annotated[str, typer.Option(help="The prompts' column of texts.")] = "text",
    domain_field: Annotated[str, typer.Option(help="The prompts' column of labels.")] = "domain",
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a Hub repository.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code from the checkpoint.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="No progress and no summary.")
    ] = False,
) -> None:
    """Record which experts each token goes to, one row for every expert chosen.

    Rows go to --output (.parquet or .csv), or as CSV to stdout in a pipe; on a terminal without
    --output only the summary is shown. Progress and summary go to stderr.
    """
    from moetool.checkpoint.reference import resolve_model
    from moetool.cli.progress import TerminalObserver
    from moetool.tracing.generation_options import choose_generation
    from moetool.tracing.trace_model import TraceOptions, trace_model

    reference = resolve_model(model)
    inputs = [*list_model_files([reference]), *list_prompt_files(prompts)]
    if device_map is not None:
        inputs.append(Path(device_map))
    open_sink = _choose_sink(
        output, output_format, force=force, with_probabilities=probabilities, inputs=inputs
    )
    generation = choose_generation(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        cache=cache.value,
    )
    if device is not None and device_map is not None:
        raise UsageError("--device and --device-map exclude each other.", hint="Leave one out.")
    options = TraceOptions(
        revision=revision,
        trust_remote_code=trust_remote_code,
        dtype=dtype.value if dtype else None,
        device=device,
        device_map=device_map,
        batch_size=batch_size,
        layers=parse_layers(layers),
        special_tokens=_choose_special_tokens(chat=chat, special_tokens=special_tokens),
        max_prompt_tokens=max_prompt_tokens,
        with_probabilities=probabilities,
        allow_inexact=allow_inexact,
        generation=generation,
    )
    open_texts = _choose_texts(save_text, generation, output=output, force=force, inputs=inputs)
    read = _read_prompts(prompts, prompt, fields=(id_field, text_field, domain_field), limit=limit)
    started = time.monotonic()
    with TerminalObserver(is_quiet=quiet) as observer:
        run = trace_model(
            reference,
            read,
            options,
            open_sink=open_sink,
            observer=observer,
            open_texts=open_texts,
        )
    if quiet:
        return
    from moetool.analysis.lift import measure_lift
    from moetool.analysis.load import measure_load
    from moetool.report.trace_summary import print_routing_summary

    print_routing_summary(
        run.metadata,
        loads=measure_load(run.counts),
        lifts=measure_lift(run.counts),
        num_rows=run.num_rows,
        output=output,
        keeps_rows=_keeps_rows(output, output_format),
        texts=save_text,
        elapsed_s=time.monotonic() - started,
    )


def _read_prompts(
    prompts: str | None, prompt: str | None, *, fields: tuple[str, str, str], limit: int | None
) -> list[Prompt]:
    from moetool.tracing.prompts.files import PromptFields
    from moetool.tracing.prompts.prompts import make_prompt, read_prompts

    if (prompts is None) == (prompt is None):
        raise UsageError(
            "Give either --prompts or --prompt."
            if prompts is None
            else "--prompts and --prompt exclude each other.",
            hint="--prompts sample_prompts takes a file or folder, --prompt 'a text' one text.",
        )
    if prompt is not None:
        return make_prompt(prompt)
    assert prompts is not None
    prompt_id, text, domain = fields
    named = PromptFields(prompt_id=prompt_id, text=text, domain=domain)
    return read_prompts(prompts, fields=named, limit=limit)


def _choose_texts(
    path: Path | None,
    generation: GenerationOptions | None,
    *,
    output: Path | None,
    force: bool,
    inputs: Sequence[Path],
) -> Callable[[], TextFile] | None:
    """Return what opens the file of texts, after checking that it can be opened."""
    from moetool.trace.writing.writer import list_places
    from moetool.tracing.running.texts import TextFile, check_text_path, list_text_places

    if path is None:
        return None
    if generation is None:
        raise UsageError(
            "--save-text keeps what the model writes, and nothing was asked of it.",
            hint="Add --max-new-tokens.",
        )
    if output is not None and str(output) != "-":
        taken = {_spell_out(place) for place in list_places(output)}
        if both := [place for place in list_text_places(path) if _spell_out(place) in taken]:
            raise UsageError(
                f"--output and --save-text both name '{both[0]}'.", hint="Name two files."
            )
    check_text_path(path, replace_existing=force, inputs=inputs)
    return lambda: TextFile(path, replace_existing=force)


def _spell_out(path: Path) -> str:
    """Return a path in the one spelling that it has, apart from a link in its last part."""
    return os.path.normcase(path.parent.resolve() / path.name)


def _choose_special_tokens(*, chat: bool, special_tokens: bool) -> SpecialTokens:
    if chat:
        return "chat template"
    return "tokenizer" if special_tokens else "none"


def _keeps_rows(output: Path | None, output_format: TraceFormat | None) -> bool:
    """Return whether rows are written: not where they would fill a terminal unasked."""
    return output is not None or output_format is not None or not sys.stdout.isatty()


def _choose_sink(
    output: Path | None,
    output_format: TraceFormat | None,
    *,
    force: bool,
    with_probabilities: bool,
    inputs: Sequence[Path],
) -> Callable[[TraceMetadata], TraceSink]:
    """Return what opens the sink, after checking that it can be opened."""
    from moetool.trace.writing.writer import NoTrace, TraceFile, TraceStream, check_target

    is_file = output is not None and str(output) != "-"
    if with_probabilities and not is_file:
        raise UsageError(
            "--probabilities are written next to the trace, so the trace must go to a file.",
            hint="Add -o trace.parquet.",
        )
    if is_file:
        assert output is not None
        check_target(
            output,
            replace_existing=force,
            with_probabilities=with_probabilities,
            inputs=inputs,
        )
        if output_format and output.suffix != f".{output_format.value}":
            raise UsageError(
                f"--format {output_format.value} contradicts '{output}'.", hint="Leave one out."
            )
        return lambda metadata: TraceFile(output, metadata=metadata, replace_existing=force)
    if output_format is TraceFormat.PARQUET:
        raise UsageError("Parquet can't be written to stdout.", hint="Add -o trace.parquet.")
    if not _keeps_rows(output, output_format):
        return lambda _: NoTrace()
    return lambda _: TraceStream(sys.stdout.buffer)
