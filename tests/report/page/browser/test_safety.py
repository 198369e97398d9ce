"""Tokens, prompts and names are hostile: they are shown, and do nothing."""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from playwright.sync_api import Page

from moetool.library.report import render_report, write_report
from tests.report.page.browser.conftest import OpenPage
from tests.report.page.browser.opening import Opening
from tests.report.page.browser.traces import Shape, describe, make_trace, write_trace

ATTACK = "<img src=x onerror=window.pwned=1>"
# Each piece, and the text that stands for it.
HOSTILE = {
    "</script><script>window.pwned=1</script>": "</script><script>window.pwned=1</script>",
    "<!--<script>": "<!--<script>",
    "]]>": "]]>",
    ATTACK: ATTACK,
    "{{ 7 * 7 }}{% raw %}": "{{ 7 * 7 }}{% raw %}",
    "${window.pwned=1}`": "${window.pwned=1}`",
    "&lt;b&gt;": "&lt;b&gt;",
    "a\u2028b\u2029c": "a⟨U+2028⟩b⟨U+2029⟩c",
    "\u202eevil\u2066": "⟨U+202E⟩evil⟨U+2066⟩",
    "zero\u200bwidth\ufeff": "zero⟨U+200B⟩width⟨U+FEFF⟩",
    "\x1b[31mred\x1b[0m\x07": "␛[31mred␛[0m⟨U+0007⟩",
    "nul\x00del\x7f": "nul␀del⟨U+007F⟩",
    "line\r\nbreak\t": "line␍⏎\nbreak⇥\t",
    "\U000e0041\ue000": "⟨U+E0041⟩⟨U+E000⟩",
    "שלום": "שלום",
    "👩\u200d🚀": "👩\u200d🚀",
    "x" * 10_000: "x" * 120 + "…",
    "\\u003cscript\\u003e": "\\u003cscript\\u003e",
    "'\"`": "'\"`",
}
SHAPE = Shape(
    lengths=(19, 19, 19, 19),
    num_layers=2,
    num_experts=6,
    domains=(f"</title>{ATTACK}", "\u202e{{ domain }}"),
    pieces=(*HOSTILE, "last"),
)


def decode_islands(html: str) -> tuple[dict[str, Any], bytes]:
    """Return what the scripts read: values, and bytes of decisions."""
    found = [
        zlib.decompress(base64.b64decode(text), -zlib.MAX_WBITS)
        for text in re.findall(r'type="application/octet-stream" id="\w+">([^<]*)<', html)
    ]
    assert len(found) == 2
    return json.loads(found[0]), found[1]


@pytest.fixture(scope="module")
def hostile_file(folder: Path) -> Path:
    """A page of a trace in which every text that a trace has is hostile."""
    metadata = replace(
        describe(SHAPE, model=f"org/{ATTACK}"),
        revision="</script>",
        versions={f"<script>{ATTACK}": "</style><script>window.pwned=1</script>"},
        notes=(f"</ul>{ATTACK}.",),
    )
    rows = make_trace(SHAPE)
    index = rows.column_names.index("prompt_id")
    names = [f"{name}{ATTACK}\u2029" for name in rows["prompt_id"].to_pylist()]
    kind = rows.schema.field("prompt_id").type
    rows = rows.set_column(index, "prompt_id", pa.array(names).dictionary_encode().cast(kind))
    path = folder / "hostile.html"
    write_report(write_trace(folder / "hostile.parquet", rows, metadata=metadata), path)
    return path


def assert_inert(page: Page) -> None:
    assert page.evaluate("window.pwned") is None
    # The icon is empty; scripts are the two islands and the page's script.
    assert page.locator("img, iframe, object, embed, form, base").count() == 0
    assert page.locator("script").count() == 3
    assert page.locator("b").count() == 0


def test_hostile_texts_are_visible_and_inert(open_page: OpenPage, hostile_file: Path) -> None:
    page = open_page(hostile_file, hash_="#layer=2&expert=4")
    assert_inert(page)
    assert page.title().startswith("org/<img")
    shown: set[str] = set()
    prompts = page.locator(".prompts button")
    assert prompts.count() == 4
    for index in range(4):
        prompts.nth(index).click()
        shown |= set(page.locator("#reader .token").all_text_contents())
        page.locator("#reader .token").nth(3).click()
    assert set(HOSTILE.values()) <= shown
    text = page.locator("main").inner_text()
    assert ATTACK in text
    # Names reach the page escaped: none of them turns the text around it.
    assert "\\u202e{{ domain }}" in text
    for letter in "\u202e\u2066\u2028\u2029\u200b\x1b\x00":
        assert letter not in page.content()
    assert_inert(page)


def test_hostile_texts_are_inert_without_scripts(open_page: OpenPage, hostile_file: Path) -> None:
    page = open_page(hostile_file, java_script_enabled=False)
    assert page.locator("img, iframe, object, embed, form, base").count() == 0
    assert page.locator("script").count() == 3
    assert "<img src=x" in page.locator("h1").inner_text()


