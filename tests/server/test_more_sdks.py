"""Published Python clients that others build on, unmodified: `langchain-openai` and `litellm`."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from .conftest import TestServer

CALL = '<tool_call>\n{"name": "add", "arguments": {"name": "Ann", "age": 7}}\n</tool_call>'


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int


TOOL: Any = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": Person.model_json_schema()}}


@pytest.fixture(scope="module")
def langchain(hermes: TestServer) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model="scripted", base_url=hermes.url + "/v1", api_key="none", max_retries=0, temperature=0.5)  # type: ignore[arg-type]


class Litellm:
    """litellm's OpenAI-compatible provider on one server."""

    def __init__(self, url: str) -> None:
        self._server = {"api_base": url + "/v1", "api_key": "none", "num_retries": 0}

    def complete(self, text: str, **fields: Any) -> Any:
        import litellm

        return litellm.completion(model="openai/scripted", messages=said(text), **self._server, **fields)


@pytest.fixture(scope="module")
def litellm_client(hermes: TestServer, monkeypatch_module: pytest.MonkeyPatch) -> Litellm:
    monkeypatch_module.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the network on import
    return Litellm(hermes.url)


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def said(text: str) -> Any:
    return [{"role": "user", "content": f"[[{text}]]"}]


def test_langchain_chat(langchain: Any) -> None:
    answer = langchain.invoke("[[hello 🙂 world]]")
    assert answer.content == "hello 🙂 world" and answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata["output_tokens"] > 0


def test_langchain_stream(langchain: Any) -> None:
    chunks = list(langchain.stream("[[hello 🙂 world]]", stream_usage=True))
    assert "".join(chunk.content for chunk in chunks) == "hello 🙂 world"
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 0


def test_langchain_batch(langchain: Any) -> None:
    assert [answer.content for answer in langchain.batch(["[[a]]", "[[b]]", "[[c]]"])] == ["a", "b", "c"]


def test_langchain_tools(langchain: Any) -> None:
    bound = langchain.bind_tools([TOOL])
    answer = bound.invoke(f"[[{CALL}]]")
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("add", {"name": "Ann", "age": 7})]
    chunks = list(bound.stream(f"[[{CALL}]]"))
    streamed = sum(chunks[1:], start=chunks[0])
    assert streamed.tool_calls[0]["args"] == {"name": "Ann", "age": 7}
    from langchain_core.messages import HumanMessage, ToolMessage

    history = [HumanMessage("[[x]]"), answer, ToolMessage("done", tool_call_id=answer.tool_calls[0]["id"]), HumanMessage("and?")]
    assert bound.invoke(history).content == "x"


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_structured_output(langchain: Any, method: str) -> None:
    script = '{"name": "Ann", "age": 7}' if method == "json_schema" else CALL.replace('"add"', '"Person"')
    assert langchain.with_structured_output(Person, method=method).invoke(f"[[{script}]]") == Person(name="Ann", age=7)


def test_litellm_chat_and_stream(litellm_client: Litellm) -> None:
    answer = litellm_client.complete("hello 🙂 world", max_tokens=100, seed=3)
    assert answer.choices[0].message.content == "hello 🙂 world" and answer.usage.completion_tokens > 0
    chunks = list(litellm_client.complete("hello 🙂 world", stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "hello 🙂 world"


def test_litellm_tools_and_formats(litellm_client: Litellm) -> None:
    call = litellm_client.complete(CALL, tools=[TOOL], tool_choice="auto").choices[0].message.tool_calls[0]
    assert call.function.name == "add" and Person.model_validate_json(call.function.arguments).age == 7
    answer = litellm_client.complete('{"name": "Ann", "age": 7}', response_format=Person)
    assert Person.model_validate_json(answer.choices[0].message.content).name == "Ann"


def test_litellm_gets_the_errors_it_knows(litellm_client: Litellm) -> None:
    import litellm

    with pytest.raises(litellm.exceptions.BadRequestError, match="temperature"):
        litellm_client.complete("x", temperature=-1)
    with pytest.raises(litellm.exceptions.BadRequestError, match="not supported"):
        litellm_client.complete("x", response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}})
