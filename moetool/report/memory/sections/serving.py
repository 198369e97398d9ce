"""Show how an engine would serve the model, and how many users that is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.report.text.lines import make_paragraphs, make_whole_lines
from moetool.report.text.page import Block
from moetool.report.text.styles import Style, make_printable
from moetool.report.text.tables import make_table
from moetool.report.text.words import UNKNOWN, word_share, word_size
from moetool.wording import number_of

if TYPE_CHECKING:
    from moetool.memory.serving.answer import Capacity, Serving


def list_serving(serving: Serving) -> Block:
    """Return the engine's memory on each GPU, the users that it holds, and the flags to copy."""
    engine, gpu = str(serving.engine), make_printable(serving.gpu)
    rows = [
        ("GPU memory that it may use", word_share(serving.share)),
        ("weights on each GPU", word_size(serving.weights_bytes)),
        ("cache per token", word_size(serving.cache_bytes_per_token)),
        ("allowance for what only profiling finds", word_size(serving.overhead_bytes)),
    ]
    if serving.compute_bytes is not None:
        rows.append(("compute buffer", word_size(serving.compute_bytes)))
    elif serving.least_compute_bytes is not None:
        rows.append(("compute buffer, at least", word_size(serving.least_compute_bytes)))
    chosen, prefix = serving.with_overhead, ""
    if chosen is None:
        chosen, prefix = serving.most, "at most "
    length = number_of(serving.tokens_per_sequence, "token")
    rows += [
        ("pool of the cache", UNKNOWN if chosen is None else prefix + word_size(chosen.pool_bytes)),
        ("tokens in the pool", _word_number(chosen, "num_tokens", prefix)),
        (f"sequences of {length} at once", _word_number(chosen, "num_sequences", prefix)),
    ]
    if serving.data_parallel > 1:
        replicas = serving.data_parallel
        total = UNKNOWN if chosen is None else f"{prefix}{chosen.num_sequences * replicas:,}"
        rows.append((f"the same in all {replicas} replicas", total))
    headers = (f"served by {engine} on {serving.num_gpus} × {gpu}", "")
    confirmed = serving.confirmed_on
    words = (
        f"Confirmed on {confirmed}: the sizes of tensors, cache and compute buffer there."
        if confirmed
        else ""
    )
    flags = [f"  {line}" for line in serving.flags.values()]
    notes = make_paragraphs([words, *serving.notes], Style.MUTED)
    return [
        make_table(headers, rows, right=(1,)),
        *make_paragraphs([f"{engine}:"]),
        *make_whole_lines(flags),
        *notes,
    ]


def _word_number(capacity: Capacity | None, name: str, prefix: str) -> str:
    return UNKNOWN if capacity is None else f"{prefix}{getattr(capacity, name):,}"
