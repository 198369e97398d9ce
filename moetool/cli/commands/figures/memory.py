"""Run `moetool plot memory`: memory over batch size and prompt length, with a GPU's limit."""

from __future__ import annotations

from typing import Annotated

import typer

from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_model_files
from moetool.cli.options import loading
from moetool.cli.options.completion import complete_gpus, complete_models
from moetool.cli.options.figures import COLUMN_WIDTH_IN, FigureOption, WidthOption
from moetool.cli.options.shared import ForceOption, QuietOption, RevisionOption, TrustOption
from moetool.cli.options.values import parse_numbers
from moetool.cli.progress import show_status
from moetool.cli.writing.figures import check_figure, write_figure
from moetool.errors import UsageError
from moetool.memory.scenario import NUM_NEW_TOKENS, Dtype, Scenario
from moetool.quantizing.kinds import Quantization

SUMMARY = "Draw memory over batch and prompt."
EXAMPLES = (
    "moetool plot memory olmoe-1b-7b --gpu 24GiB -o memory.svg",
    "moetool plot memory mixtral-8x7b --batch-size 1,4,16 -o h200.pdf",
)


@speaks_errors
def memory(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A folder, a config.json, a Hub id, a catalogue name or 'demo'.",
            show_default=False,
            autocompletion=complete_models,
        ),
    ],
    output: FigureOption,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="GPU",
            help="The GPU whose memory is drawn, such as h200, or an amount, such as 24GiB.",
            show_default="h200",
            autocompletion=complete_gpus,
        ),
    ] = None,
    batch_size: Annotated[
        str, typer.Option(metavar="N,...", help="Sequences in a batch: a line for each.")
    ] = "1,8,32",
    prompt_tokens: Annotated[
        str, typer.Option(metavar="N,...", help="Prompt tokens, at most the model's context.")
    ] = "512,2048,8192",
    new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="New tokens of each sequence.")
    ] = NUM_NEW_TOKENS,
    dtype: loading.DtypeOption = Dtype.AUTO,
    quantization: loading.QuantizationOption = Quantization.NONE,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    width: WidthOption = COLUMN_WIDTH_IN,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw the GPU memory of a model's runs over batch size and prompt length.

    A line for each batch size, and the memory that the GPU has. Prompts longer than the model's
    context are shortened to it.
    """
    from moetool.checkpoint.reference import resolve_model
    from moetool.memory.machine.local_gpu import take_gpu
    from moetool.memory.sweep import list_scenarios

    scenarios = list_scenarios(
        Scenario(num_new_tokens=new_tokens, dtype=dtype, quantization=quantization),
        batch_sizes=parse_numbers(batch_size, option="--batch-size"),
        prompt_tokens=parse_numbers(prompt_tokens, option="--prompt-tokens"),
    )
    reference = resolve_model(model)
    if reference.is_gguf:
        raise UsageError(
            "A figure of memory is over prompts and batches, and a GGUF file has a context.",
            hint="Name the original checkpoint, or run moetool memory-estimate on the file.",
        )
    check_figure(output, width_in=width, force=force, inputs=list_model_files([reference]))
    with show_status(is_quiet=quiet) as show:
        named_gpu = None if gpu is None else take_gpu(gpu)
        # Imported after the checks, so that wrong options are reported before torch has loaded.
        from moetool.memory.estimate import estimate_memory
        from moetool.report.figures.memory import draw_memory

        estimates = estimate_memory(
            reference,
            scenarios,
            clipped_sizes=["num_prompt_tokens"],
            gpu=named_gpu,
            revision=revision,
            trust_remote_code=trust_remote_code,
            on_progress=show,
        )
    write_figure(draw_memory(estimates, width_in=width), output, force=force)
