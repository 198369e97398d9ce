"""The summary of a run, as text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from moetool.analysis.balance.load import measure_load
from moetool.analysis.routing_summary import summarize_routing
from moetool.analysis.specialization.lift import measure_lift
from moetool.report.renderer import DEFAULT_VIEW, View
from moetool.report.trace_summary import render_timings, render_trace_summary
from moetool.trace.excerpt import PromptExcerpt, RoutedToken, StackExcerpt
from moetool.trace.metadata import RoutedLayer, TraceMetadata
from moetool.trace.reading.counts import ExpertCounts
from moetool.tracing.timing import RunTimings
from tests.report.examples import TOP_K, make_counts

COUNTS = make_counts(["code", "prose"])
METADATA = TraceMetadata(
    complete=True,
    model="demo",
    layers=tuple(
        RoutedLayer(
            stack=layer.stack,
            layer=layer.layer,
            module="",
            router=None,
            num_experts=layer.num_experts,
            num_identity_experts=0,
            top_k=TOP_K,
        )
        for layer in COUNTS.layers
    ),
    num_prompts=6,
    num_tokens=1200,
    num_decisions=2400,
)


def render_summary(
    counts: ExpertCounts = COUNTS,
    *,
    metadata: TraceMetadata = METADATA,
    num_rows: int = 4800,
    wrote: Path | None = None,
    wrote_bytes: int = 0,
    streamed: bool = True,
    texts: Path | None = None,
    excerpts: Sequence[PromptExcerpt] = (),
    view: View = DEFAULT_VIEW,
) -> str:
    return render_trace_summary(
        metadata,
        summarize_routing(counts),
        num_rows=num_rows,
        elapsed_s=1.25,
        wrote=wrote,
        wrote_bytes=wrote_bytes,
        streamed=streamed,
        texts=texts,
        excerpts=excerpts,
        view=view,
    )


def test_the_summary_ends_in_the_time_it_took() -> None:
    assert render_summary().endswith("\ntook 1.2 s, loading included\n")


def test_the_summary_says_what_was_traced() -> None:
    text = render_summary()
    assert "demo: 6 prompts, 1,200 tokens" in text
    assert "2 routed layers, top-2 of 8 experts: 2,400 decisions, 4,800 assignments" in text
    assert "were cut" not in text


def test_the_summary_says_how_even_the_load_is() -> None:
    text = render_summary()
    for load in measure_load(COUNTS):
        assert f"{load.entropy:.3f} (layer {load.layer})" in text
    assert "never chosen" not in text


def test_experts_that_were_never_chosen_are_counted() -> None:
    layers = [replace(layer, assignments=layer.assignments.copy()) for layer in COUNTS.layers]
    layers[0].assignments[:, [2, 5]] = 0
    layers[1].assignments[:, 7] = 0
    assert "3 experts were never chosen" in render_summary(replace(COUNTS, layers=tuple(layers)))


def test_a_layer_where_no_expert_ran_is_not_the_least_even() -> None:
    first, second = COUNTS.layers
    idle = replace(second, assignments=np.zeros_like(second.assignments))
    text = render_summary(replace(COUNTS, layers=(first, idle)))
    assert "(layer 0) to" in text
    assert "8 experts were never chosen" in text
    assert "no expert ran in any layer" in render_summary(replace(COUNTS, layers=(idle,)))


def test_the_summary_names_what_each_domain_prefers() -> None:
    counts = make_counts(["code", "prose"], prompts_per_domain=12)
    lines = render_summary(counts).splitlines()
    for domain in ("code", "prose"):
        cells = [cell for cell in measure_lift(counts) if cell.domain == domain]
        most = max(cells, key=lambda cell: cell.lift_low or 0)
        (line,) = (line for line in lines if line.startswith(domain))
        assert line.split()[1] == "2,400"
        interval = f"({most.lift_low:.1f}–{most.lift_high:.1f})"
        place = f"L{most.layer}.E{most.expert}"
        assert line.split()[2:5] == [place, f"×{most.lift:.1f}", interval]


def test_a_domain_that_prefers_nothing_for_certain_has_a_line() -> None:
    lines = render_summary(make_counts(["code", "prose"], prompts_per_domain=1)).splitlines()
    assert [line.split()[2:] for line in lines if line.startswith(("code", "prose"))] == [
        ["none", "for", "certain"]
    ] * 2


def test_one_domain_has_no_preference() -> None:
    text = render_summary(make_counts(["prose"]))
    assert "one domain" in text
    assert "×" not in text


def test_one_prompt_says_nothing_on_domains() -> None:
    counts = make_counts(["prose"], prompts_per_domain=1)
    assert "domain" not in render_summary(counts, metadata=replace(METADATA, num_prompts=1))


def test_the_terms_of_the_summary_are_explained_where_they_stand() -> None:
    counts = make_counts(["code", "prose"], prompts_per_domain=12)
    text = render_summary(counts)
    assert "load evenness: entropy of the experts' load" in text
    explained = re.search(
        r"^L(\d+)\.E(\d+) ×([\d.]+): expert (\d+) of layer (\d+); its share of the domain's tokens "
        r"is ([\d.]+) times its share of all tokens\.$",
        text.replace("\n  ", " "),
        re.M,
    )
    assert explained
    layer, expert, lift, same_expert, same_layer, same_lift = explained.groups()
    assert (layer, expert, lift) == (same_layer, same_expert, same_lift)
    (first,) = re.findall(r"^code +[\d,]+ +(\S+ \S+) ", text, re.M)
    assert first == f"L{layer}.E{expert} ×{lift}"


def test_an_expert_of_another_stack_is_explained_with_its_name() -> None:
    counts = make_counts(["code", "prose"], prompts_per_domain=12, places=[("encoder", 3)])
    assert re.search(
        r"^encoder L3\.E\d ×[\d.]+: expert \d of encoder layer 3;", render_summary(counts), re.M
    )


def test_terms_that_do_not_occur_are_not_explained() -> None:
    text = render_summary(make_counts(["code", "prose"], prompts_per_domain=1))
    assert "times its share" not in text
    idle = replace(COUNTS.layers[0], assignments=np.zeros_like(COUNTS.layers[0].assignments))
    assert "entropy" not in render_summary(replace(COUNTS, layers=(idle,)))


def test_prompts_to_show_stand_before_the_summary() -> None:
    tokens = tuple(
        RoutedToken(position=number, piece="a", is_new=False, experts=((5, 2), (0, 7)))
        for number in range(2)
    )
    stacks = (StackExcerpt(stack="decoder", layers=(0, 1), tokens=tokens),)
    excerpt = PromptExcerpt(prompt_id="1", domain="x", prompt="Once", written=None, stacks=stacks)
    lines = render_summary(excerpts=[excerpt]).splitlines()
    assert lines[0].split() == ["prompt", "Once"]
    row = next(number for number, line in enumerate(lines) if line.split() == ["0", *"a5207"])
    assert row < next(number for number, line in enumerate(lines) if line.startswith("demo: "))


def find_styles(words: str, text: str) -> str:
    """Return the codes that a terminal is sent before words."""
    found = re.search(rf"\x1b\[([\d;]*)m{re.escape(words)}", text)
    assert found, words
    return found[1]


def test_figures_warnings_and_legends_differ_on_a_terminal() -> None:
    layers = [replace(layer, assignments=layer.assignments.copy()) for layer in COUNTS.layers]
    layers[0].assignments[:, 2] = 0
    counts = replace(COUNTS, layers=tuple(layers))
    metadata = replace(
        METADATA,
        num_cut_prompts=3,
        max_prompt_tokens=64,
        exact=False,
        notes=("Not exact: experts ran late.",),
    )
    view = View(width=80, has_color=True)
    text = render_summary(counts, metadata=metadata, view=view)
    strong, warning, muted = "1", "33", "2"
    assert find_styles("demo: 6 prompts", text) == strong
    for load in measure_load(counts):
        assert find_styles(f"{load.entropy:.3f}", text) == strong
    for words in ("3 prompts were cut", "Not exact: experts", "1 expert was never chosen"):
        assert find_styles(words, text) == warning
    assert find_styles("load evenness: entropy", text) == muted
    plain = render_summary(counts, metadata=metadata, view=View(width=80))
    assert "\x1b" not in plain
    uncolored = re.sub(r"\x1b\[[\d;]*m", "", text)
    before, _, after = uncolored.partition("\nload of each expert over")
    assert before + after[after.index("\n\n") + 1 :] == plain


def test_a_terminal_with_colour_shows_a_map_of_the_load() -> None:
    text = render_summary(view=View(width=80, has_color=True))
    lines = re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()
    start = lines.index("load of each expert over the mean of its layer; 1× is even")
    assert [line[:3] for line in lines[start + 1 : start + 3]] == ["L0 ", "L1 "]
    narrow, pipe = View(width=59, has_color=True), View(has_color=True)
    for view in (narrow, pipe, View(width=80), View()):
        assert "load of each expert over" not in render_summary(view=view)


def test_domains_beyond_thirty_are_counted() -> None:
    text = render_summary(make_counts([f"domain-{number:02}" for number in range(33)]))
    assert text.count("domain-") == 30
    assert "… and 3 more domains" in text


def test_cut_prompts_are_counted() -> None:
    assert "3 prompts were cut after 64 tokens" in render_summary(
        metadata=replace(METADATA, num_cut_prompts=3, max_prompt_tokens=64)
    )


def test_a_written_file_is_named_with_its_rows_and_size() -> None:
    text = render_summary(wrote=Path("trace.parquet"), wrote_bytes=2048, streamed=False)
    assert "wrote trace.parquet (4,800 rows, 2.0 KiB)\n" in text
    assert "stdout" not in text


def test_rows_that_were_streamed_are_counted() -> None:
    text = render_summary(streamed=True)
    assert "wrote 4,800 rows to stdout" in text
    assert "no rows" not in text


def test_where_no_rows_are_kept_the_summary_says_how_to_keep_them() -> None:
    text = render_summary(streamed=False)
    assert "no rows were written: add -o trace.parquet" in text
    assert "stdout" not in text


def test_a_file_of_texts_is_named() -> None:
    assert "wrote texts.jsonl\n" in render_summary(texts=Path("texts.jsonl"))
    assert "jsonl" not in render_summary()


def test_a_name_cannot_steer_a_terminal() -> None:
    path = Path("\x1b[2J.parquet")
    text = render_summary(
        metadata=replace(METADATA, model="\x1b[31m"), wrote=path, streamed=False, texts=path
    )
    assert {letter for letter in text if not letter.isprintable()} == {"\n"}


def test_one_of_a_kind_is_singular() -> None:
    one = replace(
        METADATA,
        layers=METADATA.layers[:1],
        num_prompts=1,
        num_tokens=1,
        num_decisions=1,
        num_cut_prompts=1,
        max_prompt_tokens=1,
        num_new_tokens=1,
        max_new_tokens=1,
    )
    layers = [replace(layer, assignments=layer.assignments.copy()) for layer in COUNTS.layers]
    layers[0].assignments[:, 2] = 0
    text = render_summary(replace(COUNTS, layers=tuple(layers)), metadata=one, num_rows=1)
    for words in (
        "demo: 1 prompt, 1 token\n",
        "1 routed layer, top-2 of 8 experts: 1 decision, 1 assignment\n",
        "1 token written, at most 1 per prompt\n",
        "1 prompt was cut after 1 token\n",
        "1 expert was never chosen\n",
        "wrote 1 row to stdout\n",
    ):
        assert words in text


def test_the_time_of_a_run_is_on_one_line_with_shares_and_speed() -> None:
    stages_s = {"load": 30.0, "forward": 8.04, "other": 2.0}
    line = render_timings(RunTimings(elapsed_s=40.0, stages_s=stages_s, num_tokens=804_000))
    assert line == (
        "time: load 30.0 s (75%), forward 8.0 s (20%), other 2.0 s (5%); "
        "forward passes at 100,000 tokens/s\n"
    )
    none = {"forward": 0.0, "other": 4.0}
    line = render_timings(RunTimings(elapsed_s=4.0, stages_s=none, num_tokens=0))
    assert line == "time: forward 0.0 s (0%), other 4.0 s (100%)\n"
