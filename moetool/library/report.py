"""A page about a trace: all questions asked, and the answers in one file."""

from __future__ import annotations

from collections.abc import Callable, Collection
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from moetool.analysis.balance.result import Balance
from moetool.analysis.caching import measure as caching
from moetool.analysis.caching.budgets import parse_budgets
from moetool.analysis.caching.result import Caching
from moetool.analysis.comparison.result import Comparison
from moetool.analysis.placement.result import Placement
from moetool.analysis.sampling.result import PromptSample
from moetool.choices import take_flag, take_path, take_text
from moetool.errors import InputError, MoetoolError, UsageError
from moetool.library.opening import open_any, open_reader, take_layers
from moetool.library.questions.balance import measure_balance
from moetool.library.questions.cache import DEFAULT_BUDGETS
from moetool.library.questions.coactivation import measure_coactivation
from moetool.library.questions.compare import compare_traces
from moetool.library.questions.place import place_on_each
from moetool.library.questions.sample import sample_prompts
from moetool.library.questions.specialize import measure_specialization
from moetool.output.targets import check_target_file, saying_what_failed, write_file
from moetool.report.page.contents import PageContents
from moetool.report.page.rendering import render_page
from moetool.trace.loads.table import is_load_table
from moetool.trace.metadata import TraceMetadata

if TYPE_CHECKING:
    from moetool.library.opening import GivenTrace

# Experts of all tokens that can be read one by one, in a page of few tokens and in others.
_MOST_ASSIGNMENTS_OF_FEW, _MOST_ASSIGNMENTS = 350_000, 700_000
# Numbers of GPUs that share the experts, where they can be shared out evenly.
_NUMS_GPUS = (2, 4, 8, 16)

# Columns of a trace that have several values in a prompt.
_WITHIN_PROMPTS = ("phase", "position", "token_id", "token", "stack", "layer", "rank", "expert")
# In hints on traces of other tokens.
_COMMON_TOKENS = "--common-tokens"

# What is being done for each result that may be missing.
_STEPS = {
    "specialization": "testing specialization",
    "token_specialization": "finding characteristic tokens",
    "coactivation": "counting pairs",
    "placements": "placing experts on GPUs",
    "caching": "filling batches",
    "sample": "choosing prompts to read",
}

Result = TypeVar("Result")


def render_report(
    trace: GivenTrace,
    *,
    compare: GivenTrace | None = None,
    by: str = "domain",
    layers: Collection[int] | None = None,
    redact_text: bool = False,
    num_experts: int | None = None,
    top_k: int | None = None,
    validate: bool = True,
    show: Callable[[str], None] = lambda _: None,
) -> str:
    """Return a self-contained HTML page about a trace, as `moetool report` writes it.

    What the trace does not tell is missing on the page, with the reason.

    Args:
        trace: A DataFrame, a `Trace`, or the path of a trace.
        compare: A trace of the same tokens, to compare with.
        by: The column that groups prompts.
        layers: Layer numbers to read; None for all.
        redact_text: Leave prompts' and tokens' texts out.
        num_experts: Experts per layer, for rows without metadata.
        top_k: Experts per decision, for rows without metadata.
        validate: Refuse rows that no trace has.
        show: Called with what is being done.

    Raises:
        InputError: There is no trace, or it fails a check.
        UsageError: An argument is out of range, or there is no such column or layer.
    """
    redacts_text = take_flag(redact_text, name="redact_text")
    by = take_text(by, name="column to group by")
    if by in _WITHIN_PROMPTS:
        raise UsageError(
            f"A page groups whole prompts, but '{by}' differs within a prompt.",
            hint="Name a column with one value for each prompt, such as domain.",
        )
    asking = _Asking(
        trace,
        by=by,
        layers=take_layers(layers),
        num_experts=num_experts,
        top_k=top_k,
        validate=validate,
        show=show,
    )
    return render_page(asking.collect(compare, redacts_text=redacts_text))


def write_report(
    trace: GivenTrace,
    path: str | PathLike[str],
    *,
    compare: GivenTrace | None = None,
    by: str = "domain",
    layers: Collection[int] | None = None,
    redact_text: bool = False,
    num_experts: int | None = None,
    top_k: int | None = None,
    validate: bool = True,
    overwrite: bool = False,
) -> None:
    """Write the page that `render_report` returns; arguments are the same.

    Args:
        trace: A DataFrame, a `Trace`, or the path of a trace.
        path: File to write.
        compare: A trace of the same tokens, to compare with.
        by: The column that groups prompts.
        layers: Layer numbers to read; None for all.
        redact_text: Leave prompts' and tokens' texts out.
        num_experts: Experts per layer, for rows without metadata.
        top_k: Experts per decision, for rows without metadata.
        validate: Refuse rows that no trace has.
        overwrite: Replace an existing file.

    Raises:
        InputError: There is no trace, or it fails a check.
        UsageError: The file exists or can't be written, an argument is out of range, or there is no
            such column or layer.
    """
    target = Path(take_path(path, name="file"))
    replaces = take_flag(overwrite, name="overwrite")
    check_target_file(target, replace_existing=replaces)
    page = render_report(
        trace,
        compare=compare,
        by=by,
        layers=layers,
        redact_text=redact_text,
        num_experts=num_experts,
        top_k=top_k,
        validate=validate,
    )
    with saying_what_failed(target):
        write_file(page.encode(errors="backslashreplace"), target, replace_existing=replaces)


