"""Import OLMoE's `run_moe_analysis.py` results: JSON lines of token ids and expert ids."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moetool.interchange.imports.reading.text import (
    damaged,
    iter_lines,
    load_json,
    make_prefixes,
    take_array,
    take_object,
)
from moetool.interchange.imports.runs import (
    DECODER,
    Column,
    Facts,
    ImportFiles,
    LayerChoices,
    TokenRun,
    TraceImport,
)
from moetool.interchange.imports.shapes import GivenShapes

FORMAT = "olmoe"
IDS = "exp_ids"


def open_olmoe(files: ImportFiles, shapes: GivenShapes) -> TraceImport:
    """Return the decisions in some files, whose lines are prompts.

    Raises:
        InputError: A file holds something else.
    """
    facts = Facts(FORMAT)
    facts.note("Weights are not in OLMoE's results.")
    columns = frozenset[Column](("phase", "token_id", "rank"))
    return TraceImport(_iter_runs(files, shapes), columns, facts)


def _iter_runs(files: ImportFiles, shapes: GivenShapes) -> Iterator[TokenRun]:
    for path, prefix in make_prefixes(files.paths).items():
        for line in iter_lines(path):
            source = line.source
            content = take_object(load_json(line.text, source=source), source=source)
            # Tokens, ranks, layers: in this order.
            ids = take_array(content.get(IDS), num_dimensions=3, name=IDS, source=source)
            tokens = take_array(
                content.get("input_ids"), num_dimensions=1, name="input_ids", source=source
            )
            if len(tokens) != len(ids):
                raise damaged(source, f"has {len(tokens)} tokens, and experts of {len(ids)}")
            numbers = shapes.layers or range(ids.shape[2])
            if len(numbers) != ids.shape[2]:
                raise damaged(
                    source,
                    f"has {ids.shape[2]} layers, but {len(numbers)} routed ones were given",
                    hint="Name the model that was recorded, or correct --layers.",
                )
            yield TokenRun(
                source=source,
                prompt_id=f"{prefix}line{line.number}",
                position=np.arange(len(ids)),
                layers=[
                    LayerChoices(DECODER, layer, ids[:, :, ordinal])
                    for ordinal, layer in enumerate(numbers)
                ],
                phase=np.zeros(len(ids), dtype=np.int64),
                token_id=tokens,
            )
