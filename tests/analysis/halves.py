"""The half of a trace's prompts that predictions are fitted on."""

from __future__ import annotations

from collections.abc import Iterable

from moetool.analysis.statistics.halves import split_prompts


def choose_fitted(prompt_ids: Iterable[str]) -> set[str]:
    """Return the prompts that are not held out; tests of `split_prompts` state which those are."""
    names = sorted(set(prompt_ids))
    return {name for name, out in zip(names, split_prompts(names), strict=True) if not out}
