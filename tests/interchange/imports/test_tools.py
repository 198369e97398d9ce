"""mbolt, OLMoE, ESFT and moe-policylang give back the decisions they recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moetool import import_trace
from moetool.errors import InputError, UsageError
from tests.interchange.imports import foreign
from tests.interchange.imports.known import Known, find_decisions, make_known, read_imported


def write_mbolt(path: Path, known: Known) -> Path:
    """Write each prompt as a forward pass."""
    words = [0x544C424D, 1, known.num_experts]
    for prompt in known.prompts:
        for layer in known.routed:
            words += [layer, known.top_k, prompt.num_rows, *prompt.experts[:, layer].ravel()]
    np.array(words, dtype="<i4").tofile(path)
    return path


def test_mbolt_round_trip_and_a_tail_that_breaks_off(tmp_path: Path) -> None:
    known = make_known(9)
    path = write_mbolt(tmp_path / "route.bin", known)
    names = {each.prompt_id: f"pass{number}" for number, each in enumerate(known.prompts)}
    expected = known.decisions(with_weights=False, prompt_ids=names)
    result = import_trace("mbolt", path, tmp_path / "t.parquet")
    frame, metadata = read_imported(result.path)
    assert find_decisions(frame) == expected
    assert metadata["complete"] is True
    whole = path.read_bytes()
    for num_missing in (1, 4, 4 * known.prompts[-1].num_rows * known.top_k + 6):
        path.write_bytes(whole[:-num_missing])
        cut = import_trace("mbolt", path, tmp_path / f"{num_missing}.parquet")
        frame, metadata = read_imported(cut.path)
        kept = {key: each for key, each in expected.items() if (key[0], key[2]) != ("pass2", 3)}
        assert find_decisions(frame) == kept
        assert metadata["complete"] is False
        assert any("breaks off in its last record" in note for note in cut.notes)


def test_mbolt_files_of_several_runs_have_distinct_prompts(tmp_path: Path) -> None:
    paths = [write_mbolt(tmp_path / f"{name}.bin", make_known(1)) for name in "ab"]
    frame, _ = read_imported(import_trace("mbolt", paths, tmp_path / "t.parquet").path)
    assert frame["prompt_id"].nunique() == 6
    words = np.fromfile(paths[0], dtype="<i4")
    words[3] = -1
    words.tofile(paths[0])
    with pytest.raises(InputError, match=r"has layer -1, top-2 .* at byte 12"):
        import_trace("mbolt", paths, tmp_path / "u.parquet")


def test_olmoe_round_trip_of_two_files(tmp_path: Path) -> None:
    known = make_known(10, routed=(0, 1, 2, 3))
    lines = [
        {
            "input_ids": prompt.ids[:-1].tolist(),
            "predicted_token_ids": prompt.ids[1:].tolist(),
            "exp_ids": prompt.experts.transpose(0, 2, 1).tolist(),
        }
        for prompt in known.prompts
    ]
    paths = [foreign.write_lines(tmp_path / f"{name}.jsonl", lines) for name in "ab"]
    result = import_trace("olmoe", paths, tmp_path / "t.parquet", num_experts=8)
    frame, _ = read_imported(result.path)
    expected = {}
    for file in "ab":
        names = {each.prompt_id: f"{file}/line{n}" for n, each in enumerate(known.prompts, 1)}
        expected.update(known.decisions(with_weights=False, prompt_ids=names))
    assert find_decisions(frame) == expected
    own = frame[frame["prompt_id"] == "b/line2"]
    assert own["token_id"].tolist() == known.prompts[1].ids[own["position"]].tolist()
    with pytest.raises(InputError, match="has 4 layers, but 2 routed ones were given"):
        import_trace("olmoe", paths, tmp_path / "u.parquet", layers=[0, 1])


def write_esft(folder: Path, known: Known) -> Path:
    """Write a file for each layer, with a line for each prompt."""
    folder.mkdir(parents=True)
    for layer in known.routed:
        lines = []
        for prompt in known.prompts:
            ids = "\t".join(map(str, prompt.experts[:, layer].ravel()))
            weights = "\t".join(f"{each:.4f}" for each in prompt.weights[:, layer].ravel())
            lines.append(f"{ids}\t\t{weights}\n")
        (folder / f"expert_weights_{layer}.txt").write_text("".join(lines))
    return folder


def test_esft_round_trip_with_tasks_as_domains(tmp_path: Path) -> None:
    expected: dict[Any, Any] = {}
    for task, rank, seed in (("law", 0, 1), ("law", 1, 2), ("intent", 0, 3)):
        known = make_known(seed, top_k=3)
        write_esft(tmp_path / task / f"rank_{rank}", known)
        prefix = f"{task}/rank_{rank}/line"
        names = {each.prompt_id: f"{prefix}{n}" for n, each in enumerate(known.prompts, 1)}
        expected.update(known.decisions(with_weights=True, prompt_ids=names))
    folders = [tmp_path / task for task in ("law", "intent")]
    result = import_trace("esft", folders, tmp_path / "t.parquet", top_k=3, num_experts=8)
    frame, metadata = read_imported(result.path)
    found = find_decisions(frame)
    assert found.keys() == expected.keys()
    for key, (experts, weights) in expected.items():
        assert found[key][1] == pytest.approx(weights, abs=6e-5)
        # Weights that four decimals make equal keep their order.
        assert found[key][0] == experts
    assert {str(each) for each in frame["domain"]} == {"law", "intent"}
    assert [each["layer"] for each in metadata["layers"]] == [1, 2, 3]
    with pytest.raises(UsageError, match="which takes their lines apart"):
        import_trace("esft", folders, tmp_path / "u.parquet")
    with pytest.raises(InputError, match="experts, which are not 7 for each token"):
        import_trace("esft", folders, tmp_path / "u.parquet", top_k=7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("\t\t", "\t"), "is not a line of ESFT"),
        (lambda text: text[: text.rindex("\t")], "is not a line of ESFT"),
        (lambda text: text + "1\t2\t\t0.5\t0.5\n", "has no line 4"),
        (lambda text: text.replace("\n", "\t7\n", 1), "is not a line of ESFT"),
    ],
)
def test_esft_errors_are_named(change: Any, message: str, tmp_path: Path) -> None:
    folder = write_esft(tmp_path / "law", make_known(4))
    path = folder / "expert_weights_2.txt"
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=message):
        import_trace("esft", folder, tmp_path / "t.parquet", top_k=2)


def make_policylang(known: Known, **changes: Any) -> pa.Table:
    """Return a row for each decision."""
    rows = [
        {
            "prompt_id": number,
            "token_idx": position,
            "layer_idx": layer,
            "selected_experts": prompt.experts[position, layer].tolist(),
            "router_scores": prompt.weights[position, layer].astype(float).tolist(),
            "router_softmax": [0.125] * known.num_experts,
            "token_id": int(prompt.ids[position]),
            "phase": "prefill" if position < prompt.num_prompt_tokens else "decode",
            "domain_tag": f"domain-{number % 2}",
            **changes,
        }
        for number, prompt in enumerate(known.prompts)
        for position in range(prompt.num_rows)
        for layer in known.routed
    ]
    return pa.Table.from_pylist(rows)


def test_policylang_round_trip_is_marked_as_inexact(tmp_path: Path) -> None:
    known = make_known(11)
    pq.write_table(make_policylang(known), tmp_path / "trace.parquet")
    result = import_trace("moe-policylang", tmp_path / "trace.parquet", tmp_path / "t.parquet")
    frame, metadata = read_imported(result.path)
    names = {each.prompt_id: str(number) for number, each in enumerate(known.prompts)}
    assert find_decisions(frame) == known.decisions(with_weights=True, prompt_ids=names)
    assert metadata["exact"] is False
    assert metadata["notes"][1].startswith("Not exact: moe-policylang computes the routing again")
    assert {each["num_experts"] for each in metadata["layers"]} == {8}
    own = frame[frame["prompt_id"] == "1"]
    assert own["token_id"].tolist() == known.prompts[1].ids[own["position"]].tolist()
    assert set(own["domain"]) == {"domain-1"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selected_experts": None}, "something other than lists of numbers"),
        ({"selected_experts": [1, None]}, "has a list with nothing"),
        ({"selected_experts": [1]}, "other numbers of 'router_scores'"),
        ({"router_scores": [0.5, float("nan")]}, "has the weight nan"),
        ({"token_idx": None}, "whole numbers in 'token_idx'"),
        ({"prompt_id": None}, "without 'prompt_id'"),
        ({"phase": "training"}, "has a phase other than prefill and decode"),
        ({"selected_experts": [1, 1]}, "has expert 1 twice"),
    ],
)
def test_policylang_errors_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    pq.write_table(make_policylang(make_known(), **changes), tmp_path / "trace.parquet")
    with pytest.raises(InputError, match=message):
        import_trace("moe-policylang", tmp_path / "trace.parquet", tmp_path / "t.parquet")


def test_policylang_prompts_with_two_domains_are_refused(tmp_path: Path) -> None:
    pq.write_table(make_policylang(make_known(), prompt_id=0), tmp_path / "trace.parquet")
    with pytest.raises(InputError, match="has the prompt 0 under several domains"):
        import_trace("moe-policylang", tmp_path / "trace.parquet", tmp_path / "t.parquet")


def test_files_of_one_name_have_distinct_prompts_and_none_is_given_twice(tmp_path: Path) -> None:
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(write_mbolt(tmp_path / folder / "route.bin", make_known(1)))
    frame, _ = read_imported(import_trace("mbolt", paths, tmp_path / "t.parquet").path)
    assert {name.partition("/")[0] for name in frame["prompt_id"]} == {"route#0", "route#1"}
    assert frame["prompt_id"].nunique() == 6
    with pytest.raises(UsageError, match="was given twice"):
        import_trace("mbolt", [paths[0], paths[0]], tmp_path / "u.parquet")
