"""The group of each prompt, from the columns that hold both."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from moetool.trace.decisions import NO_DOMAIN
from moetool.trace.reading.reader import TraceSource


def read_prompt_groups(source: TraceSource, prompts: Sequence[str], *, by: str) -> list[str]:
    """Return the group of each prompt: the value of a column in its first row.

    Args:
        source: The trace.
        prompts: Ids, each once.
        by: Column that groups the prompts; all are of one group if the trace lacks it.
    """
    if by not in source.columns:
        return [NO_DOMAIN] * len(prompts)
    group_of: dict[str, str] = {}
    for table in source.iter_tables(list(dict.fromkeys(("prompt_id", by)))):
        pairs = table.cast(pa.schema([(name, pa.string()) for name in table.column_names]))
        for row in pairs.group_by(pairs.column_names, use_threads=False).aggregate([]).to_pylist():
            group_of.setdefault(row["prompt_id"], row[by] or NO_DOMAIN)
    return [group_of[prompt] for prompt in prompts]
