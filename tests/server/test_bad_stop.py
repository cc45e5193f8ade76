"""--bad-stop-file-path: what the file says holds for every request; what is wrong in it is said."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from friendli_runtime.errors import ConfigError
from friendli_runtime.server.app import AppOptions
from friendli_runtime.server.bad_stop import BadStop, read_bad_stop
from structured.random_model import tokenizer_of

from .conftest import TestServer, start
from .test_response_format import babbling_engine

VOCAB_SIZE = 400


def read(tmp_path: Path, content: Any) -> BadStop:
    path = tmp_path / "bad-stop.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_bad_stop(path, tokenizer_of("byte_level"), VOCAB_SIZE)


@pytest.fixture(scope="module")
def stopping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServer]:
    content = {"stop": ["END"], "stop_tokens": [{"tokens": [40, 41]}, {"tokens": [42]}], "bad_words": ["hello"]}
    running, stop = start(AppOptions(bad_stop=read(tmp_path_factory.mktemp("file"), content)))
    yield running
    stop()


def test_stop_phrases_hold_beside_those_of_the_request(stopping: TestServer) -> None:
    for fields in ({}, {"stop": "zzz"}):
        assert stopping.post("/v1/completions", prompt="[[one END two]]", **fields).json()["choices"][0]["text"] == "one "
        chat = stopping.post("/v1/chat/completions", messages=[{"role": "user", "content": "[[one END two]]"}], **fields)
        assert chat.json()["choices"][0]["message"]["content"] == "one "
    assert stopping.post("/v1/completions", prompt="[[one END two]]", stop="e").json()["choices"][0]["text"] == "on"


def test_the_engine_gets_stop_tokens_and_bad_words(tmp_path: Path) -> None:
    plain, stop_plain = start(make_engine=babbling_engine, closing_bias=-5.0)
    fields = {"prompt": "x", "seed": 1, "max_tokens": 20}
    tokens = plain.post("/v1/completions", **fields).json()["choices"][0]["tokens"]
    stop_plain()
    bad_stop = read(tmp_path, {"stop_tokens": [{"tokens": tokens[9:11]}], "bad_word_tokens": [{"tokens": [tokens[3]]}]})
    changed, stop_changed = start(AppOptions(bad_stop=bad_stop), make_engine=babbling_engine, closing_bias=-5.0)
    other = changed.post("/v1/completions", **fields).json()["choices"][0]["tokens"]
    stop_changed()
    assert other[:3] == tokens[:3] and tokens[3] not in other


def test_formats_go_on_beside_the_file(stopping: TestServer) -> None:
    response = stopping.post("/v1/completions", prompt="[[x]]", response_format={"type": "regex", "schema": "[xy]{3}"})
    assert response.status_code == 200 and len(response.json()["choices"][0]["text"]) == 3


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", {"stops": []}, {"stop": "a"}, {"stop": [""]}, {"bad_words": [3]}),
        *({"stop_tokens": [[1]]}, {"stop_tokens": [{"tokens": []}]}, {"bad_word_tokens": [{"tokens": [VOCAB_SIZE]}]}),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ConfigError):
        read(tmp_path, content)
