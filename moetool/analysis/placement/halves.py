"""Division of a trace's prompts into two halves: one to fit on, one to report on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moetool.trace.decisions import NO_DOMAIN
from moetool.trace.reading.reader import TraceSource


def choose_held_out(
    prompts: Sequence[str], groups: Sequence[str], *, seed: int
) -> NDArray[np.bool_]:
    """Return which prompts are held out: half of each group, whatever the order of the prompts.

    The choice depends on the prompts' ids and the seed alone. Of groups with an odd number of
    prompts, every other one, in the order of names, has one more held out than not.

    Args:
        prompts: Ids, each once.
        groups: Group of each prompt, such as its domain.
        seed: Another seed gives other halves.

    Returns:
        # (num_prompts,)
    """
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    held_out = np.zeros(len(prompts), dtype=np.bool_)
    takes_more = False
    for group in sorted(members):
        order = sorted(members[group], key=lambda index: _mix(prompts[index], seed=seed))
        number, rest = divmod(len(order), 2)
        number += rest * takes_more
        takes_more ^= bool(rest)
        held_out[order[:number]] = True
    return held_out


def read_groups(source: TraceSource, prompts: Sequence[str], *, by: str) -> list[str]:
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


def _mix(prompt: str, *, seed: int) -> tuple[bytes, str]:
    """Return a key that orders prompts as if at random; the id decides between equal ones."""
    text = f"{seed}\0{prompt}".encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest(), prompt
