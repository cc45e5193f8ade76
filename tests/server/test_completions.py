"""/v1/completions: shapes, fields, streams."""

import json
import re
from typing import Any

import httpx
import pytest

from .conftest import TestServer


def frames(response: httpx.Response) -> list[Any]:
    """The data of each event; the last must be [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-1] == "" and events[-2] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def test_an_answer_has_every_field_of_the_schema(server: TestServer) -> None:
    body = server.post("/v1/completions", prompt="say [[hello world]]", seed=7).json()
    assert re.fullmatch(r"cmpl-[0-9a-f]{32}", body["id"])
    assert body["object"] == "text_completion" and body["model"] == "scripted"
    expected = {"index": 0, "text": "hello world", "tokens": server.tokenizer.encode("hello world"), "seed": 7, "finish_reason": "stop"}
    assert body["choices"] == [{**expected, "logprobs": None}]
    usage = body["usage"]
    assert usage["prompt_tokens"] == len(server.tokenizer.encode("say [[hello world]]"))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_stream_has_one_chunk_per_token_then_the_end_then_usage(server: TestServer) -> None:
    prompt = "say [[hello 🙂 world]]"
    whole = server.post("/v1/completions", prompt=prompt).json()
    chunks = frames(server.post("/v1/completions", prompt=prompt, stream=True, stream_options={"include_usage": True}))
    *tokens, end, usage = chunks
    assert [chunk["choices"][0]["token"] for chunk in tokens] == whole["choices"][0]["tokens"]
    assert "".join(chunk["choices"][0]["text"] for chunk in tokens) == whole["choices"][0]["text"] == "hello 🙂 world"
    assert end["choices"][0]["text"] == "" and "token" not in end["choices"][0] and end["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in [*tokens, end])


def test_usage_comes_only_when_asked_for(server: TestServer) -> None:
    assert all(chunk["choices"] for chunk in frames(server.post("/v1/completions", prompt="[[hi]]", stream=True)))


def test_prompt_tokens_and_text_give_the_same_answer(server: TestServer) -> None:
    text = "say [[hello]]"
    ids = server.tokenizer.encode(text)
    bodies = [{"prompt": text}, {"tokens": ids}, {"prompt": ids}, {"prompt": [text]}, {"prompt": [ids]}, {"tokens": [ids]}]
    for body in bodies:
        assert server.post("/v1/completions", **body).json()["choices"][0]["text"] == "hello", body


def test_choices_are_numbered_by_prompt_then_sample(server: TestServer) -> None:
    choices = server.post("/v1/completions", prompt=["[[a]]", "[[b]]"], n=2, seed=[3, 4]).json()["choices"]
    assert [(choice["index"], choice["text"], choice["seed"]) for choice in choices] == [(0, "a", 3), (1, "a", 4), (2, "b", 3), (3, "b", 4)]


def test_an_unseeded_answer_names_the_seed_that_was_drawn(server: TestServer) -> None:
    seeds = [choice["seed"] for choice in server.post("/v1/completions", prompt="[[a]]", n=3).json()["choices"]]
    assert len(set(seeds)) == 3 and all(isinstance(seed, int) and seed >= 0 for seed in seeds)


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(server: TestServer) -> None:
    for stream in (False, True):
        response = server.post("/v1/completions", prompt="[[hello wo and world here]]", stop=["world", "nothing"], stream=stream)
        choices = [chunk["choices"][0] for chunk in (frames(response) if stream else [response.json()])]
        assert "".join(choice["text"] for choice in choices) == "hello wo and "
        assert choices[-1]["finish_reason"] == "stop"


def test_a_stop_string_stops_the_engine_too(server: TestServer) -> None:
    before = server.engine.num_cancelled
    body = server.post("/v1/completions", prompt="[[hello stop and more and more]]", stop="stop", ignore_eos=True, max_tokens=400).json()
    assert body["choices"][0]["text"] == "hello "
    assert server.engine.num_cancelled == before + 1


def test_a_stop_string_that_does_not_come_is_given_out_at_the_end(server: TestServer) -> None:
    assert server.post("/v1/completions", prompt="[[hello wor]]", stop="world").json()["choices"][0]["text"] == "hello wor"


def test_max_tokens_ends_with_length(server: TestServer) -> None:
    choice = server.post("/v1/completions", prompt="[[hello world]]", max_tokens=1).json()["choices"][0]
    assert (choice["finish_reason"], len(choice["tokens"])) == ("length", 1)


def test_max_total_tokens_counts_the_prompt(server: TestServer) -> None:
    prompt_len = len(server.tokenizer.encode("[[hello world]]"))
    body = server.post("/v1/completions", prompt="[[hello world]]", max_total_tokens=prompt_len + 1).json()
    assert body["usage"]["completion_tokens"] == 1


def test_stop_tokens_end_the_answer_and_are_not_part_of_it(server: TestServer) -> None:
    hello, world = server.tokenizer.encode("hello world")
    space = server.tokenizer.encode(" ")[0]
    body = server.post("/v1/completions", prompt="[[hello world]]", stop_tokens=[{"tokens": [world]}]).json()
    assert body["choices"][0]["tokens"] == [hello]
    body = server.post("/v1/completions", prompt="[[hello world]]", stop_tokens=[{"tokens": [space, space]}]).json()
    assert body["choices"][0]["tokens"] == [hello, world]


def test_forced_output_tokens_are_the_answer(server: TestServer) -> None:
    forced = server.tokenizer.encode(" world")
    body = server.post("/v1/completions", prompt="x", forced_output_tokens=forced, logprobs=0).json()
    assert body["choices"][0]["tokens"] == forced
    assert body["choices"][0]["logprobs"]["token_logprobs"] == [-0.5]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_parallel_lists_with_offsets_into_the_text(server: TestServer, stream: bool) -> None:
    response = server.post("/v1/completions", prompt="[[hello 🙂 world]]", logprobs=2, stream=stream)
    choices = [chunk["choices"][0] for chunk in (frames(response) if stream else [response.json()])]
    text = "".join(choice["text"] for choice in choices)
    listed = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    tokens = [token for one in listed for token in one["tokens"]]
    offsets = [offset for one in listed for offset in one["text_offset"]]
    assert len(tokens) == len(offsets) and offsets == sorted(offsets) and offsets[0] == 0
    for token, offset in zip(tokens, offsets, strict=True):
        if "\ufffd" not in token:
            assert text[offset : offset + len(token)] == token
    assert all(len(top) <= 2 for one in listed for top in one["top_logprobs"])


def test_logprobs_of_hidden_text_are_not_given(server: TestServer) -> None:
    body = server.post("/v1/completions", prompt="[[hello world]]", logprobs=1, stop=" world").json()
    assert body["choices"][0]["logprobs"]["tokens"] == ["hello"]


def test_explicit_nulls_are_the_same_as_absent_fields(server: TestServer) -> None:
    names = [
        "n",
        "seed",
        "stop",
        "max_tokens",
        "temperature",
        "top_p",
        "logprobs",
        "stream",
        "tokens",
        "num_beams",
        "soft_prompts",
        "tools",
    ]
    assert server.post("/v1/completions", prompt="[[hi]]", **dict.fromkeys(names)).json()["choices"][0]["text"] == "hi"


def test_fields_of_other_clients_that_say_nothing_are_ignored(server: TestServer) -> None:
    extras = {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "best_of": 1, "echo": False, "num_beams": 1}
    assert server.post("/v1/completions", prompt="[[hi]]", **extras).status_code == 200


def test_an_empty_or_own_model_name_is_this_model(server: TestServer) -> None:
    for name in ("", None, "scripted"):
        assert server.post("/v1/completions", prompt="[[hi]]", model=name).status_code == 200


@pytest.mark.parametrize(
    "fields", [{"min_total_tokens": -1}, {"min_total_tokens": 10**6}, {"max_total_tokens": 1}, {"max_total_tokens": -1}]
)
def test_totals_out_of_bounds_are_refused_by_name(server: TestServer, fields: dict[str, int]) -> None:
    response = server.post("/v1/completions", prompt="abc", **fields)
    assert response.status_code == 422 and [response.json()["error"]["param"]] == list(fields)
    assert f"is {min(fields.values())}," in response.json()["message"], "the value that was sent"
