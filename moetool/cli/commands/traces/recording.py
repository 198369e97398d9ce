"""Record a run of `moetool route-trace`: through transformers, or through llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moetool.cli.commands.traces.gguf_trace import trace_file
from moetool.cli.observer import TerminalObserver
from moetool.cli.writing.runs import RunFiles
from moetool.errors import UsageError
from moetool.tracing.processes.processes import Processes
from moetool.tracing.timing import StageClock

if TYPE_CHECKING:
    from moetool.checkpoint.reference import ModelReference
    from moetool.tracing.llama_cpp.options import LlamaCppOptions
    from moetool.tracing.options import TraceOptions
    from moetool.tracing.prompts.prompts import Prompt
    from moetool.tracing.run import TracedRun


def refuse_several(processes: Processes, *, of_llama_cpp: LlamaCppOptions | None) -> None:
    """Refuse several processes for a GGUF file.

    Raises:
        UsageError: There are several.
    """
    if of_llama_cpp is not None and processes.are_several:
        raise UsageError(
            "A GGUF file is traced by one process.", hint="Run the command without torchrun."
        )


def record(
    reference: ModelReference,
    prompts: Sequence[Prompt],
    options: TraceOptions,
    of_llama_cpp: LlamaCppOptions | None,
    files: RunFiles,
    observer: TerminalObserver,
    *,
    num_excerpts: int | None,
    clock: StageClock,
    processes: Processes,
) -> TracedRun | None:
    """Record which experts each token goes to; None if llama.cpp did, and the result is shown.

    Args:
        reference: The model.
        prompts: To run through it.
        options: For transformers.
        of_llama_cpp: For a GGUF file; None for other models.
        files: Of the run.
        observer: Is informed of progress.
        num_excerpts: See `trace_model`.
        clock: Measures the run.
        processes: Those of the run.

    Raises:
        MoetoolError: See `trace_model` and `trace_gguf`.
    """
    if of_llama_cpp is not None:
        trace_file(reference, prompts, of_llama_cpp, files.sink, observer, force=files.force)
        return None
    from moetool.tracing.processes.shared_place import share_place
    from moetool.tracing.trace_model import trace_model

    return trace_model(
        reference,
        prompts,
        options,
        place=share_place(files.sink, processes, plan=options.parallel),
        observer=observer,
        open_texts=files.open_texts,
        num_excerpts=num_excerpts,
        clock=clock,
        processes=processes,
    )
