"""Token ids in a checkpoint's generation settings, checked before they are used."""

from __future__ import annotations

import pytest

from moetool.errors import InputError
from moetool.tracing.running.token_settings import check_token_settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bos_token_id": "<s>"}, "bos_token_id '<s>' is not the number of a token"),
        ({"eos_token_id": [2, "</s>"]}, "eos_token_id '</s>' is not the number of a token"),
        ({"eos_token_id": [[2]]}, r"eos_token_id \[2\] is not the number"),
        ({"bos_token_id": [1]}, r"bos_token_id \[1\] is not the number"),
        ({"pad_token_id": True}, "pad_token_id True is not the number"),
        ({"suppress_tokens": {"a": 1}}, "suppress_tokens .* is not the number"),
        ({"eos_token_id": 10**30}, "eos_token_id 10* is not the number"),
        ({"decoder_start_token_id": 100}, "decoder_start_token_id 100 is not a token of the model"),
        ({"pad_token_id": -1}, "pad_token_id -1 is not a token of the model, which has 100"),
        ({"forced_bos_token_id": "\x1b" * 999}, r"forced_bos_token_id '\\x1b.{,250} is not"),
    ],
)
def test_what_is_not_a_token_is_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        check_token_settings(settings, vocabulary=100)
    assert caught.value.hint.startswith("Use the generation_config.json")


def test_tokens_and_nothing_are_let_pass() -> None:
    settings = {
        "bos_token_id": 1,
        "eos_token_id": [2, 99],
        "pad_token_id": None,
        "suppress_tokens": [-1, 5_000],
    }
    check_token_settings(settings, vocabulary=100)
    check_token_settings({"bos_token_id": 5_000}, vocabulary=None)


def test_a_decoder_that_reads_its_prompt_needs_no_token_to_begin_with() -> None:
    check_token_settings({"bos_token_id": 50_256}, vocabulary=1000, reads_start=False)
    with pytest.raises(InputError, match="bos_token_id"):
        check_token_settings({"bos_token_id": 50_256}, vocabulary=1000)
    with pytest.raises(InputError, match="pad_token_id"):
        check_token_settings({"pad_token_id": 1000}, vocabulary=1000, reads_start=False)
