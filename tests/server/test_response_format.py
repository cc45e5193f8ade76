"""response_format over HTTP: on a babbling model the answer has the format, whatever else is asked; what cannot be followed is a 400."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest
from friendli_runtime.engine import Engine
from structured.random_model import RandomModel

from .conftest import TestServer, start
from .test_completions import frames

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
REGEX = {"type": "regex", "schema": r"(yes|no), \d{2}"}


def babbling_engine(tokenizer: Any, eos_id: int, *, closing_bias: float = 3.0, **options: Any) -> Engine:
    vocab_size = tokenizer.backend.num_tokens + 3
    model = RandomModel(tokenizer, vocab_size, eos_id, closing_bias=closing_bias)
    return Engine(model, max_num_tokens=256, max_context_len=4096, vocab_size=vocab_size, has_dispatcher=False)


@pytest.fixture(scope="module")
def babbling() -> Iterator[TestServer]:
    running, stop = start(make_engine=babbling_engine)
    yield running
    stop()


def texts(server: TestServer, route: str, *, stream: bool = False, any_end: bool = False, **fields: Any) -> list[str]:
    """The text of each choice."""
    what = {"messages": [{"role": "user", "content": "hello"}]} if route == "/v1/chat/completions" else {"prompt": "hello"}
    response = server.post(route, **{"temperature": 1.5, "max_tokens": 300, "stream": stream, **what, **fields})
    assert response.status_code == 200, response.text
    parts: dict[int, str] = {}
    for frame in frames(response) if stream else [response.json()]:
        for choice in frame["choices"]:
            part = choice["text"] if "text" in choice else choice.get("delta", choice.get("message")).get("content", "")
            parts[choice["index"]] = parts.get(choice["index"], "") + part
            assert any_end or choice["finish_reason"] in ("stop", None), choice
    return [parts[index] for index in sorted(parts)]


ROUTES = ["/v1/chat/completions", "/v1/completions"]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_has_its_format(babbling: TestServer, route: str, stream: bool) -> None:
    for seed in range(3):
        for text in texts(babbling, route, stream=stream, response_format=SCHEMA, n=2, seed=seed):
            jsonschema.validate(json.loads(text), PERSON)
        for text in texts(babbling, route, stream=stream, response_format=REGEX, n=2, seed=seed):
            assert re.fullmatch(r"(yes|no), \d{2}", text)


def test_a_json_object_is_an_object_or_an_array(server: TestServer) -> None:
    for script in ('{"a": [1]}', "[1, {} ] "):
        assert texts(server, ROUTES[1], prompt=f"[[{script}]]", response_format={"type": "json_object"})[0].strip() == script.strip()
    other = texts(server, ROUTES[1], prompt="[[so: 1]]", response_format={"type": "json_object"}, max_tokens=1, any_end=True)[0]
    assert other[0] in "{["


def test_every_prompt_of_a_batch_is_constrained(babbling: TestServer) -> None:
    answers = texts(babbling, ROUTES[1], prompt=["a", "b", "c"], response_format=REGEX)
    assert len(answers) == 3 and all(re.fullmatch(r"(yes|no), \d{2}", text) for text in answers)


def test_text_and_null_ask_for_nothing(server: TestServer) -> None:
    for response_format in ({"type": "text"}, None):
        assert texts(server, ROUTES[1], prompt="[[hello]]", response_format=response_format) == ["hello"]


def test_a_model_that_follows_the_format_is_not_disturbed(server: TestServer) -> None:
    script = '{"name": "Ann", "age": 7}'
    assert texts(server, ROUTES[1], prompt=f"[[{script}]]", response_format=SCHEMA) == [script]


def test_the_same_seed_gives_the_same_answer(babbling: TestServer) -> None:
    def answer() -> list[str]:
        return texts(babbling, ROUTES[0], response_format=SCHEMA, seed=5, n=2)

    with ThreadPoolExecutor(8) as pool:
        assert len({tuple(one.result()) for one in [pool.submit(answer) for _ in range(8)]}) == 1


def test_a_cut_answer_ends_with_length(babbling: TestServer) -> None:
    response = babbling.post(ROUTES[1], prompt="x", response_format=SCHEMA, max_tokens=3)
    choice = response.json()["choices"][0]
    assert choice["finish_reason"] == "length" and len(choice["tokens"]) == 3


def test_a_stop_string_ends_only_a_whole_answer(server: TestServer) -> None:
    script = '{"name": "stop it", "age": 7}'
    assert texts(server, ROUTES[1], prompt=f"[[{script}]]", response_format=SCHEMA, stop=["stop", "}"]) == [script]
    pattern = {"type": "regex", "schema": "[a-z]+( [a-z]+)*"}
    assert texts(server, ROUTES[1], prompt="[[one two three]]", response_format=pattern, stop=[" "]) == ["one"]


def test_an_extra_end_token_ends_only_a_whole_answer(server: TestServer) -> None:
    script = '{"name": "Ann", "age": 7}'
    colon = server.tokenizer.encode(":")
    assert len(colon) == 1
    for field in ({"eos_token": colon}, {"stop_tokens": [{"tokens": colon}]}):
        text = texts(server, ROUTES[1], prompt=f"[[{script}]]", response_format={"type": "regex", "schema": "[a-z]+:?"}, seed=1, **field)[0]
        assert re.fullmatch("[a-z]+", text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_tokens", 3),
        ("min_total_tokens", 300),
        ("ignore_eos", True),
        ("forced_output_tokens", [5]),
        ("stop_tokens", [{"tokens": [5, 6]}]),
    ],
)
def test_fields_that_contradict_a_format_are_refused(server: TestServer, field: str, value: Any) -> None:
    response = server.post(ROUTES[1], prompt="x", response_format=SCHEMA, **{field: value})
    assert response.status_code == 422 and "response_format" in response.json()["message"]
    assert response.json()["error"]["param"] == field


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_schema", "json_schema": {"schema": {"not": {}}}},
        {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://127.0.0.1/x"}}},
        {"type": "json_schema", "json_schema": {"schema": {"type": "object", "x-guidance": {"lenient": True}, "if": {}}}},
        {"type": "regex", "schema": "(?=a)"},
        {"type": "regex", "schema": "(" * 4000},
        {"type": "grammar", "grammar": "x"},
        {},
    ],
)
def test_a_format_that_cannot_be_followed_is_a_400(server: TestServer, route: str, response_format: dict[str, Any]) -> None:
    what = {"messages": [{"role": "user", "content": "[[x]]"}]} if "chat" in route else {"prompt": "[[x]]"}
    response = server.post(route, response_format=response_format, **what)
    assert response.status_code == 400 and response.json()["error"]["param"] == "response_format", response.text


@pytest.mark.parametrize("value", [3, "json_object", [SCHEMA], True])
def test_a_format_of_the_wrong_type_is_a_400(server: TestServer, value: Any) -> None:
    assert server.post(ROUTES[1], prompt="x", response_format=value).status_code == 400


def test_a_constraint_that_leaves_no_token_ends_with_an_error_of_the_request(babbling: TestServer) -> None:
    digits = {str(token_id): -1e6 for token_id in range(3)}  # harmless
    assert babbling.post(ROUTES[1], prompt="x", response_format=REGEX, logit_bias=digits).status_code == 200
    pattern = {"type": "regex", "schema": "Q{9}"}
    vocab = range(babbling.tokenizer.backend.num_tokens)
    bad = [{"tokens": [token_id]} for token_id in vocab if b"Q" in babbling.tokenizer.token_bytes(token_id)]
    response = babbling.post(ROUTES[1], prompt="x", response_format=pattern, bad_word_tokens=bad)
    assert response.status_code == 422 and response.json()["error"]["code"] == "no_token_left"


def test_a_server_without_a_tokenizer_refuses_formats(make_server: Any) -> None:
    response = make_server(with_tokenizer=False).post(ROUTES[1], tokens=[5], response_format=SCHEMA)
    assert response.status_code == 400