class _Asking:
    """The questions that a page answers, asked of one trace."""

    def __init__(
        self,
        trace: GivenTrace,
        *,
        by: str,
        layers: frozenset[int] | None,
        num_experts: int | None,
        top_k: int | None,
        validate: bool,
        show: Callable[[str], None],
    ) -> None:
        self._trace, self._by, self._show = trace, by, show
        self._options: dict[str, Any] = {
            "layers": layers,
            "num_experts": num_experts,
            "top_k": top_k,
            "validate": validate,
        }
        self._missing: dict[str, str] = {}

    def collect(self, compare: GivenTrace | None, *, redacts_text: bool) -> PageContents:
        """Return all answers; only what every page needs, and what was asked for, may fail."""
        trace, by, options = self._trace, self._by, self._options
        self._show("measuring the load")
        # Refuses what is not a trace.
        balance = measure_balance(trace, by=by, **options)
        comparison = None
        if compare is not None:
            self._show("comparing the traces")
            comparison = self._compare(compare)
        specialization: Any = self._ask(
            "specialization", lambda: measure_specialization(trace, by=by, **options)
        )
        tokens: Any = self._ask(
            "token_specialization", lambda: measure_specialization(trace, by="token", **options)
        )
        sample = self._ask("sample", lambda: self._sample(balance))
        return PageContents(
            facts=balance.trace,
            metadata=_read_metadata(trace),
            by=by,
            balance=balance,
            specialization=specialization,
            token_specialization=tokens,
            coactivation=self._ask(
                "coactivation", lambda: measure_coactivation(trace, by=by, **options)
            ),
            placements=self._ask("placements", lambda: self._place(balance)) or (),
            caching=self._ask("caching", self._fill_batches),
            comparison=comparison,
            sample=sample,
            other_sample=self._sample_other(compare, sample),
            missing=self._missing,
            redacts_text=redacts_text,
        )

    def _compare(self, other: GivenTrace) -> Comparison:
        try:
            return compare_traces(self._trace, other, by=self._by, **self._options)
        except MoetoolError as error:
            if _COMMON_TOKENS not in error.hint:
                raise
            # Tokens that only one trace has would be missing in the reader.
            raise type(error)(
                error.message,
                hint="Give two traces of the same prompts; moetool compare --common-tokens compares "
                "what others share.",
                facts=error.facts,
            ) from error

    def _ask(self, name: str, question: Callable[[], Result]) -> Result | None:
        self._show(_STEPS[name])
        try:
            return question()
        except MoetoolError as error:
            self._missing[name] = error.message
            return None

    def _place(self, balance: Balance) -> tuple[Placement, ...]:
        sizes = {layer.num_experts for layer in balance.layers}
        numbers = [gpus for gpus in _NUMS_GPUS if all(size % gpus == 0 for size in sizes)]
        if not numbers:
            raise InputError(
                f"The experts of a layer can't be shared out evenly among {_NUMS_GPUS[0]} GPUs.",
                hint="Name a number of GPUs: moetool place.",
            )
        return tuple(place_on_each(self._trace, numbers, by=self._by, **self._options))

    def _fill_batches(self) -> Caching:
        """Return the experts that batches touch, which takes no size of an expert."""
        reader = open_reader(self._trace, columns=caching.COLUMNS, **self._options)
        budgets = parse_budgets(DEFAULT_BUDGETS)
        return caching.simulate_caches(
            reader, budgets=budgets, expert_bytes=None, tokens_per_batch=None, notes=()
        )

    def _sample(self, balance: Balance) -> PromptSample:
        is_small = balance.trace.num_assignments <= _MOST_ASSIGNMENTS_OF_FEW
        most = _MOST_ASSIGNMENTS_OF_FEW if is_small else _MOST_ASSIGNMENTS
        return sample_prompts(self._trace, most_assignments=most, by=self._by, **self._options)

    def _sample_other(
        self, compare: GivenTrace | None, sample: PromptSample | None
    ) -> PromptSample | None:
        """Return the sample's prompts in the other trace."""
        if compare is None or sample is None:
            return None
        self._show(_STEPS["sample"])
        return sample_prompts(compare, like=sample, by=self._by, **self._options)


def _read_metadata(trace: GivenTrace) -> TraceMetadata | None:
    if isinstance(trace, str | PathLike) and is_load_table(Path(trace)):
        return None
    return open_any(trace).metadata
