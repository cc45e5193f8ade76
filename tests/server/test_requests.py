"""The step that reads an ordinary request at once agrees with the steps that explain what is odd about one."""

import json
import random
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from friendli_runtime._core import has_unique_names, plain_messages
from friendli_runtime.server import chat
from friendli_runtime.server.errors import ApiError
from friendli_runtime.server.fields import IGNORED, ChatRequest, CompletionRequest, decode_request
from friendli_runtime.server.http import parse_json_object, parse_request
from friendli_runtime.server.limits import Limits

LIMITS = Limits()
VALUES: list[str] = [
    *('"a"', '"\\u00e9\\n"', '"\\ud800"', "null", "true", "false", "0", "-1", "1.0", "1e2", "1.5", "1e400", "NaN", "123456789012345678901"),
    *(
        "[]",
        "{}",
        "[1, 2]",
        '["a"]',
        '[{"role": "user", "content": "x"}]',
        '{"a": 1, "a": 2}',
        '{"include_usage": true}',
        "[[1]]",
        "[null]",
    ),
    *('{"5": 1.5}', '{"5": null}', '{"tokens": [1], "more": 1}', '[{"tokens": [1]}]', '{"a": {"b": [{"c": 1}]}, "b": {"b": 2}}'),
]


def outcome(body: bytes, read: Any) -> Any:
    try:
        return msgspec.to_builtins(read(body))
    except ApiError as error:
        return error.status, error.message, error.param, error.code


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest])
def test_random_bodies_are_read_or_refused_as_step_by_step(kind: type[Any]) -> None:
    rng = random.Random(3)
    names = [*kind.__struct_fields__, *sorted(IGNORED), "tools", "best_of", "temperatur", "a\\u0062"]
    num_read = 0
    for _ in range(4000):
        fields = [f'"{rng.choice(names)}": {rng.choice(VALUES)}' for _ in range(rng.randrange(3))]
        body = "{" + ", ".join([*fields, '"messages": [{"role": "user", "content": "x"}]'][: None if kind is ChatRequest else -1]) + "}"
        both = [outcome(body.encode(), read) for read in (lambda b: parse_request(b, LIMITS, kind), lambda b: by_steps(b, kind))]
        if isinstance(both[0], dict):
            both[0] = {name: value for name, value in both[0].items() if name in kind.__struct_fields__}
            num_read += 1
        assert both[0] == both[1], body
    assert num_read > 300


def by_steps(body: bytes, kind: type[Any]) -> Any:
    return decode_request(parse_json_object(body, LIMITS), kind)


@pytest.mark.parametrize("body", [b'{"prompt": "x\xff"}', b'{"prompt": "x"', b"[1]", b'{"prompt": "x"} {}', b"", b"\xef\xbb\xbf{}"])
def test_what_is_not_a_json_object_is_refused_as_step_by_step(body: bytes) -> None:
    first, second = (
        outcome(body, read) for read in (lambda b: parse_request(b, LIMITS, CompletionRequest), lambda b: by_steps(b, CompletionRequest))
    )
    assert first == second and first[0] == 400


def is_surely_unique(body: bytes) -> bool:
    return has_unique_names(body, max_depth=1000, max_containers=1000)


def test_names_are_surely_unique_or_perhaps_not() -> None:
    for text in (
        '{"a": {"a": 1}, "b": {"a": "a"}}',
        '["a", "a", {"a": ["x", "x"]}]',
        '{"a": "\\"b\\":", "b": "{,\\"a\\":"}',
        '{"": 1}',
        "1",
    ):
        assert is_surely_unique(text.encode()), text
    for text in (
        '{"a": 1, "a": 2}',
        '{"a": {"b": 1}, "c": [{"d": 1, "d": 1}]}',
        '{"a": {"x": 1}, "a": 1}',
        '{"\\u0061": 1}',
        '{"a": "',
        "]",
    ):
        assert not is_surely_unique(text.encode()), text
    assert not is_surely_unique(json.dumps({f"n{i}": i for i in range(65)}).encode())
    assert not is_surely_unique(b"[" * 65 + b"]" * 65)


def test_what_exceeds_the_bounds_of_a_body_is_left_to_the_slow_reader_which_refuses_it() -> None:
    limits = replace(LIMITS, max_json_depth=4, max_json_containers=10)
    for kwargs, message in ((b"[[[]]]", "deeper than 4"), (b"[" + b"[]," * 9 + b"[]]", "more than 10")):
        body = b'{"messages": [], "chat_template_kwargs": {"x": %b}}' % kwargs
        assert not has_unique_names(body, max_depth=4, max_containers=10)
        with pytest.raises(ApiError, match=message):
            parse_request(body, limits, ChatRequest)
    body = b'{"messages": [], "chat_template_kwargs": {"x": [[]]}}'
    assert has_unique_names(body, max_depth=4, max_containers=10) and parse_request(body, limits, ChatRequest).messages == []
    assert not has_unique_names(body, max_depth=3, max_containers=10)


def test_random_objects_have_the_names_that_the_parser_sees() -> None:
    rng = random.Random(4)

    def text(depth: int) -> str:
        if depth == 0 or rng.random() < 0.3:
            return rng.choice(['"a"', '"{\\"a\\": [,"', "1", "null", '"\\\\"'])
        if rng.random() < 0.3:
            return "[" + ", ".join(text(depth - 1) for _ in range(rng.randrange(3))) + "]"
        return "{" + " , ".join(f'"{rng.choice("abcdefg")}" : {text(depth - 1)}' for _ in range(rng.randrange(4))) + "}"

    def is_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in pairs}) == len(pairs)
        return dict(pairs)

    seen = set()
    for _ in range(3000):
        body = text(4)
        try:
            json.loads(body, object_pairs_hook=is_unique)
            expected = True
        except AssertionError:
            expected = False
        seen.add(expected)
        assert is_surely_unique(body.encode()) == expected, body
    assert seen == {True, False}


def test_messages_that_are_checked_at_once_are_as_those_checked_one_by_one() -> None:
    rng = random.Random(5)
    roles: list[Any] = ["user", "system", "developer", "assistant", "tool", "nobody", None, 1]
    contents: list[Any] = ["text", "", None, [{"type": "text", "text": "x"}], 1]
    num_at_once = 0
    for _ in range(2000):
        messages: list[dict[str, Any]] = []
        for _ in range(rng.randrange(1, 4)):
            message = {"role": rng.choice(roles[: rng.choice([4, 8])]), "content": rng.choice(contents[: rng.choice([2, 5])])}
            if rng.random() < 0.1:
                message["name"] = rng.choice(["n", None])
            if rng.random() < 0.1:
                del message[rng.choice(["role", "content"])]
            messages.append(message)
        at_once = plain_messages(messages, chat._PLAIN_ROLES)
        if at_once is not None:
            num_at_once += 1
            assert at_once == [chat._checked_message(message, "messages[0]", LIMITS) for message in messages]
            assert all(list(message) == ["role", "content"] for message in at_once)
    assert 200 < num_at_once < 1800
