"""Single tokens and single experts of a trace, wherever its rows are."""

from __future__ import annotations

from collections.abc import Collection
from os import PathLike
from typing import TYPE_CHECKING

from moetool.analysis.tokens import measure, one_expert, one_prompt, one_token
from moetool.analysis.tokens.expert_tokens import ExpertTokens
from moetool.analysis.tokens.one_prompt import PromptRouting
from moetool.analysis.tokens.one_token import TokenExperts
from moetool.analysis.tokens.result import TokenRouting
from moetool.choices import take_count, take_text
from moetool.errors import UsageError
from moetool.library.opening import open_reader
from moetool.library.trace import Trace
from moetool.trace.metadata_fields import LARGEST_ID

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("token_id", "token", "weight", "phase")
_MOST_TOKENS = 1_000_000
_LARGEST_TOKEN_ID = 2**31 - 1


def measure_tokens(
    trace: pd.DataFrame | Trace | str | PathLike[str],
    *,
    min_count: int = 10,
    num_listed: int = 20,
    layers: Collection[int] | None = None,
    num_experts: int | None = None,
    top_k: int | None = None,
    validate: bool = True,
) -> TokenRouting:
    """Return how far routing is decided by the token alone, as `moetool tokens` does.

    Args:
        trace: A DataFrame from `read_trace`, `Trace.to_frame` or elsewhere with the columns
            `prompt_id`, `position`, `layer`, `expert` and `token_id`; a `Trace`; or the path of a
            trace.
        min_count: Occurrences that a token id needs in a layer to be judged there.
        num_listed: Frequent token ids that are listed; `to_frame` has all.
        layers: Layer numbers to read; None for all.
        num_experts: Experts per layer, for rows without metadata.
        top_k: Experts per decision, for rows without metadata.
        validate: Refuse rows that no trace has, such as rows that occur twice.

    Returns:
        Shares of token ids whose first choice never changes, next to those of random routers, and
        the success of predicting it; as a frame, one row for each layer and frequent id.

    Raises:
        InputError: There is no trace, it fails a check, or it has no token ids.
        UsageError: An argument is out of range, or there is no such layer.
    """
    least = take_count(min_count, name="number of occurrences", smallest=2, largest=LARGEST_ID)
    most = take_count(num_listed, name="number of tokens", smallest=1, largest=_MOST_TOKENS)
    reader = open_reader(
        trace,
        layers=layers,
        num_experts=num_experts,
        top_k=top_k,
        validate=validate,
        columns=_COLUMNS,
    )
    return measure.measure_tokens(reader, min_count=least, num_listed=most)


def list_expert_tokens(
    trace: pd.DataFrame | Trace | str | PathLike[str],
    *,
    layer: int,
    expert: int,
    stack: str | None = None,
    by: str = "domain",
    num_listed: int = 20,
    num_experts: int | None = None,
    top_k: int | None = None,
    validate: bool = True,
) -> ExpertTokens:
    """Return the tokens that an expert gets, as `moetool tokens --layer N --expert N` does.

    Args:
        trace: As for `measure_tokens`.
        layer: As in the trace's column.
        expert: Its id.
        stack: As in the trace's column; by default the only one with the layer, or `decoder`.
        by: The column that groups tokens.
        num_listed: Tokens that are listed, the most frequent; `to_frame` has all.
        num_experts: Experts per layer, for rows without metadata.
        top_k: Experts per decision, for rows without metadata.
        validate: Refuse rows that no trace has, such as rows that occur twice.

    Returns:
        Token ids with counts, shares and lifts, and contexts; as a frame, one row for each id.

    Raises:
        InputError: There is no trace, it fails a check, or it has no token ids.
        UsageError: An argument is out of range, or there is no such column, layer or expert.
    """
    number = take_count(layer, name="layer", smallest=0, largest=LARGEST_ID)
    one = take_count(expert, name="expert", smallest=0, largest=LARGEST_ID)
    most = take_count(num_listed, name="number of tokens", smallest=1, largest=_MOST_TOKENS)
    named = None if stack is None else take_text(stack, name="stack")
    reader = open_reader(
        trace,
        by=by,
        layers=[number],
        num_experts=num_experts,
        top_k=top_k,
        validate=validate,
        columns=_COLUMNS,
    )
    return one_expert.list_expert_tokens(
        reader, layer=number, expert=one, stack=named, by=by, num_listed=most
    )


def list_token_experts(
    trace: pd.DataFrame | Trace | str | PathLike[str],
    token: str | int,
    *,
    layers: Collection[int] | None = None,
    num_experts: int | None = None,
    top_k: int | None = None,
    validate: bool = True,
) -> TokenExperts:
    """Return the experts that a token gets in each layer, as `moetool tokens --token TEXT` does.

    Args:
        trace: As for `measure_tokens`.
        token: The tokenizer's piece, the text that it stands for, or the token's id.
        layers: Layer numbers to read; None for all.
        num_experts: Experts per layer, for rows without metadata.
        top_k: Experts per decision, for rows without metadata.
        validate: Refuse rows that no trace has, such as rows that occur twice.

    Returns:
        The token's usual first choice and all its experts, layer by layer; as a frame, one row for
        each layer and expert.

    Raises:
        InputError: There is no trace, it fails a check, or it has no token ids.
        UsageError: An argument is out of range, or there is no such token or layer.
    """
    text: str | None = None
    token_id: int | None = None
    if isinstance(token, str):
        text = token
    else:
        token_id = take_count(token, name="token id", smallest=0, largest=_LARGEST_TOKEN_ID)
    reader = open_reader(
        trace,
        layers=layers,
        num_experts=num_experts,
        top_k=top_k,
        validate=validate,
        columns=_COLUMNS,
    )
    return one_token.list_token_experts(reader, token=text, token_id=token_id)


def tabulate_prompt(
    trace: pd.DataFrame | Trace | str | PathLike[str],
    prompt_id: str,
    *,
    layers: Collection[int] | None = None,
    num_experts: int | None = None,
    top_k: int | None = None,
    validate: bool = True,
) -> PromptRouting:
    """Return a prompt as a table of tokens and layers, as `moetool tokens --prompt ID` does.

    Args:
        trace: As for `measure_tokens`; token ids are not needed.
        prompt_id: As in the trace's column.
        layers: Layer numbers to read; None for all.
        num_experts: Experts per layer, for rows without metadata.
        top_k: Experts per decision, for rows without metadata.
        validate: Refuse rows that no trace has, such as rows that occur twice.

    Returns:
        The experts and weights of each token; as a frame, one row for each assignment.

    Raises:
        InputError: There is no trace, or it fails a check.
        UsageError: An argument is out of range, or there is no such prompt or layer.
    """
    if not isinstance(prompt_id, str):
        raise UsageError("A prompt is named by its id.", hint="Give the id as a text.")
    reader = open_reader(
        trace,
        layers=layers,
        num_experts=num_experts,
        top_k=top_k,
        validate=validate,
        columns=_COLUMNS,
    )
    return one_prompt.tabulate_prompt(reader, prompt_id)
