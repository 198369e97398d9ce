"""Run `moetool route-trace` on a GGUF file, through llama.cpp."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.cli.observer import TerminalObserver
from moetool.cli.output import see_terminal
from moetool.errors import UsageError

if TYPE_CHECKING:
    from moetool.checkpoint.reference import ModelReference
    from moetool.tracing.options import TraceOptions
    from moetool.tracing.prompts.prompts import Prompt


def check_options(
    reference: ModelReference,
    options: TraceOptions,
    others: Sequence[object],
    *,
    output: Path | None,
) -> bool:
    """Return whether a model is a GGUF file, and refuse options that tracing one doesn't have.

    Args:
        reference: The model.
        options: How models of transformers are traced.
        others: Further options, false or None by default.
        output: Where the trace goes.

    Raises:
        UsageError: One is given, or no output.
    """
    from moetool.checkpoint.reference import ModelKind
    from moetool.tracing.options import TraceOptions

    if reference.kind is not ModelKind.GGUF:
        return False
    if options != TraceOptions() or any(others):
        raise UsageError(
            "A GGUF file runs in llama.cpp, which takes prompts and an output, and continues none.",
            hint="Leave out all options except --prompts, --prompt, --limit, --output and --force.",
        )
    if output is None:
        raise UsageError(
            "The trace of a GGUF file needs a file to go to.", hint="Name one with --output."
        )
    return True


def trace_file(
    reference: ModelReference,
    prompts: Sequence[Prompt],
    output: Path,
    observer: TerminalObserver,
    *,
    force: bool,
) -> None:
    """Trace a file, and say on stderr what was written."""
    from moetool.library.trace_gguf import trace_gguf
    from moetool.report.imports import RESULT_RENDERERS
    from moetool.report.renderer import ReportFormat

    assert reference.path is not None
    observer.step("running llama.cpp")
    result = trace_gguf(reference.path, prompts, output, overwrite=force)
    if not observer.is_quiet:
        shown = RESULT_RENDERERS[ReportFormat.TABLE](result, see_terminal(sys.stderr))
        sys.stderr.write(shown)
