"""The prompts that ship with the repository are enough to distinguish domains."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from moetool.tracing.prompts.prompts import Prompt, read_prompts


@pytest.fixture(scope="module")
def prompts(sample_prompts: Path) -> list[Prompt]:
    return read_prompts(str(sample_prompts))


def test_there_are_seven_domains_of_two_dozen_prompts_each(prompts: list[Prompt]) -> None:
    sizes = Counter(prompt.domain for prompt in prompts)
    assert len(sizes) >= 7
    assert min(sizes.values()) >= 24


def test_every_prompt_names_its_id_and_domain_itself(sample_prompts: Path) -> None:
    for path in sample_prompts.glob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            assert row["domain"] == path.stem
            assert row["id"].startswith(path.stem)


def test_no_two_prompts_have_the_same_id_or_text(prompts: list[Prompt]) -> None:
    assert len({prompt.prompt_id for prompt in prompts}) == len(prompts)
    assert len({prompt.text for prompt in prompts}) == len(prompts)


def test_every_prompt_has_several_sentences_or_lines(prompts: list[Prompt]) -> None:
    for prompt in prompts:
        ends = re.findall(r"[.!?…]\W|[.!?…]$|\n", prompt.text)
        assert len(ends) >= 3, prompt.prompt_id


def test_no_domain_is_an_extract_of_another(prompts: list[Prompt]) -> None:
    """A paragraph in two prompts would count twice as evidence for its tokens."""
    lines = Counter(
        line
        for prompt in prompts
        for line in set(re.split(r"\n|(?<=[.!?]) ", prompt.text))
        if len(line) > 60
    )
    assert [line for line, count in lines.items() if count > 1] == []
