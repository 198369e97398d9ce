"""Hub ids that the catalogue knows, while the Hub can't be reached."""

from __future__ import annotations

import json

import pytest
from huggingface_hub.errors import GatedRepoError

from moetool.catalogue.published import read_published_config
from moetool.checkpoint.hub import refuse_if_certain
from moetool.checkpoint.reference import resolve_model
from moetool.checkpoint.subject import AskedSource, find_subject
from moetool.errors import InputError
from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.command import RunMoetool

NAME = "granite-3.0-1b-a400m"
HUB_ID = "ibm-granite/granite-3.0-1b-a400m-instruct"
NOTE = f"the configuration is the catalogue's ({NAME}), and the files on the Hub were not looked at"


@pytest.mark.parametrize(
    "model", [HUB_ID, HUB_ID.upper(), f"https://huggingface.co/{HUB_ID}/tree/main"]
)
def test_inspect_takes_the_catalogues_configuration_and_says_so(
    model: str, run_moetool: RunMoetool
) -> None:
    completed = run_moetool("inspect", model, "--format", "json")
    assert completed.returncode == 0, completed.stderr
    (shown,) = json.loads(completed.stdout)["models"]
    (known,) = json.loads(run_moetool("inspect", NAME, "--format", "json").stdout)["models"]

    assert shown["model"].lower() == HUB_ID
    assert any(NOTE in note for note in shown["notes"])
    assert shown["parameters"] == known["parameters"]
    assert shown["published"] == known["published"]


def test_memory_estimate_does_too(run_moetool: RunMoetool) -> None:
    sizes = ("--prompt-tokens", "16", "--new-tokens", "2", "--format", "json")
    completed = run_moetool("memory-estimate", HUB_ID, *sizes)
    assert completed.returncode == 0, completed.stderr
    (shown,) = json.loads(completed.stdout)["estimates"]
    (known,) = json.loads(run_moetool("memory-estimate", NAME, *sizes).stdout)["estimates"]

    assert any(NOTE in note for note in shown["notes"])
    assert shown["peak_allocated_bytes"] == known["peak_allocated_bytes"]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--revision", "v1"), "Leave out the revision to use the catalogue's configuration"),
        (("--source", "headers"), "Leave out --source to use the catalogue's configuration"),
    ],
)
def test_what_only_the_hub_has_is_not_taken_from_the_catalogue(
    words: tuple[str, ...], hint: str, run_moetool: RunMoetool
) -> None:
    expected = Refusal(3, error=f"Can't reach the Hub for {HUB_ID}", hint=hint, fact="seen: ")

    assert_refused(run_moetool("inspect", HUB_ID, *words), expected, target=None)


def test_a_revision_in_an_address_is_not_taken_from_the_catalogue(run_moetool: RunMoetool) -> None:
    expected = Refusal(3, error=f"Can't reach the Hub for {HUB_ID}", hint="Leave out the revision")

    completed = run_moetool("inspect", f"https://hf.co/{HUB_ID}/tree/v1")

    assert_refused(completed, expected, target=None)


def test_weights_are_fetched_where_the_hub_answers(run_moetool: RunMoetool) -> None:
    expected = Refusal(
        3, error=f"Can't reach the Hub for {HUB_ID}", hint=f"Run `hf download {HUB_ID}` where"
    )

    assert_refused(run_moetool("route-trace", HUB_ID, "--prompt", "x"), expected, target=None)


def test_a_model_without_a_configuration_in_the_catalogue_stays_refused() -> None:
    reference = resolve_model("moonshotai/Kimi-K3")

    with pytest.raises(InputError, match="Can't reach the Hub for moonshotai/Kimi-K3") as caught:
        find_subject(reference, source=AskedSource.AUTO, revision=None)
    assert "HF_HUB_OFFLINE" in caught.value.hint


def test_a_subject_says_where_its_configuration_is_from() -> None:
    subject = find_subject(resolve_model(HUB_ID), source=AskedSource.SKELETON, revision=None)

    assert subject.config == read_published_config(NAME)
    assert subject.is_from_catalogue
    assert (subject.headers, subject.revision, subject.code) == (None, None, None)


def test_a_gated_model_of_the_catalogue_is_named_by_its_short_name() -> None:
    # Which HTTP library the answer is of differs between versions of huggingface_hub.
    error = GatedRepoError.__new__(GatedRepoError)

    with pytest.raises(InputError) as caught:
        refuse_if_certain(error, hub_id=HUB_ID, revision=None)
    assert f"or name {NAME}, whose configuration ships with moetool" in caught.value.hint
    with pytest.raises(InputError) as caught:
        refuse_if_certain(error, hub_id="org/name", revision=None)
    assert caught.value.hint == "Ask for access on its Hub page, then run `hf auth login`."
