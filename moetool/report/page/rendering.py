"""The page as one file: template, styles, scripts and data, without anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from dataclasses import replace
from functools import cache
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from moetool.analysis.sampling.shrinking import shrink
from moetool.errors import UsageError
from moetool.report.page.assets import join_scripts, read_asset
from moetool.report.page.contents import PageContents
from moetool.report.page.payload.assembly import DETAILS, make_payload, make_title
from moetool.report.page.payload.layers import list_layers
from moetool.report.page.payload.reading import pack_decisions
from moetool.report.page.tables import make_tables
from moetool.wording import number_of

# In bytes; a page of few tokens has no reason to be large.
MOST_BYTES, MOST_BYTES_OF_FEW_TOKENS = 2_000_000, 1_000_000
FEW_TOKENS = 10_000
# Of a page: the most that single decisions take, and the least if they need it.
_MOST_OF_DECISIONS, _LEAST_OF_DECISIONS = 0.6, 0.25
# Fewer prompts than would fit if all were alike, so that a second try is rare.
_LESS = 0.95
_STYLES = ("base.css", "layout.css", "panels.css", "print.css")


def render_page(contents: PageContents) -> str:
    """Return the page as HTML, with as much detail as its size allows.

    Raises:
        UsageError: Even with the least detail, the page is too large.
    """
    has_few_tokens = (contents.facts.num_tokens or 0) <= FEW_TOKENS
    # Layers and experts can be too many for a small page, however few the tokens are.
    limits = (MOST_BYTES_OF_FEW_TOKENS, MOST_BYTES) if has_few_tokens else (MOST_BYTES,)
    for limit in limits:
        page = _fit(contents, limit=limit)
        if page is not None:
            return page
    raise UsageError(
        f"The page would have more than {MOST_BYTES / 1e6:.0f} MB: "
        f"the trace has {number_of(len(list_layers(contents)), 'layer')}.",
        hint="Choose layers with --layers (layers= in Python).",
    )


def _fit(contents: PageContents, *, limit: int) -> str | None:
    """Return the page with the most detail that fits; None if not even the least does."""
    contents, packed = _fit_sample(contents, limit=int(_MOST_OF_DECISIONS * limit))
    for detail in DETAILS:
        page = _fill(contents, make_payload(contents, detail), packed)
        excess = len(page.encode()) - limit
        if excess <= 0:
            return page
        room = len(packed) - excess
        if room < min(len(packed), _LEAST_OF_DECISIONS * limit) and detail != DETAILS[-1]:
            continue
        # Texts of fewer prompts take less room, too.
        fewer, less_packed = _fit_sample(contents, limit=room)
        page = _fill(fewer, make_payload(fewer, detail), less_packed)
        if len(page.encode()) <= limit:
            return page
    return None


def _fit_sample(contents: PageContents, *, limit: int) -> tuple[PageContents, str]:
    """Return the contents with as many of the sample's prompts as fit, and these packed."""
    sample, other = contents.sample, contents.other_sample
    if sample is None:
        return contents, ""
    layers = list_layers(contents)
    packed = _pack(pack_decisions(sample, layers))
    while len(packed) > limit > 0 and sample.num_tokens > 1:
        sample, other = shrink(sample, other, share=_LESS * limit / len(packed))
        packed = _pack(pack_decisions(sample, layers))
    if len(packed) > limit:
        missing = {**contents.missing, "sample": "Prompts take more room than this page has."}
        return replace(contents, sample=None, other_sample=None, missing=missing), ""
    return replace(contents, sample=sample, other_sample=other), packed


def _fill(contents: PageContents, payload: dict[str, Any], decisions: str) -> str:
    style, script = _join_styles(), join_scripts()
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return (
        _make_environment()
        .get_template("page.html.j2")
        .render(
            title=make_title(contents),
            payload=payload,
            tables=make_tables(payload),
            style=style,
            script=script,
            policy=_make_policy(style, script),
            data=_pack(text.encode(errors="backslashreplace")),
            decisions=decisions,
        )
    )


def _make_policy(style: str, script: str) -> str:
    """Return a content security policy that lets this page's own style and script run alone."""
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _pack(content: bytes) -> str:
    """Return bytes in raw deflate and base64, whose letters HTML has no use for."""
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return base64.b64encode(packer.compress(content) + packer.flush()).decode()


@cache
def _join_styles() -> str:
    return "".join(read_asset("styles", name) for name in _STYLES)


@cache
def _make_environment() -> Environment:
    return Environment(
        loader=FunctionLoader(lambda name: read_asset("templates", name)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
