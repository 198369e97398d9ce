"""Run `moetool route-trace` on a GGUF file, through llama.cpp."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from moetool.cli.observer import TerminalObserver
from moetool.cli.output import see_terminal
from moetool.wording import number_of

if TYPE_CHECKING:
    from moetool.checkpoint.reference import ModelReference
    from moetool.trace.writing.sink_choice import SinkChoice
    from moetool.tracing.llama_cpp.options import LlamaCppOptions
    from moetool.tracing.prompts.prompts import Prompt


def trace_file(
    reference: ModelReference,
    prompts: Sequence[Prompt],
    options: LlamaCppOptions,
    sink: SinkChoice,
    observer: TerminalObserver,
    *,
    force: bool,
) -> None:
    """Trace a file, and say on stderr what was written.

    Rows for stdout are written there once all are known, so that a crash of llama.cpp leaves none.
    """
    from moetool.library.trace_gguf import trace_gguf
    from moetool.report.imports import RESULT_RENDERERS
    from moetool.report.renderer import ReportFormat

    assert reference.path is not None
    observer.step("running llama.cpp")
    if sink.target is not None:
        result = trace_gguf(reference.path, prompts, sink.target, options=options, overwrite=force)
        if not observer.is_quiet:
            shown = RESULT_RENDERERS[ReportFormat.TABLE](result, see_terminal(sys.stderr))
            sys.stderr.write(shown)
        return
    with TemporaryDirectory(prefix="moetool-") as folder:
        rows = Path(folder) / "trace.csv"
        result = trace_gguf(reference.path, prompts, rows, options=options)
        if sink.keeps_rows:
            with rows.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
    layers = number_of(result.num_layers, "routed layer")
    found = f"{number_of(len(prompts), 'prompt')}, {layers}: {number_of(result.num_rows, 'row')}"
    observer.announce(
        found + (" to stdout" if sink.keeps_rows else ", not kept; -o FILE keeps them")
    )
