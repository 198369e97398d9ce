"""Pages as files: their size, their policy, and what of a machine is not in them."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from moetool import render_report
from moetool.analysis.balance.result import Balance
from moetool.analysis.specialization.result import Specialization
from moetool.errors import UsageError
from moetool.library.report import _Asking
from moetool.report.page.contents import PageContents
from moetool.report.page.payload.values.names import show_sentence
from moetool.report.page.rendering import MOST_BYTES, render_page
from moetool.report.page.tables import make_tables
from tests.analysis.random_traces import Router, describe_router, make_random_trace
from tests.report.page.reading_pages import read_payload

DOMAINS = [f"domain {number}" for number in range(12)]


def collect(table: Any) -> PageContents:
    """Return what a page shows of rows."""
    asking = _Asking(
        table.to_pandas(),
        by="domain",
        layers=None,
        num_experts=None,
        top_k=None,
        validate=True,
        show=lambda _: None,
    )
    return asking.collect(None, redacts_text=False)


@pytest.fixture(scope="module")
def contents() -> PageContents:
    """All answers about one layer of 64 experts, in 12 domains."""
    router = Router(num_experts=64, top_k=8, num_layers=1)
    return collect(make_random_trace((20,) * 24, router=router, domains=DOMAINS))


def enlarge(contents: PageContents, *, layers: int, times_experts: int) -> PageContents:
    """Return results of more layers and experts, whose numbers do not repeat."""
    rng = Random(1)

    def shake(value: float | None) -> float | None:
        return None if value is None else value * rng.uniform(0.5, 2)

    def repeat(each: Any, layer: int) -> Any:
        return replace(each, layer=layer, num_experts=each.num_experts * times_experts)

    balance, specialization = contents.balance, contents.specialization
    assert isinstance(balance, Balance)
    assert isinstance(specialization, Specialization)
    loads = [
        replace(
            repeat(balance.layers[0], layer),
            load=tuple(rng.randrange(10_000) for _ in range(64 * times_experts)),
            prompts_choosing=tuple(rng.randrange(1_000) for _ in range(64 * times_experts)),
        )
        for layer in range(layers)
    ]
    cells = tuple(
        replace(
            cell,
            layer=layer,
            expert=cell.expert + 64 * copy,
            lift=shake(cell.lift),
            lift_low=shake(cell.lift_low),
            lift_high=shake(cell.lift_high),
        )
        for layer in range(layers)
        for copy in range(times_experts)
        for cell in specialization.experts
    )
    information = [repeat(specialization.layers[0], layer) for layer in range(layers)]
    sample = contents.sample
    assert sample is not None
    decisions = [
        replace(each, experts=np.array([rng.sample(range(64), 8) for _ in each.token], np.int16))
        for each in sample.layers * min(layers, 8)
    ]
    return replace(
        contents,
        balance=replace(balance, layers=tuple(loads)),
        specialization=replace(specialization, layers=tuple(information), experts=cells),
        sample=replace(sample, layers=tuple(decisions)),
        token_specialization=None,
        coactivation=None,
    )


@pytest.mark.parametrize(("layers", "times_experts"), [(58, 4), (4, 8)])
def test_many_layers_and_experts_fit_into_a_page(
    contents: PageContents, layers: int, times_experts: int
) -> None:
    page = render_page(enlarge(contents, layers=layers, times_experts=times_experts))
    assert len(page.encode()) <= MOST_BYTES
    payload = read_payload(page)
    assert len(payload["layers"]) == layers
    assert len(payload["load"]["layers"][-1]["load"]) == 64 * times_experts
    assert payload["left_out"] or times_experts * layers < 58
    assert payload["sample"]["prompts"]


def test_what_fits_nowhere_is_refused_with_a_hint(
    contents: PageContents, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MOST_BYTES", "MOST_BYTES_OF_FEW_TOKENS"):
        monkeypatch.setattr(f"moetool.report.page.rendering.{name}", 50_000)
    with pytest.raises(UsageError, match="the trace has 1 layer") as caught:
        render_page(contents)
    assert "--layers" in caught.value.hint


def test_less_room_leaves_prompts_and_lists_out_and_says_so(
    contents: PageContents, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = render_page(contents)
    size, seen = len(whole.encode()), []
    for less in (2_000, 8_000, 12_000):
        monkeypatch.setattr("moetool.report.page.rendering.MOST_BYTES_OF_FEW_TOKENS", size - less)
        page = render_page(contents)
        assert len(page.encode()) <= size - less
        payload = read_payload(page)
        assert payload["left_out"]
        seen.append(len((payload["sample"] or {"prompts": []})["prompts"]))
    assert seen == sorted(seen, reverse=True)
    assert read_payload(whole)["left_out"] == []


def test_the_policy_allows_the_page_s_own_style_and_script_alone(contents: PageContents) -> None:
    page = render_page(contents)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    policy = policy.replace("&#39;", "'")
    assert "default-src 'none'" in policy
    for tag, name in (("style", "style-src"), ("script", "script-src")):
        texts = re.findall(f"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        hashes = [
            "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            for text in texts
        ]
        assert re.findall(rf"{name} '([^']*)'", policy) == hashes
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page.partition("<script")[0])
    assert "unsafe" not in policy


def test_the_same_trace_makes_the_same_page() -> None:
    frame = make_random_trace((5, 6, 4)).to_pandas()
    assert render_report(frame) == render_report(frame.copy())


def list_texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from list_texts(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from list_texts(item)


def test_no_folder_user_or_variable_is_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "USER", "HF_TOKEN", "PWD"):
        monkeypatch.setenv(name, f"/home/alicia/{name}")
    router = Router(num_experts=8, top_k=2, num_layers=2)
    metadata = replace(
        describe_router(router),
        model="/home/alicia/models/mine",
        revision="/home/alicia/revision",
        imported_from="/home/alicia/tool",
        notes=(
            "'/home/alicia/models/mine' has no counts.",
            "/home/alicia/models/mine/config.json is odd.",
            r"'C:\Users\alicia\mine' and ~/alicia/mine are odd.",
        ),
        versions={"torch": "/home/alicia/torch"},
        complete=False,
    )
    table = make_random_trace((5, 6, 4), router=router).drop(["domain", "token_id", "token"])
    table = table.replace_schema_metadata({"moetool": metadata.to_json()})
    (tmp_path / "alicia").mkdir()
    path = tmp_path / "alicia" / "trace.parquet"
    pq.write_table(table, path)
    page = render_report(path, compare=path)
    payload = read_payload(page)
    texts = list(list_texts(payload))
    for text in (page, *texts):
        assert "alicia" not in text
        assert str(tmp_path) not in text
    assert payload["title"] == "mine"
    assert "'mine' has no counts." in {note["text"] for note in payload["notes"]}
    assert payload["missing"]["specialization"].startswith("'trace.parquet' has no column")


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ("'/a b/c/t.csv' has no column 'x'.", "'t.csv' has no column 'x'."),
        ("'runs/secret/t.parquet' is odd.", "'t.parquet' is odd."),
        ("'runs/t.parquet' is odd.", "'t.parquet' is odd."),
        ("the model 'org/Qwen1.5-MoE' is", "the model 'org/Qwen1.5-MoE' is"),
        (r"'C:\Users\a\t.csv' is", "'t.csv' is"),
        ("the experts' share (a/b) and 1/2", "the experts' share (a/b) and 1/2"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("a\u202eb", r"a\u202eb"),
    ],
)
def test_a_sentence_shows_the_last_part_of_a_path(sentence: str, shown: str) -> None:
    assert show_sentence(sentence) == shown


@pytest.mark.parametrize(
    ("drops", "missing"),
    [
        (["domain"], {"specialization": "no column 'domain'"}),
        (["token_id", "token"], {"token_specialization": "no column 'token_id'"}),
        (["weight", "rank", "phase"], {}),
    ],
)
def test_what_a_trace_lacks_is_missing_with_its_reason(
    drops: list[str], missing: dict[str, str]
) -> None:
    payload = read_payload(
        render_report(make_random_trace((5, 6, 4)).to_pandas().drop(columns=drops))
    )
    assert payload["missing"].keys() == missing.keys()
    for name, words in missing.items():
        assert words in payload["missing"][name]
    assert payload["verdict"]
    assert payload["sample"]["has_weights"] == ("weight" not in drops)


def test_one_prompt_and_odd_numbers_of_experts_say_what_is_missing() -> None:
    table = make_random_trace((5,), router=Router(num_experts=7, top_k=2, num_layers=1))
    payload = read_payload(render_report(table.to_pandas(), num_experts=7))
    assert payload["missing"].keys() == {"specialization", "placements"}
    assert payload["verdict"][0] == payload["missing"]["specialization"]


def test_a_load_table_shows_its_loads_and_says_why_the_rest_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "loads.csv"
    rows = [{"layer": 0, "expert": one, "count": 10 * one} for one in range(8)]
    pd.DataFrame(rows).to_csv(path, index=False)
    payload = read_payload(render_report(path))
    assert payload["load"]["layers"][0]["load"] == [10 * one for one in range(8)]
    assert payload["placements"]
    missing = ("specialization", "token_specialization", "coactivation", "caching", "sample")
    assert payload["missing"].keys() == set(missing)
    assert all("'loads.csv' is a load table" in payload["missing"][name] for name in missing)
    labels = [tile["label"] for tile in payload["tiles"]]
    assert "tokens" not in labels


def test_redacted_pages_hold_no_text() -> None:
    frame = make_random_trace((5, 6, 4)).to_pandas()
    frame["token"] = "s3cr3t" + frame["token"].astype(str)
    assert "s3cr3t" in str(read_payload(render_report(frame)))
    payload = read_payload(render_report(frame, redact_text=True))
    assert "s3cr3t" not in str(payload)
    assert payload["tokens"] is None
    assert payload["sample"]["texts"] == []


def test_tables_without_scripts_have_the_strongest_experts_and_each_layer(
    contents: PageContents,
) -> None:
    payload = read_payload(render_page(contents))
    by_caption = {table.caption.partition(" ")[0]: table for table in make_tables(payload)}
    assert by_caption["Load"].rows[0][1] == f"{payload['load']['layers'][0]['max_over_mean']:.3g}"
    assert len(by_caption["What"].rows) == 1
    certain = payload["specialization"]["lifts"][0][3]
    certain["certainty"][5], certain["lift"][5] = 2, 9.25
    (strongest, *_) = make_tables(payload)
    assert strongest.rows[0][:4] == ("0", "5", payload["domains"][3]["name"], "9.25")
    assert make_tables({**payload, "specialization": None, "load": None}) == []
