"""Run `moetool route-trace`: record which experts each token goes to."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_model_files, list_prompt_files
from moetool.cli.options import generation as generating
from moetool.cli.options import prompts as prompt_options
from moetool.cli.options import recording
from moetool.cli.options.recording import TraceFormat
from moetool.cli.options.shared import ForceOption, RevisionOption, TrustOption
from moetool.cli.options.values import parse_layers
from moetool.cli.output import is_file
from moetool.errors import UsageError
from moetool.memory.scenario import CacheKind, Dtype

if TYPE_CHECKING:
    from moetool.trace.metadata import TraceMetadata
    from moetool.trace.writing.writer import TraceSink
    from moetool.tracing.generation_options import GenerationOptions
    from moetool.tracing.prompts.prompts import Prompt
    from moetool.tracing.prompts.tokens import SpecialTokens
    from moetool.tracing.running.texts import TextFile


EXAMPLES = (
    "moetool route-trace demo --prompts sample_prompts -o trace.parquet",
    "moetool route-trace org/model --prompts p.jsonl --device-map auto -o t.parquet",
    "moetool route-trace demo --prompt 'Hello' --max-new-tokens 20 --format csv",
)


@speaks_errors
def route_trace(
    model: recording.Model,
    prompts: prompt_options.Prompts = None,
    prompt: prompt_options.PromptOption = None,
    limit: prompt_options.Limit = None,
    chat: prompt_options.Chat = False,
    special_tokens: prompt_options.SpecialTokensOption = True,
    max_prompt_tokens: prompt_options.MaxPromptTokens = None,
    id_field: prompt_options.IdField = "id",
    text_field: prompt_options.TextField = "text",
    domain_field: prompt_options.DomainField = "domain",
    batch_size: recording.BatchSize = 8,
    dtype: recording.DtypeOption = Dtype.AUTO,
    device: recording.Device = None,
    device_map: recording.DeviceMap = None,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    layers: recording.Layers = None,
    probabilities: recording.Probabilities = False,
    allow_inexact: recording.AllowInexact = False,
    max_new_tokens: generating.MaxNewTokens = None,
    temperature: generating.Temperature = None,
    top_p: generating.TopP = None,
    seed: generating.Seed = 0,
    cache: generating.CacheOption = CacheKind.DYNAMIC,
    save_text: generating.SaveText = None,
    output: recording.Output = None,
    output_format: recording.Format = None,
    force: ForceOption = False,
    quiet: recording.QuietOption = False,
) -> None:
    """Record which experts each token goes to, one row per chosen expert.

    Rows go to --output (.parquet or .csv), or as CSV to stdout in a pipe. On a terminal without
    --output, only the summary is shown. Progress and summary go to stderr.
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
        dtype=None if dtype is Dtype.AUTO else dtype.value,
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
    from moetool.analysis.routing_summary import summarize_routing
    from moetool.report.trace_summary import render_trace_summary

    wrote = output if is_file(output) else None
    summary = render_trace_summary(
        run.metadata,
        summarize_routing(run.counts),
        num_rows=run.num_rows,
        elapsed_s=time.monotonic() - started,
        wrote=wrote,
        wrote_bytes=wrote.stat().st_size if wrote else 0,
        streamed=wrote is None and _keeps_rows(output, output_format),
        texts=save_text,
    )
    observer.summarize(summary)


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
    if output is not None and is_file(output):
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

    if with_probabilities and not is_file(output):
        raise UsageError(
            "--probabilities are written next to the trace, so the trace must go to a file.",
            hint="Add -o trace.parquet.",
        )
    if output is not None and is_file(output):
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
