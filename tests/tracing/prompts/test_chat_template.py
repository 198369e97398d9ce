"""Chat templates are rendered as in transformers, and stopped when they misbehave."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from moetool.checkpoint.config import load_tokenizer
from moetool.checkpoint.files import Checkpoint
from moetool.errors import InputError
from moetool.tracing.prompts import chat_template
from moetool.tracing.prompts.chat_template import ChatTemplate
from moetool.tracing.prompts.prompts import Prompt
from moetool.tracing.prompts.tokens import tokenize_prompts

TEXTS = ("Hello", " größer 🙂\n", "<s>{{ 1 }}</s>\t\u2028", "a" * 10_000)

# Some of the functions that transformers gives to templates.
GOOD = {
    "a loop": "{% for m in messages %}[{{ m.role }}] {{ m['content'] }}\n{% endfor %}",
    "special tokens": "{{ bos_token }}{{ messages[0].content | trim }}{{ eos_token }}",
    "blocks on their own lines": (
        "{%- if messages -%}\n  {{ messages[0].content }}\n{% endif %}\n"
        "    {% if add_generation_prompt %}\n[assistant]\n    {% endif %}\n\n"
    ),
    "loop controls": "{% for i in range(9) %}{% if i > 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "generation": "{% generation %}{{ messages[0].content }}{% endgeneration %}",
    "JSON": "{{ messages | tojson(indent=2) }}{{ messages[0] | tojson }}",
    "namespaces and macros": (
        "{% set ns = namespace(n=0) %}{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}"
        "{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ twice(m.content) }}{% endfor %}{{ ns.n }}"
    ),
    "what is not there": "{% if tools %}tools{% endif %}{{ documents or '' }}{{ nothing }}x",
    "a date": "{{ strftime_now('%Y') }}",
    "markup": "{{ messages[0].content | e }}&amp;",
}

# Errors, by the fault of the template.
FAILING = {
    "{{ messages[0].nothing.further }}": "UndefinedError",
    "{{ raise_exception('only two turns\\n\\x1b[31m') }}": "only two turns",
    "{% include 'secret.txt' %}": "no loader",
    "{{ ''.__class__.__mro__ }}": "SecurityError",
    "{{ messages.append(1) }}": "SecurityError",
    "{{ 1 // 0 }}": "ZeroDivisionError",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "RecursionError",
    "{{ 'ab' * 50_000_000 }}": "more than 20,000,000 characters",
    "{{ 'a' * 100_000_000_000 }}": "MemoryError",
    "{{ '%0999999999999d' % 1 }}": "",
    "{{ 'x' | center(999999999999) }}": "MemoryError",
}
BROKEN = ("{% for x in messages %}", "{{ " + "(" * 3_000 + "1" + ")" * 3_000 + " }}")
ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "{{ 9 ** (9 ** 9) }}",
)


@pytest.fixture(scope="module")
def own(demo: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(
        Checkpoint(name="demo", folder=demo, revision=None), trust_remote_code=False
    )


@pytest.fixture
def tokenizer(own: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    return copy.copy(own)


def make_prompt(text: str, *, prompt_id: str = "x\x1b") -> Prompt:
    return Prompt(prompt_id=prompt_id, domain="prose", text=text, origin="a.jsonl:1")


def encode(tokenizer: PreTrainedTokenizerBase, *texts: str) -> list[list[int]]:
    tokenized = tokenize_prompts(
        [make_prompt(text) for text in texts],
        tokenizer,
        special_tokens="chat template",
        context_tokens=None,
    )
    return [prompt.token_ids.tolist() for prompt in tokenized]


def choose_by_content(templates: Iterable[str]) -> str:
    """Return a template that acts as one of several, by the number in the prompt."""
    parts = (
        f"{{% if messages[0].content == '{number}' %}}{template}{{% endif %}}"
        for number, template in enumerate(templates)
    )
    return "".join(parts)


def test_tokens_are_those_of_transformers_own_rendering(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "\n--\n".join(GOOD.values())
    expected = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        for text in TEXTS
    ]
    assert all(expected)
    assert encode(tokenizer, *TEXTS) == expected


def test_one_of_several_named_templates_is_the_default(tokenizer: PreTrainedTokenizerBase) -> None:
    named = {"default": "[{{ messages[0].content }}]", "tool_use": "no"}
    tokenizer.chat_template = named
    (ids,) = encode(tokenizer, "Hello")
    assert tokenizer.decode(ids) == "[Hello]"


def test_a_template_that_fails_is_refused_with_the_prompt(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = choose_by_content(FAILING)
    with ChatTemplate(tokenizer) as chat:
        for number, (template, seen) in enumerate(FAILING.items()):
            with pytest.raises(InputError) as caught:
                chat.render(make_prompt(str(number)))
            assert caught.value.message == r"a.jsonl:1: the chat template fails on prompt 'x\x1b'."
            (fact,) = caught.value.facts
            assert seen in fact, template
            assert fact.isprintable()
            assert len(fact) < 300


@pytest.mark.parametrize("template", BROKEN, ids=lambda template: template[:30])
def test_a_template_that_can_not_be_read_is_refused(
    template: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(InputError, match="the chat template fails on prompt"):
        encode(tokenizer, "Hello")


@pytest.mark.parametrize("template", ENDLESS)
def test_a_template_that_does_not_end_is_ended(
    template: str, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "_RENDERING_S", 2.0)
    tokenizer.chat_template = template
    with pytest.raises(InputError, match="did not finish within 2 s on prompt"):
        encode(tokenizer, "Hello")


def test_a_template_that_doubles_its_text_for_ever_runs_out_of_its_own_memory(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = (
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}"
        "{% endfor %}{{ ns.x }}"
    )
    with pytest.raises(InputError, match="fails on prompt"):
        encode(tokenizer, "Hello")


def test_half_a_surrogate_pair_is_no_text(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "a\ud800{{ messages[0].content }}"
    with pytest.raises(InputError, match="half a surrogate pair"):
        encode(tokenizer, "Hello")


@pytest.mark.parametrize("template", [["a"], {"tool_use": "a"}, 3])
def test_what_is_not_a_template_is_refused(
    template: object, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(InputError, match="chat template"):
        encode(tokenizer, "Hello")


def test_a_prompt_that_fails_does_not_spoil_the_next(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = (
        "{% if messages[0].content == 'bad' %}{{ raise_exception('bad') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    with ChatTemplate(tokenizer) as chat:
        assert chat.render(make_prompt("good")) == "good"
        for _ in range(2):
            with pytest.raises(InputError, match="fails"):
                chat.render(make_prompt("bad"))
        assert chat.render(make_prompt("a" * 3_000_000)) == "a" * 3_000_000


@pytest.mark.parametrize("ending", ["in order", "with an error"])
def test_the_process_ends_with_the_context(
    ending: str, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def keep(*args: object, **kwargs: object) -> subprocess.Popen[bytes]:
        started.append(start(*args, **kwargs))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", keep)
    tokenizer.chat_template = "{{ messages[0].content }}"
    if ending == "in order":
        encode(tokenizer, "Hello")
    else:
        with pytest.raises(KeyboardInterrupt), ChatTemplate(tokenizer):
            raise KeyboardInterrupt
    (process,) = started
    assert process.poll() is not None
