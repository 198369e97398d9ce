"""`moetool route-trace`: which experts does each token go to?"""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_model_files, list_prompt_files
from moetool.cli.options import parse_layers


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
    from moetool.trace.writing.sink_choice import choose_sink
    from moetool.tracing.options import TraceOptions, choose_generation
    from moetool.tracing.prompts.files import PromptFields
    from moetool.tracing.prompts.prompts import choose_prompts
    from moetool.tracing.prompts.tokens import choose_special_tokens
    from moetool.tracing.running.texts import choose_texts
    from moetool.tracing.trace_model import trace_model

    reference = resolve_model(model)
    inputs = [*list_model_files([reference]), *list_prompt_files(prompts)]
    if device_map is not None:
        inputs.append(Path(device_map))
    sink = choose_sink(
        output,
        output_format,
        replace_existing=force,
        with_probabilities=probabilities,
        inputs=inputs,
    )
    options = TraceOptions(
        revision=revision,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        device=device,
        device_map=device_map,
        batch_size=batch_size,
        layers=parse_layers(layers),
        special_tokens=choose_special_tokens(chat=chat, special_tokens=special_tokens),
        max_prompt_tokens=max_prompt_tokens,
        with_probabilities=probabilities,
        allow_inexact=allow_inexact,
        generation=choose_generation(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            cache=cache,
        ),
    )
    open_texts = choose_texts(
        save_text,
        generation=options.generation,
        output=sink.target,
        replace_existing=force,
        inputs=inputs,
    )
    fields = PromptFields(prompt_id=id_field, text=text_field, domain=domain_field)
    read = choose_prompts(prompts, prompt, fields=fields, limit=limit)
    started = time.monotonic()
    with TerminalObserver(is_quiet=quiet) as observer:
        run = trace_model(
            reference,
            read,
            options,
            open_sink=sink.open,
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
        keeps_rows=sink.keeps_rows,
        texts=save_text,
        elapsed_s=time.monotonic() - started,
    )
