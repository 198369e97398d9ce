"""Run `moetool route-trace` on a GGUF file, through llama.cpp."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.cli.observer import TerminalObserver
from moetool.cli.options.route_trace import gguf
from moetool.cli.output import see_terminal
from moetool.errors import UsageError

if TYPE_CHECKING:
    from moetool.checkpoint.reference import ModelReference
    from moetool.trace.writing.sink_choice import SinkChoice
    from moetool.tracing.llama_cpp.options import LlamaCppOptions
    from moetool.tracing.options import TraceOptions
    from moetool.tracing.processes.processes import Processes
    from moetool.tracing.prompts.prompts import Prompt


def choose_options(
    reference: ModelReference,
    own: Mapping[str, object],
    common: TraceOptions,
    others: Mapping[str, object],
    *,
    output: Path | None,
    processes: Processes,
) -> LlamaCppOptions | None:
    """Return how llama.cpp is to trace a model; None if it is not a GGUF file.

    Args:
        reference: The model.
        own: See `gguf.read_options`, as the next two.
        common: Those of all models.
        others: Further options.
        output: Where the trace goes.
        processes: Those of the run.

    Raises:
        UsageError: An option of the other kind of model is given, there is no output, or there are
            several processes.
    """
    from moetool.checkpoint.reference import ModelKind

    if reference.kind is not ModelKind.GGUF:
        gguf.refuse_own(own)
        return None
    options = gguf.read_options(own, common, others)
    if output is None:
        raise UsageError(
            "The trace of a GGUF file needs a file to go to.", hint="Name one with --output."
        )
    if processes.are_several:
        raise UsageError(
            "A GGUF file is traced by one process.", hint="Run the command without torchrun."
        )
    return options


def trace_file(
    reference: ModelReference,
    prompts: Sequence[Prompt],
    options: LlamaCppOptions,
    sink: SinkChoice,
    observer: TerminalObserver,
    *,
    force: bool,
) -> None:
    """Trace a file, and say on stderr what was written."""
    from moetool.library.trace_gguf import trace_gguf
    from moetool.report.imports import RESULT_RENDERERS
    from moetool.report.renderer import ReportFormat

    assert reference.path is not None
    assert sink.target is not None
    observer.step("running llama.cpp")
    result = trace_gguf(reference.path, prompts, sink.target, options=options, overwrite=force)
    if not observer.is_quiet:
        shown = RESULT_RENDERERS[ReportFormat.TABLE](result, see_terminal(sys.stderr))
        sys.stderr.write(shown)
