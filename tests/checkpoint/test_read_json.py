"""JSON files that are hostile, broken or unusual."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.checkpoint.files import read_json
from moetool.checkpoint.strict_json import JsonError, parse_json
from moetool.errors import InputError

values: st.SearchStrategy[object] = st.deferred(
    lambda: (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text()
        | st.lists(values, max_size=3)
        | st.dictionaries(st.text(), values, max_size=3)
    )
)


@settings(deadline=None)
@given(values, st.booleans())
def test_what_json_writes_is_read_back(value: object, is_ascii: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=is_ascii).encode()) == value


@settings(deadline=None, max_examples=300)
@given(values, st.data())
def test_bytes_are_read_or_refused_and_never_end_otherwise(
    value: object, data: st.DataObject
) -> None:
    content = bytearray(json.dumps(value).encode())
    place = data.draw(st.integers(0, len(content)))
    content[place : place + 1] = data.draw(st.binary(max_size=3))

    try:
        read = parse_json(bytes(content))
    except JsonError as error:
        assert str(error)  # noqa: PT017  either way is right, if it says something
    else:
        json.dumps(read, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "can't be read as JSON: Expecting value", id="empty"),
        pytest.param(b'{"a": ', "can't be read as JSON: Expecting value", id="broken off"),
        pytest.param(b"\xff\xfe{}", "can't be read as JSON: 'utf-8' codec", id="no UTF-8"),
        pytest.param(b"\xef\xbb\xbf{}", "can't be read as JSON: Unexpected UTF-8 BOM", id="mark"),
        pytest.param(b"[" * 100_000, "it is nested too deeply", id="deep"),
        pytest.param(b'{"a":' * 100_000, "it is nested too deeply", id="deep objects"),
        pytest.param(b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", "too deeply", id="whole and deep"),
        pytest.param(b'{"a": ' * 101 + b"1" + b"}" * 101, "too deeply", id="101 levels"),
        pytest.param(b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit", id="5000 digits"),
        pytest.param(b'{"b": 2, "a": 1, "a": 1}', "it has 'a' twice", id="a key twice"),
        pytest.param(b'{"b": {"a": 1, "a": 2}}', "it has 'a' twice", id="a key twice within"),
        pytest.param(b'{"a": "\\ud800"}', "half a character", id="half a character"),
        pytest.param(b'{"\\udc00": 1}', "half a character", id="half a character as a key"),
        pytest.param(b"[]", "holds no JSON object", id="a list"),
        pytest.param(b"null", "holds no JSON object", id="null"),
    ],
)
def test_a_file_that_holds_no_clear_json_object_is_refused(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)

    with pytest.raises(InputError) as caught:
        read_json(path, missing="")

    assert f"'{path}' " in caught.value.message
    assert reason in caught.value.message
    assert caught.value.hint == "Download or write the file again."


def test_a_hundred_levels_are_read() -> None:
    content = b'{"a": ' * 50 + b"[" * 50 + b"]" * 50 + b"}" * 50
    assert json.dumps(parse_json(content)).encode() == content


def test_what_python_writes_beyond_json_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": NaN, "b": [0.0, Infinity], "c": "\\ud83d\\ude00", "d": 1e999}')

    value = read_json(path, missing="")

    assert math.isnan(float(str(value["a"])))
    assert value["b"] == [0.0, math.inf]
    assert value["c"] == "😀"
    assert value["d"] == math.inf


def test_a_file_of_a_size_that_no_configuration_has_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)

    with pytest.raises(InputError, match="it is larger than 10 MB"):
        read_json(path, missing="")


def test_a_folder_a_missing_file_and_a_link_to_nothing_are_missing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "link")

    for name in ("folder", "nothing", "link"):
        with pytest.raises(InputError, match=r"(?m)^It is not there\.$"):
            read_json(tmp_path / name, missing="It is not there.")


def test_a_file_that_cannot_be_opened_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")

    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    # Not by its mode: whoever runs the tests as root may read everything.
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match="can't be read as JSON: Permission denied"):
        read_json(path, missing="")


def test_an_index_may_be_larger_than_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {f"tensor.{n}": "a" for n in range(300_000)}}))
    assert len(path.read_bytes()) > 5_000_000
    weight_map = read_json(path, missing="")["weight_map"]
    assert isinstance(weight_map, dict)
    assert len(weight_map) == 300_000


@pytest.mark.parametrize(
    "content",
    ['{"a": [' + "[]," * 300_000 + "[]]}", json.dumps({f"k{n}": n for n in range(300_000)})],
    ids=["lists", "keys"],
)
def test_a_number_of_values_that_no_configuration_has_is_refused_unread(
    content: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(InputError, match="it has more than 200,000 values"):
        read_json(path, missing="")


def test_the_labels_of_a_large_data_set_are_not_too_many(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    names = [f"a label, with a comma {n}" for n in range(22_000)]
    labels = {"id2label": dict(enumerate(names)), "label2id": dict.fromkeys(names, 0)}
    path.write_text(json.dumps(labels, indent=2))
    assert read_json(path, missing="")
