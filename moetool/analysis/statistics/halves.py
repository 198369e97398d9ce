"""Division of a trace's prompts into two halves: one to fit on, one to score on."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


def hash_prompts(prompts: Sequence[str], *, seed: int = 0) -> NDArray[np.uint64]:
    """Return a number for each prompt id that looks random, but depends on nothing else.

    Args:
        prompts: Ids.
        seed: Another seed gives unrelated numbers.

    Returns:
        # (num_prompts,)
    """
    key = seed.to_bytes(8, signed=True)
    digests = (
        blake2b(prompt.encode(errors="surrogatepass"), digest_size=8, key=key).digest()
        for prompt in prompts
    )
    return np.array([int.from_bytes(digest) for digest in digests], dtype=np.uint64)


def split_prompts(
    prompts: Sequence[str], *, groups: Sequence[str] | None = None, seed: int = 0
) -> NDArray[np.bool_]:
    """Return which prompts are held out: half of each group, whatever the order of the prompts.

    The choice depends on the ids, their groups and the seed alone. Of all groups with an odd number
    of prompts, every other one, in the order of names, holds out one more than it leaves; the first
    does, so that a single prompt is held out.

    Args:
        prompts: Ids, each once.
        groups: Group of each prompt, such as its domain; None if they are of one group.
        seed: Another seed gives other halves.

    Returns:
        # (num_prompts,)
    """
    hashes = hash_prompts(prompts, seed=seed)
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups if groups is not None else [""] * len(prompts)):
        members.setdefault(group, []).append(index)
    is_held_out = np.zeros(len(prompts), dtype=np.bool_)
    takes_more = True
    for group in sorted(members):
        # The id decides between equal hashes.
        order = sorted(members[group], key=lambda index: (hashes[index], prompts[index]))
        number, rest = divmod(len(order), 2)
        number += rest * takes_more
        takes_more ^= bool(rest)
        is_held_out[order[len(order) - number :]] = True
    return is_held_out
