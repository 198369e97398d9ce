"""Choice of whole prompts, of all groups alike, up to a number of rows."""

from __future__ import annotations

from collections.abc import Sequence

from moetool.analysis.statistics.halves import hash_prompts


def choose_prompts(
    prompts: Sequence[str], groups: Sequence[str], num_rows: Sequence[int], *, most_rows: int
) -> list[int]:
    """Return the indices of whole prompts that together have at most a number of rows.

    Groups take turns, in the order of their names; each offers its prompts in an order that depends
    on their ids alone. A prompt that does not fit any more is passed over.

    Args:
        prompts: Ids, each once.
        groups: Of each prompt, such as its domain.
        num_rows: Of each prompt.
        most_rows: Of all that are chosen.

    Returns:
        Ascending; empty if no prompt is short enough.
    """
    hashes = hash_prompts(prompts)
    waiting: dict[str, list[int]] = {}
    for index in sorted(range(len(prompts)), key=lambda one: (hashes[one], prompts[one])):
        waiting.setdefault(groups[index], []).append(index)
    chosen: list[int] = []
    left = most_rows
    queues = [iter(waiting[group]) for group in sorted(waiting)]
    while queues:
        going_on = []
        for queue in queues:
            fitting = next((one for one in queue if num_rows[one] <= left), None)
            if fitting is not None:
                chosen.append(fitting)
                left -= num_rows[fitting]
                going_on.append(queue)
        queues = going_on
    return sorted(chosen)
