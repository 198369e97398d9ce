"""The specialization of experts in a trace, wherever its rows are."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Literal, overload

from moetool.analysis.specialization.by_token.measure import (
    MIN_COUNT,
    measure_token_specialization,
)
from moetool.analysis.specialization.by_token.result import TokenSpecialization
from moetool.analysis.specialization.from_trace import SpecializationOptions, measure_trace
from moetool.analysis.specialization.result import Specialization
from moetool.choices import take_count, take_flag, take_text
from moetool.library.opening import open_any, take_layers, take_shape

if TYPE_CHECKING:
    from moetool.library.opening import GivenTrace

# Beyond what anyone waits for.
_MOST_PERMUTATIONS = 10_000_000
_MOST_OCCURRENCES = 1 << 31
_NUM_SEEDS = 1 << 64


@overload
def measure_specialization(
    trace: GivenTrace,
    *,
    by: Literal["domain"] = "domain",
    layers: Collection[int] | None = None,
    num_permutations: int = 999,
    min_count: int = MIN_COUNT,
    seed: int = 0,
    num_experts: int | None = None,
    top_k: int | None = None,
    validate: bool = True,
) -> Specialization: ...


@overload
def measure_specialization(
    trace: GivenTrace,
    *,
    by: Literal["token"],
    layers: Collection[int] | None = None,
    num_permutations: int = 999,
    min_count: int = MIN_COUNT,
    seed: int = 0,
    num_experts: int | None = None,
    top_k: int | None = None,
    validate: bool = True,
) -> TokenSpecialization: ...


@overload
def measure_specialization(
    trace: GivenTrace,
    *,
    by: str,
    layers: Collection[int] | None = None,
    num_permutations: int = 999,
    min_count: int = MIN_COUNT,
    seed: int = 0,
    num_experts: int | None = None,
    top_k: int | None = None,
    validate: bool = True,
) -> Specialization | TokenSpecialization: ...


def measure_specialization(
    trace: GivenTrace,
    *,
    by: str = "domain",
    layers: Collection[int] | None = None,
    num_permutations: int = 999,
    min_count: int = MIN_COUNT,
    seed: int = 0,
    num_experts: int | None = None,
    top_k: int | None = None,
    validate: bool = True,
) -> Specialization | TokenSpecialization:
    """Return how far experts specialize by domain or by token, as `moetool specialize` does.

    Args:
        trace: A DataFrame from `read_trace`, `Trace.to_frame` or elsewhere with the columns
            `prompt_id`, `position`, `layer` and `expert`; a `Trace`; or the path of a trace.
        by: The column that holds each prompt's domain; `token` for specialization by token id,
            which is a `TokenSpecialization`.
        layers: Numbers of the layers to read; None for all.
        num_permutations: Permutations of the prompts' labels for each p-value.
        min_count: Occurrences that a token id needs in a layer; by token alone.
        seed: Random seed of all that is drawn.
        num_experts: Experts per layer, for rows without metadata.
        top_k: Experts per decision, for rows without metadata.
        validate: Refuse rows that no trace has, such as rows that occur twice.

    Raises:
        InputError: There is no trace, it fails a check, or it has fewer than two domains.
        UsageError: An argument is out of range, or there is no such column or layer.
    """
    by = take_text(by, name="column of the domains")
    permutations = take_count(
        num_permutations, name="number of permutations", smallest=1, largest=_MOST_PERMUTATIONS
    )
    chosen_seed = take_count(seed, name="seed", smallest=0, largest=_NUM_SEEDS - 1)
    num_experts, top_k = take_shape(num_experts=num_experts, top_k=top_k)
    options = SpecializationOptions(
        by=by,
        layers=take_layers(layers),
        num_permutations=permutations,
        seed=chosen_seed,
        num_experts=num_experts,
        top_k=top_k,
        is_checked=take_flag(validate, name="validate"),
    )
    least = take_count(min_count, name="least count", smallest=1, largest=_MOST_OCCURRENCES)
    source = open_any(trace, by=by)
    if by == "token":
        return measure_token_specialization(source, options, min_count=least)
    return measure_trace(source, options)
