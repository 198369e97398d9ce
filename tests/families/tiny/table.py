"""The table of families that the documentation shows, made from what the suite sees.

python -m tests.families.tiny.table           print it
python -m tests.families.tiny.table --write   put it into docs/models/families.md
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from functools import cache

import torch
import transformers
from transformers import PreTrainedModel

from moetool.anatomy.routing.moe_layers import find_moe_layers
from moetool.anatomy.skeleton.build import find_auto_class
from moetool.errors import UntraceableError
from moetool.tracing.recording.calls import RecordedLayer
from moetool.tracing.windows.probabilities import find_score_function
from tests.command import REPOSITORY
from tests.families.tiny.families import find_family
from tests.families.tiny.models import available, broken, build_family
from tests.families.tiny.proof import Proof, proof_of, prove, record, why_refused

DOCUMENT = REPOSITORY / "docs" / "models" / "families.md"
COLUMNS = ("family", "auto class", "traced", "rule", "router", "scores", "remarks")
HEADER = (" | ".join(COLUMNS).join(("| ", " |")), "|".join(["---"] * len(COLUMNS)).join("||"))


@cache
def table_row(name: str) -> str:
    """Return a family's row."""
    model = build_family(name, is_automatic=name in broken())
    try:
        auto_class = find_auto_class(model.config).removeprefix("AutoModelFor")
    except UntraceableError:
        auto_class = "part of a model"
    if name not in broken() and why_refused(name):
        traced, rules = _try_inexactly(model)
        cells = [name, auto_class, traced, rules, "", "", "see below"]
    else:
        proof = prove(model) if name in broken() else proof_of(name)
        routers = {path.rpartition(".")[2] for path in proof.routers.values() if path}
        cells = [
            name,
            auto_class,
            f"exactly, as {model.config.model_type}" if name in broken() else "exactly",
            _join({layer.place.rule.value for layer in proof.layers}),
            _join(routers) or "in the block",
            _join({_name_scores(layer.recorded) for layer in proof.layers}),
            "; ".join((*_remarks_on_transformers(name), *_remarks(proof))),
        ]
    return " | ".join(cells).join(("| ", " |"))


def table() -> list[str]:
    """Return the table's lines for the families that the installed transformers has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [*HEADER, *(table_row(name) for name in sorted({*available(), *broken()}))]


def _try_inexactly(model: PreTrainedModel) -> tuple[str, str]:
    try:
        layers = find_moe_layers(model, allow_inexact=True)
        record(model, allow_inexact=True)
    except UntraceableError:
        return "refused", ""
    return "with --allow-inexact", _join({layer.rule.value for layer in layers})


def _name_scores(layer: RecordedLayer) -> str:
    try:
        return find_score_function(layer).name
    except UntraceableError:
        return "unknown"


def _remarks_on_transformers(name: str) -> Iterator[str]:
    if name in broken():
        version = ".".join(transformers.__version__.split(".")[:2])
        yield f"transformers {version} can't run {find_family(name).model_class}: {broken()[name]}"


def _remarks(proof: Proof) -> Iterator[str]:
    places = [layer.place for layer in proof.layers]
    stacks = {place.stack for place in places}
    if stacks != {"decoder"}:
        yield f"stacks {_join(stacks)}"
    silent = {path for path, router in proof.routers.items() if router is None}
    if silent and len(silent) < len(proof.routers):
        yield "routed vision layers, which text passes by"
    identity = {place.num_identity_experts for place in places} - {0}
    if identity:
        yield f"{_join(map(str, identity))} identity experts"
    if any(bool((layer.ids < 0).any()) for layer in proof.layers):
        yield "tokens that no expert runs on"
    factors = {proof.factors[place.experts_path] for place in places} - {1.0}
    for factor in sorted(factors, key=str):
        yield (
            "the block does more than add up"
            if factor is None
            else f"the block multiplies the sum by {factor:g}"
        )


def _join(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))


def write_table() -> None:
    """Put the table in the place of the one in the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(HEADER[0])
    after = rest[rest.index("\n\n") :]
    DOCUMENT.write_text(before + "\n".join(table()) + after, encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    if "--write" in sys.argv:
        write_table()
    else:
        sys.stdout.write("\n".join(table()) + "\n")
