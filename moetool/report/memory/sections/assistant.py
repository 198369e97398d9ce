"""Show the memory of an assistant that drafts tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moetool.report.text.lines import Paragraph, make_fact
from moetool.report.text.styles import make_printable
from moetool.report.text.words import word_size
from moetool.wording import number_of

if TYPE_CHECKING:
    from moetool.memory.assisting.assistant_memory import AssistantMemory


def list_assistant(assistant: AssistantMemory) -> Iterator[Paragraph]:
    """Yield an assistant's part of the memory, and the rounds in which it drafts."""
    yield make_fact(
        "assistant",
        f"{make_printable(assistant.model)}: {word_size(assistant.weights_bytes)} of weights and "
        f"{word_size(assistant.cache_bytes)} of cache, included above",
    )
    yield make_fact(
        "drafts",
        f"{number_of(assistant.num_candidates, 'token')} a round at most, "
        f"{number_of(assistant.num_rounds, 'round')}",
    )
