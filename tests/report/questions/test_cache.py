"""The page of cached experts: what is shown, and what is left out and said to be."""

from __future__ import annotations

from functools import cache

from moetool.analysis.caching.budgets import parse_budgets
from moetool.analysis.caching.measure import COLUMNS, simulate_caches
from moetool.analysis.caching.result import Caching
from moetool.report.questions.cache import render_table_text
from moetool.trace.windows.reader import DecisionReader
from tests.analysis.caching.test_policies import SKEWED
from tests.analysis.random_traces import make_random_trace, open_rows


@cache
def make_caching(by: str) -> Caching:
    table = make_random_trace((70, 40, 7, 12), router=SKEWED, num_prompt_tokens=200)
    reader = DecisionReader(open_rows(table, router=SKEWED), columns=COLUMNS, by=by)
    return simulate_caches(reader, budgets=parse_budgets("25%"), by=by)


def render(by: str) -> str:
    return render_table_text(make_caching(by))


def test_sizes_with_few_batches_are_left_out() -> None:
    text = render("domain")
    table = text[text.index("tokens at once") :].partition("\n\n")[0].splitlines()[2:]
    shown = {int(line.split()[0]): line.split() for line in table}
    touched = {(each.of, each.batch_size): each for each in make_caching("domain").touched}
    for size, (_, experts, number, *_) in shown.items():
        known = touched["one text", size]
        assert (experts, number) == (f"{known.experts:.1f}", f"{known.fewest_batches:,}")
    left_out = {each.batch_size for each in touched.values()} - set(shown)
    assert left_out
    assert all(not touched["one text", size].has_enough_batches for size in left_out)


def test_groups_depend_on_the_order_of_prompts_where_there_are_several() -> None:
    text = " ".join(render("domain").split())
    assert "decode, by domain, with 25% of the experts" in text
    assert "LFU counts uses since the beginning of the trace" in text


def test_one_group_repeats_no_row() -> None:
    text = " ".join(render("phase").split())
    assert "All tokens of decode have one phase, " in text
    assert "by phase, with" not in text
    assert "LFU counts" not in text
    assert "By phase" not in text
