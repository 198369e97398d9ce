"""Answers to questions on a simulated trace, for tests of their pages."""

from __future__ import annotations

from functools import cache

import pyarrow as pa

from moetool.analysis.coactivation.measure import measure_coactivation
from moetool.analysis.coactivation.result import Coactivation
from moetool.analysis.tokens.expert_tokens import ExpertTokens
from moetool.analysis.tokens.measure import measure_tokens
from moetool.analysis.tokens.one_expert import list_expert_tokens
from moetool.analysis.tokens.one_prompt import PromptRouting, tabulate_prompt
from moetool.analysis.tokens.one_token import TokenExperts, list_token_experts
from moetool.analysis.tokens.result import TokenRouting
from moetool.trace.windows.reader import DecisionReader
from tests.analysis.random_traces import Router, make_random_trace, open_rows

ROUTER = Router(
    num_experts=12, top_k=3, num_layers=4, popularity=[9, 8, 7, 6, 5, 4, 4, 3, 3, 2, 1, 1]
)
# Pieces of token ids, most of them with letters that a page must not print as they are.
PIECES = ("Ġthe", "\x1b[2J", "Ã©", "a\nb", "日本", "▁of", "<s>", '"', "\u202e", "word", "🙂")


@cache
def make_table() -> pa.Table:
    """Return the rows of prompts whose layers lean towards the expert after that of the token."""
    table = make_random_trace([30] * 24, router=ROUTER, num_prompt_tokens=25, seed=1)
    index = table.column_names.index("token")
    words = [PIECES[one] for one in table.column("token_id").to_pylist()]
    return table.set_column(index, "token", pa.array(words).dictionary_encode())


def make_reader() -> DecisionReader:
    source = open_rows(make_table(), router=ROUTER)
    return DecisionReader(source, columns=("token_id", "token", "weight", "phase"))


@cache
def make_coactivation() -> Coactivation:
    return measure_coactivation(make_reader())


@cache
def make_token_routing() -> TokenRouting:
    return measure_tokens(make_reader())


@cache
def make_expert_tokens() -> ExpertTokens:
    return list_expert_tokens(make_reader(), layer=2, expert=0)


@cache
def make_token_experts() -> TokenExperts:
    return list_token_experts(make_reader(), token=" the")


@cache
def make_prompt_routing() -> PromptRouting:
    return tabulate_prompt(make_reader(), "p3")
