"""Show how transformers loads a published format, with and without the packages that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moetool.report.memory.words import word_unquantized
from moetool.report.text.lines import make_fact
from moetool.report.text.words import word_size
from moetool.wording import join_words

if TYPE_CHECKING:
    from moetool.memory.answers.implementation import Implementation
    from moetool.memory.result import Estimate
    from moetool.report.text.lines import Paragraph


def list_implementations(estimate: Estimate) -> Iterator[Paragraph]:
    """Yield a line for each way in which transformers loads the weights on the GPU."""
    stored = estimate.stored
    if stored is None or stored.basis.value == "copy":
        return
    labels = [word_unquantized(estimate), *[""] * len(stored.implementations)]
    for label, implementation in zip(labels, stored.implementations, strict=False):
        yield make_fact(label, word_implementation(implementation))


def word_implementation(implementation: Implementation) -> str:
    """Return the bytes that one way holds, its packages, and whether it runs."""
    parts = []
    # Versions depend on the version of transformers, and are in JSON.
    packages = [package.partition(">")[0] for package in implementation.with_packages]
    if implementation.with_packages:
        parts.append(f"with {join_words(packages, last='and')}")
    if implementation.without_packages:
        parts.append(f"without {join_words(implementation.without_packages, last='or')}")
    words = " but ".join(parts) or "with no further packages"
    if implementation.holds is not None:
        words += f": {word_size(implementation.weights_bytes)}, {implementation.holds}"
        if implementation.origin is not None and implementation.origin.value == "reported":
            words += ", reported by the files' headers, not confirmed"
    if implementation.failure is not None:
        words += "; it doesn't run" if implementation.holds is not None else ": it doesn't load"
    return words