def test_long_tokens_do_not_widen_the_page(open_page: OpenPage, hostile_file: Path) -> None:
    page = open_page(hostile_file, viewport={"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 400


def test_policy_blocks_all_but_the_page_itself(
    opening: Opening, page_file: Path, folder: Path
) -> None:
    html = page_file.read_text(encoding="utf-8")
    attack = (
        "<script>window.pwned = 1</script><style>body { --pwned: 1 }</style>"
        "<p id='styled' style='--pwned: 1' onclick='window.pwned = 1'>x</p>"
        "<img src='https://127.0.0.1:9/x.png'><link rel='stylesheet' href='x.css'>"
    )
    path = folder / "attacked.html"
    path.write_text(html.replace("<main>", f"{attack}<main>"), encoding="utf-8")
    page = opening(path)
    page.locator("#styled").click()
    page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.pwned = 1";
          document.body.append(script);
        }"""
    )
    assert page.evaluate("window.pwned") is None
    for target in ("body", "#styled"):
        style = "one => getComputedStyle(one).getPropertyValue('--pwned')"
        assert page.locator(target).evaluate(style) == ""
    assert page.evaluate("fetch(location.href).then(() => true, () => false)") is False
    sent = {one.partition(": ")[2] for one in opening.complaints if one.startswith("request")}
    stopped = {
        one.partition(": ")[2] for one in opening.complaints if one.startswith("failed (csp")
    }
    assert len(sent) == 2
    assert sent == stopped
    refusals = [one for one in opening.complaints if "Content Security Policy" in one]
    assert len(refusals) >= 6
    policy = page.locator("meta[http-equiv]").get_attribute("content") or ""
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


def test_redacted_pages_hold_no_text(open_page: OpenPage, folder: Path) -> None:
    words = tuple(f"qzx{number}w" for number in range(12))
    shape = Shape(pieces=words)
    tables = [make_trace(shape), make_trace(shape, redrawn=0.3)]
    paths = [
        write_trace(
            folder / f"secret{number}.parquet",
            _rename_prompts(rows),
            metadata=replace(describe(shape), notes=("Prompts about qzxnote.",)),
        )
        for number, rows in enumerate(tables)
    ]
    html = render_report(paths[0], compare=paths[1], redact_text=True)
    payload, decisions = decode_islands(html)
    open_html = render_report(paths[0], compare=paths[1])
    for secret in ("qzx3w", "qzxp3", "qzxnote"):
        assert secret in json.dumps(decode_islands(open_html)[0])
    for content in (html, json.dumps(payload, ensure_ascii=False)):
        assert "qzx" not in content
    assert b"qzx" not in decisions
    assert any("left out" in sentence for sentence in payload["left_out"])
    path = folder / "redacted.html"
    path.write_text(html, encoding="utf-8")
    page = open_page(path, hash_="#layer=2&expert=4&token=3")
    assert page.locator("#reader .token").count() == 24
    assert "texts were left out." in page.locator("#expert").inner_text()
    assert "qzx" not in page.content()
    # Prompts have numbers instead of ids.
    prompts = page.locator(".prompts .prompt-text").all_inner_texts()
    assert prompts == [f"prompt {number}" for number in range(1, 13)]


def _rename_prompts(rows: pa.Table) -> pa.Table:
    index = rows.column_names.index("prompt_id")
    names = [f"qzx{name}" for name in rows["prompt_id"].to_pylist()]
    kind = rows.schema.field("prompt_id").type
    return rows.set_column(index, "prompt_id", pa.array(names).dictionary_encode().cast(kind))


def test_pages_hold_nothing_of_the_machine(folder: Path, trace: Path) -> None:
    metadata = describe(Shape(), model="/home/someone/secret-project/model-x/")
    path = write_trace(folder / "local.parquet", make_trace(redrawn=0.1), metadata=metadata)
    html = render_report(path, compare=trace)
    text = json.dumps(decode_islands(html)[0], ensure_ascii=False)
    assert "model-x" in text
    for content in (html, text):
        for secret in ("someone", "secret-project", str(folder), folder.name, str(Path.home())):
            assert secret not in content


def test_halves_of_surrogate_pairs_are_shown_as_such(open_page: OpenPage, folder: Path) -> None:
    shape = Shape(num_layers=1)
    metadata = replace(
        describe(shape, model="org/\ud83d"), dtype="\udc00", notes=("Half: \ud83d.", "\u202eturned")
    )
    path = write_trace(folder / "half.parquet", make_trace(shape), metadata=metadata)
    # A name whose bytes are not UTF-8.
    path = path.rename(folder / "half\udcff.parquet")
    page_path = folder / "halves.html"
    write_report(path, page_path)
    page = open_page(page_path)
    assert page.locator("h1").inner_text() == "org/\\ud83d"
    data = page.locator("#data").inner_text()
    for words in ("half\\udcff.parquet", "\\udc00", "Half: \\ud83d.", "\\u202eturned"):
        assert words in data
