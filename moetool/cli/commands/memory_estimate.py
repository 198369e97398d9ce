"""`moetool memory-estimate`: how much memory does a model need, and what does it fit on?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_model_files, list_trace_files
from moetool.cli.options import ReportFormat, choose_report_format, parse_numbers
from moetool.memory.scenario import (
    NUM_NEW_TOKENS,
    Attention,
    CacheKind,
    Dtype,
    ExpertsImplementation,
    Scenario,
    Task,
)
from moetool.printable import printable
from moetool.quantized.kinds import Quantization, QuantizedExperts


@speaks_errors
def memory_estimate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Folders, config.json files, Hub ids (org/name), catalogue names "
            "(see `moetool models`), or 'demo'.",
            show_default=False,
        ),
    ],
    batch_size: Annotated[
        str, typer.Option(metavar="N,...", help="Sequences at once. Several sizes make a sweep.")
    ] = str(Scenario.batch_size),
    prompt_tokens: Annotated[
        str, typer.Option(metavar="N,...", help="Tokens of each sequence's prompt.")
    ] = str(Scenario.num_prompt_tokens),
    new_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Tokens that each sequence is continued by; by default "
            f"{NUM_NEW_TOKENS} with the task generate, none with the others.",
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="A GPU, such as h200 or rtx-4090, or an amount of memory, such as 24GiB: also "
            "its limits, offloading and speed. By default every known GPU is looked at."
        ),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="Of the weights; auto: the configuration's own.")
    ] = Dtype.AUTO,
    quantization: Annotated[
        Quantization, typer.Option(help="How bitsandbytes stores weights as they are loaded.")
    ] = Quantization.NONE,
    double_quantization: Annotated[
        bool, typer.Option("--double-quantization", help="Quantize 4-bit weights' scales too.")
    ] = False,
    experts: Annotated[
        QuantizedExperts,
        typer.Option(
            help="Under quantization. as-loaded: as transformers loads them, which leaves fused "
            "experts in their dtype. quantized: as if they were quantized as well."
        ),
    ] = QuantizedExperts.AS_LOADED,
    task: Annotated[
        Task,
        typer.Option(
            help="generate: transformers' generate. forward: one call, logits of every position. "
            "trace: what `moetool route-trace` runs."
        ),
    ] = Task.GENERATE,
    attention: Annotated[
        Attention | None, typer.Option(help="By default what transformers chooses.")
    ] = None,
    experts_implementation: Annotated[
        ExpertsImplementation | None, typer.Option(help="By default what transformers chooses.")
    ] = None,
    cache: Annotated[
        CacheKind, typer.Option(help="Which KV cache to generate with.")
    ] = CacheKind.DYNAMIC,
    padding: Annotated[
        bool, typer.Option("--padding", help="Prompts differ in length, so that masks hide pads.")
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="A recorded trace, to bound the speed by its routing instead of uniform routing."
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also run it on this machine's GPU, and compare.")
    ] = False,
    output_format: Annotated[ReportFormat | None, typer.Option("--format")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A file, by default stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a Hub repository.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code from the checkpoint.")
    ] = False,
) -> None:
    """Estimate the GPU memory that a model needs to run, and show what it fits on.

    The model's own code is run without data, and every allocation is followed; without --measure
    weights are never read or downloaded. Several models or sizes are shown in a row each.
    """
    from moetool.checkpoint.reference import resolve_model
    from moetool.memory.sweep import list_scenarios
    from moetool.report.files import check_report_path, write_report

    chosen = choose_report_format(output_format, output)
    numbers_new = () if new_tokens is None else parse_numbers(new_tokens, option="--new-tokens")
    by_default = NUM_NEW_TOKENS if task is Task.GENERATE else 0
    common = Scenario(
        num_new_tokens=numbers_new[0] if numbers_new else by_default,
        task=task,
        dtype=dtype,
        attention=attention,
        experts_implementation=experts_implementation,
        cache=cache,
        has_padding=padding,
        quantization=quantization,
        is_double_quantized=double_quantization,
        experts=experts,
    )
    scenarios = list_scenarios(
        common,
        batch_sizes=parse_numbers(batch_size, option="--batch-size"),
        prompt_tokens=parse_numbers(prompt_tokens, option="--prompt-tokens"),
        new_tokens=numbers_new,
    )
    references = [resolve_model(model) for model in models]
    inputs = [*list_model_files(references), *list_trace_files(trace)]
    check_report_path(output, replace_existing=force, inputs=inputs)
    # Only now, because they bring in torch: what is wrong with the options is said at once.
    from moetool.memory.estimate import estimate_memory
    from moetool.report.memory.data import RENDERERS

    with _progress_on_terminal() as show_progress:
        estimates = [
            estimate
            for reference in references
            for estimate in estimate_memory(
                reference,
                scenarios,
                gpu=gpu,
                trace=trace,
                measure=measure,
                revision=revision,
                trust_remote_code=trust_remote_code,
                on_progress=show_progress,
            )
        ]
    write_report(RENDERERS[chosen.value](estimates), output, replace_existing=force)


@contextmanager
def _progress_on_terminal() -> Iterator[Callable[[str], None] | None]:
    """Yield what shows the work at hand; None if stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("") as status:
        yield lambda words: status.update(Text(printable(words)))
