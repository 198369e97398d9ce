"""Pages of the questions to a trace, for the tests of layout."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from moetool import select_experts, validate_trace
from moetool.analysis.balance.measure import COLUMNS, measure_balance
from moetool.analysis.balance.result import Balance
from moetool.analysis.caching.result import Caching
from moetool.analysis.comparison.result import Comparison
from moetool.analysis.placement.methods.cluster import Cluster
from moetool.analysis.placement.result import Placement
from moetool.analysis.selection.result import Selection
from moetool.analysis.specialization.result import Specialization
from moetool.analysis.validation.result import Validation
from moetool.report.questions import (
    balance,
    coactivation,
    compare,
    place,
    select,
    specialize,
    specialize_tokens,
    validate,
)
from moetool.report.questions import cache as cache_page
from moetool.report.questions.tokens import expert, prompt, routing, token
from moetool.report.renderer import View
from moetool.trace.windows.reader import DecisionReader
from tests.analysis.caching.test_policies import simulate
from tests.analysis.comparison.two_traces import compare_rows, make_pair
from tests.analysis.random_traces import Router, make_random_trace, open_rows
from tests.report.examples import (
    make_counts,
    make_placement,
    make_result,
    make_token_result,
    make_whole_result,
)
from tests.report.questions.answers import (
    make_coactivation,
    make_expert_tokens,
    make_prompt_routing,
    make_token_experts,
    make_token_routing,
)
from tests.trace.reading.frames import METADATA, make_frame


@cache
def specialization() -> Specialization:
    counts = make_counts(["code", "prose"], prompts_per_domain=12, notes=["top-2 is a guess"])
    return make_result(counts)


def show_specialization(view: View) -> str:
    return specialize.render_table_text(specialization(), view)


@cache
def check_trace() -> Validation:
    frame = make_frame().astype({"domain": str})
    frame.loc[9, "weight"] = -0.5
    frame.loc[9, "domain"] = "elsewhere"
    frame.attrs["moetool"] = replace(METADATA, model="org/model", num_decisions=25).to_dict()
    return validate_trace(frame.drop(columns="token_id"))


def show_validation(view: View) -> str:
    return validate.render_table_text(check_trace(), view)


def show_specialization_of_trace(view: View) -> str:
    return specialize.render_table_text(make_whole_result(), view)


def show_token_specialization(view: View) -> str:
    return specialize_tokens.render_table_text(make_token_result(), view)


def show_coactivation(view: View) -> str:
    return coactivation.render_table_text(make_coactivation(), view)


def show_token_routing(view: View) -> str:
    return routing.render_table_text(make_token_routing(), view)


def show_expert(view: View) -> str:
    return expert.render_table_text(make_expert_tokens(), view)


def show_token(view: View) -> str:
    return token.render_table_text(make_token_experts(), view)


def show_prompt(view: View) -> str:
    return prompt.render_table_text(make_prompt_routing(), view)


@cache
def balance_of_trace() -> Balance:
    router = Router(num_experts=64, top_k=6, num_layers=4, popularity=(9, 5, *[1] * 62))
    table = make_random_trace([30] * 24, router=router, num_prompt_tokens=20)
    return measure_balance(DecisionReader(open_rows(table, router=router), columns=COLUMNS))


def show_balance(view: View) -> str:
    return balance.render_table_text(balance_of_trace(), view)


@cache
def selection() -> Selection:
    router = Router(num_experts=64, top_k=6, num_layers=32, popularity=[1.0] * 60 + [40.0] * 4)
    table = make_random_trace([12] * 5, router=router, domains=("code", "prose"))
    return select_experts(
        table.to_pandas(),
        domain="code",
        by="gate",
        num_experts=64,
        top_k=6,
        freeze_list=True,
        prune_ratio=0.25,
        groups=4,
    )


def show_selection(view: View) -> str:
    return select.render_table_text(selection(), view)


@cache
def placement() -> Placement:
    return make_placement(Cluster(8, 2, 8))


def show_placement(view: View) -> str:
    return place.render_table_text(placement(), view)


@cache
def comparison() -> Comparison:
    router = Router(num_experts=16, top_k=2, num_layers=30)
    first, second = make_pair(router=router, share=0.2, lengths=(9, 40, 7, 12))
    return compare_rows(first, second, router=router)


def show_comparison(view: View) -> str:
    return compare.render_table_text(comparison(), view)


@cache
def caching() -> Caching:
    router = Router(num_experts=16, popularity=(8, 4, 4, *[1] * 13))
    table = make_random_trace((9, 40, 7, 12), router=router, num_prompt_tokens=6)
    sizes = {("decoder", layer): 12_582_912 for layer in range(router.num_layers)}
    return simulate(table, "25%,9", router=router, expert_bytes=sizes, by="domain")


def show_caches(view: View) -> str:
    return cache_page.render_table_text(caching(), view)


QUESTION_PAGES = (
    show_specialization,
    show_validation,
    show_specialization_of_trace,
    show_token_specialization,
    show_coactivation,
    show_token_routing,
    show_expert,
    show_token,
    show_prompt,
    show_balance,
    show_placement,
    show_selection,
    show_comparison,
    show_caches,
)
