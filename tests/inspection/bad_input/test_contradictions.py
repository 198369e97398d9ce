"""A configuration that is not that of the published model of its name is noted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moetool.catalogue.published import read_published_config, read_published_models
from moetool.checkpoint.reference import ModelKind, resolve_model
from moetool.checkpoint.subject import AskedSource, Subject, find_subject
from moetool.inspection.published import note_contradictions

# As google/switch-c-2048 is published: a decoder without experts.
MISSTATED = {**read_published_config("switch-c-2048"), "decoder_sparse_step": 0}
TOTAL = 786_234_000_000


def read_subject(folder: Path, config: dict[str, Any]) -> Subject:
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return find_subject(resolve_model(str(path)), source=AskedSource.SKELETON, revision=None)


@pytest.mark.parametrize("extra", [{}, {"num_decoder_layers": 12}])
def test_what_a_published_configuration_misstates_is_noted(
    extra: dict[str, Any], tmp_path: Path
) -> None:
    subject = read_subject(tmp_path, {**MISSTATED, **extra})

    (note,) = note_contradictions(subject, total=TOTAL)

    assert "decoder_sparse_step 0 (not 1)" in note
    assert "which builds 786.2B" in note
    assert "Switch-C-2048 was published with 1600B" in note
    assert "`moetool inspect switch-c-2048`" in note


@pytest.mark.parametrize(
    "config",
    [
        {**MISSTATED, "decoder_sparse_step": 1},
        {**MISSTATED, "d_model": 768, "d_ff": 64, "num_experts": 8, "num_layers": 2},
        {**MISSTATED, "model_type": "t5"},
        {"model_type": "switch_transformers", "decoder_sparse_step": 0, "d_model": 2080},
    ],
)
def test_other_configurations_are_not_taken_for_it(config: dict[str, Any], tmp_path: Path) -> None:
    assert list(note_contradictions(read_subject(tmp_path, config), total=TOTAL)) == []


def test_a_checkpoint_of_the_hub_that_misses_its_vendors_total_is_noted() -> None:
    published = read_published_models()["mixtral-8x7b"]
    subject = Subject(
        model=published.hub_id,
        config=read_published_config("mixtral-8x7b"),
        label="config.json",
        headers=None,
        code=None,
        revision=None,
        published=published,
    )

    (note,) = note_contradictions(subject, total=24_000_000_000)

    assert "builds 24.0B" in note
    assert "published with 46.7B" in note
    assert list(note_contradictions(subject, total=46_702_792_704)) == []


def test_the_catalogues_own_configuration_is_labelled_and_meets_the_published_total() -> None:
    subject = find_subject(
        resolve_model("switch-c-2048"), source=AskedSource.SKELETON, revision=None
    )
    assert resolve_model("switch-c-2048").kind is ModelKind.PUBLISHED
    assert subject.published is not None
    assert subject.published.counted_as is not None
    assert "states decoder_sparse_step 0" in subject.published.counted_as
    assert list(note_contradictions(subject, total=1)) == []
