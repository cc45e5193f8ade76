"""The published Python clients, unmodified: `openai` and `friendli`."""

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from friendli import AsyncFriendli, SyncFriendli
from friendli.models import SDKError
from pydantic import BaseModel

from .conftest import TestServer


class Person(BaseModel):
    """What the tests of structured outputs ask for."""

    name: str
    age: int
    friends: list["Person"] = []


TOOLS: Any = [{"type": "function", "function": {"name": "add", "parameters": Person.model_json_schema()}}]
CALL = '<tool_call>\n{"name": "add", "arguments": {"name": "Ann", "age": 7, "friends": []}}\n</tool_call>'
MESSAGES: Any = [{"role": "user", "content": "[[hello 🙂 world]]"}]


@pytest.fixture(scope="module")
def openai_client(server: TestServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def friendli_client() -> Iterator[SyncFriendli]:
    with SyncFriendli(token="none", x_friendli_team="none") as client:
        yield client


def test_openai_chat(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(model="scripted", messages=MESSAGES, logprobs=True, top_logprobs=1, seed=1)
    assert answer.choices[0].message.content == "hello 🙂 world"
    assert answer.usage is not None and answer.usage.completion_tokens > 0
    assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.content


def test_openai_chat_stream(openai_client: openai.OpenAI) -> None:
    stream = openai_client.chat.completions.create(
        model="scripted", messages=MESSAGES, stream=True, stream_options={"include_usage": True}, extra_body={"top_k": 5}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "hello 🙂 world"
    assert chunks[-1].usage is not None


def test_openai_chat_stream_helper(openai_client: openai.OpenAI) -> None:
    with openai_client.chat.completions.stream(model="scripted", messages=MESSAGES) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == "hello 🙂 world"


def test_openai_completions(openai_client: openai.OpenAI) -> None:
    answer = openai_client.completions.create(model="scripted", prompt=["[[a]]", "[[b]]"], logprobs=1, max_tokens=5)
    assert [choice.text for choice in answer.choices] == ["a", "b"]
    stream = openai_client.completions.create(model="scripted", prompt="[[hello world]]", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "hello world"


def test_openai_models_and_errors(openai_client: openai.OpenAI) -> None:
    assert [model.id for model in openai_client.models.list()] == ["scripted"]
    assert openai_client.models.retrieve("scripted").id == "scripted"
    with pytest.raises(openai.UnprocessableEntityError, match="temperature"):
        openai_client.chat.completions.create(model="scripted", messages=MESSAGES, temperature=-1)
    with pytest.raises(openai.NotFoundError):
        openai_client.chat.completions.create(model="other", messages=MESSAGES)


def test_friendli_chat(friendli_client: SyncFriendli, server: TestServer) -> None:
    answer = friendli_client.container.chat.complete(messages=MESSAGES, server_url=server.url, retries=None)
    assert answer.choices[0].message.content == "hello 🙂 world"
    assert answer.choices[0].finish_reason == "stop"


def test_friendli_chat_stream(friendli_client: SyncFriendli, server: TestServer) -> None:
    with friendli_client.container.chat.stream(messages=MESSAGES, server_url=server.url, retries=None) as stream:
        chunks = [event.data for event in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "hello 🙂 world"


def test_friendli_completions(friendli_client: SyncFriendli, server: TestServer) -> None:
    request: Any = {"prompt": "[[hello world]]", "seed": [5], "logprobs": 2}
    answer = friendli_client.container.completions.complete(request=request, server_url=server.url, retries=None)
    assert (answer.choices[0].text, answer.choices[0].seed) == ("hello world", 5)
    assert answer.choices[0].tokens == server.tokenizer.encode("hello world")
    tokens: Any = {"tokens": server.tokenizer.encode("[[hello world]]")}
    answer = friendli_client.container.completions.complete(request=tokens, server_url=server.url, retries=None)
    assert answer.choices[0].text == "hello world"


def test_friendli_completions_stream(friendli_client: SyncFriendli, server: TestServer) -> None:
    request: Any = {"prompt": "[[hello world]]", "logprobs": 1}
    with friendli_client.container.completions.stream(request=request, server_url=server.url, retries=None) as stream:
        chunks = [event.data for event in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "hello world"


def test_friendli_tokenize_and_detokenize(friendli_client: SyncFriendli, server: TestServer) -> None:
    tokens = friendli_client.container.token.tokenize(prompt="hello 🙂", server_url=server.url, retries=None).tokens
    assert tokens == server.tokenizer.encode("hello 🙂")
    assert friendli_client.container.token.detokenize(tokens=tokens, server_url=server.url, retries=None).text == "hello 🙂"


def test_friendli_errors(friendli_client: SyncFriendli, server: TestServer) -> None:
    with pytest.raises(SDKError) as caught:
        friendli_client.container.chat.complete(messages=MESSAGES, max_tokens=10**6, server_url=server.url, retries=None)
    assert caught.value.status_code == 422 and "max_tokens" in caught.value.body


def test_friendli_async(server: TestServer) -> None:
    async def ask() -> str | None:
        async with AsyncFriendli(token="none", x_friendli_team="none") as client:
            answer = await client.container.chat.complete(messages=MESSAGES, server_url=server.url, retries=None)
            return answer.choices[0].message.content

    assert asyncio.run(ask()) == "hello 🙂 world"


# Structured outputs and tools ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def openai_tools(hermes: TestServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=hermes.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def said(text: str) -> Any:
    return [{"role": "user", "content": f"[[{text}]]"}]


def test_openai_parses_pydantic_models(openai_tools: openai.OpenAI) -> None:
    script = '{"name": "Ann", "age": 7, "friends": [{"name": "Bob", "age": 8, "friends": []}]}'
    answer = openai_tools.chat.completions.parse(model="scripted", messages=said(script), response_format=Person)
    assert answer.choices[0].message.parsed == Person(name="Ann", age=7, friends=[Person(name="Bob", age=8)])


def test_openai_tools(openai_tools: openai.OpenAI) -> None:
    answer = openai_tools.chat.completions.create(model="scripted", messages=said("I add.\n" + CALL), tools=TOOLS)
    call = answer.choices[0].message.tool_calls[0]  # type: ignore[index]
    assert call.type == "function" and Person.model_validate_json(call.function.arguments).name == "Ann"
    with openai_tools.chat.completions.stream(model="scripted", messages=said("I add.\n" + CALL), tools=TOOLS) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_completion().choices[0].message
    assert {"content.delta", "tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert message.content == "I add." and message.tool_calls[0].function.arguments == call.function.arguments  # type: ignore[index]
    history: Any = [*said("x"), message.model_dump(exclude_none=True, include={"role", "content", "tool_calls"})]
    history += [{"role": "tool", "tool_call_id": call.id, "content": "done"}, {"role": "user", "content": "and?"}]
    assert openai_tools.chat.completions.create(model="scripted", messages=history, tools=TOOLS).choices[0].message.content == "x"


def test_openai_strict_tools_are_parsed(openai_tools: openai.OpenAI) -> None:
    tool: Any = openai.pydantic_function_tool(Person, name="add")
    answer = openai_tools.chat.completions.parse(model="scripted", messages=said(CALL), tools=[tool])
    assert answer.choices[0].message.tool_calls[0].function.parsed_arguments == Person(name="Ann", age=7)  # type: ignore[index]


def test_friendli_tools_and_formats(friendli_client: SyncFriendli, hermes: TestServer) -> None:
    chat = friendli_client.container.chat
    answer = chat.complete(messages=said(CALL), tools=TOOLS, tool_choice="auto", server_url=hermes.url, retries=None)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert Person.model_validate_json(answer.choices[0].message.tool_calls[0].function.arguments).age == 7  # type: ignore[index]
    with chat.stream(messages=said(CALL), tools=TOOLS, server_url=hermes.url, retries=None) as stream:
        deltas = [choice.delta for event in stream for choice in event.data.choices]
    arguments = "".join(call.function.arguments for delta in deltas for call in delta.tool_calls or ())
    assert Person.model_validate_json(arguments).name == "Ann"
    schema: Any = {"type": "json_schema", "json_schema": {"schema": Person.model_json_schema()}}
    script = '{"name": "Ann", "age": 7}'
    answer = chat.complete(messages=said(script), response_format=schema, server_url=hermes.url, retries=None)
    assert answer.choices[0].message.content == script
    regex: Any = {"type": "regex", "schema": "[a-z]{3}"}
    answer = chat.complete(messages=said("abcdef"), response_format=regex, server_url=hermes.url, retries=None)
    assert answer.choices[0].message.content == "abc"
