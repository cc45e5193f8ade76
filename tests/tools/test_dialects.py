"""Dialects of public model families: derived from the template, read back exactly however the stream is cut."""

import json
import random
from functools import cache
from typing import Any

import pytest
from friendli_runtime.tokenizer.chat_template import ChatTemplate
from friendli_runtime.tools.dialect import CallDialect, NoDialect, derived_dialect, named_id
from friendli_runtime.tools.parser import CallDelta, CallParser
from friendli_runtime.tools.reasoning import ReasoningDialect, ReasoningParser, derived_reasoning

from .templates import COHERE_THINKING, END_TEXTS, GEMMA, HARMONY_TOOLS, SPECIALS, WITH_CALLS

FUNCTIONS: dict[str, Any] = {
    "get_weather": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "tags": {"type": "array"}, "deep": {"type": "object"}},
    },
    "now": {"type": "object", "properties": {}},
    "search-web_2": {"type": "object", "properties": {"q": {"type": "string"}}},
}
TOOLS = [{"type": "function", "function": {"name": name, "description": "d", "parameters": schema}} for name, schema in FUNCTIONS.items()]
CALLS = [
    ("get_weather", {"city": 'Paris, "x" {y} \\ 🙂 </tool>', "days": 3}),
    ("now", {}),
    ("search-web_2", {"q": "line one\n  line two"}),
    ("get_weather", {"tags": [1, {"a": "]}"}], "deep": {"a": {"b": None}}, "city": "true"}),
]


@cache
def template_of(name: str) -> ChatTemplate:
    return ChatTemplate({**WITH_CALLS, "gemma": GEMMA, "harmony": HARMONY_TOOLS, "cohere_thinking": COHERE_THINKING}[name], SPECIALS)


@cache
def dialect_of(name: str) -> CallDialect:
    return derived_dialect(template_of(name), END_TEXTS)


def written(name: str, calls: list[tuple[str, Any]], content: str = "") -> str:
    """What a model of this family writes, as its template shows it."""
    dialect = dialect_of(name)
    messages = [
        {
            "id": named_id(called, i) if dialect.ids_name_functions else f"call0000{i}",
            "type": "function",
            "function": {"name": called, "arguments": dialect.history_arguments(args)},
        }
        for i, (called, args) in enumerate(calls)
    ]
    user = {"role": "user", "content": "hi"}
    template = template_of(name)
    text = template.render(
        [user, {"role": "assistant", "content": content or (None if dialect.needs_no_content else ""), "tool_calls": messages}],
        tools=TOOLS,
        add_generation_prompt=False,
    )
    begin = dialect.trigger or (dialect.head + calls[0][0])
    text = text[text.index(begin) :]
    return text[: min((text.find(end) for end in (*END_TEXTS, "<|end|>") if end in text), default=len(text))]


def read(name: str, pieces: list[str]) -> tuple[str, list[tuple[str, str]], int]:
    """Content, (name, arguments) of each call, and how many are complete."""
    parser = CallParser(dialect_of(name), FUNCTIONS)
    content, calls = "", []
    for out in [*(parser.push(piece) for piece in pieces), parser.finish()]:
        for item in out:
            if isinstance(item, str):
                content += item
            elif item.name is not None:
                assert item.call_idx == len(calls)
                calls.append((item.name, item.arguments))
            else:
                calls[-1] = (calls[-1][0], calls[-1][1] + item.arguments)
    return content, calls, parser.num_calls


def cuts(text: str, rng: random.Random) -> list[str]:
    places = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(8)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("name", WITH_CALLS)
def test_calls_are_read_back_under_every_split(name: str) -> None:
    rng = random.Random(name)
    is_single = dialect_of(name).separator is None
    for calls in [[CALLS[0]], [CALLS[2]], [CALLS[3]], [CALLS[1]]] + ([] if is_single else [CALLS[:2], CALLS]):
        text = written(name, calls)
        for pieces in [[text], list(text), *(cuts(text, rng) for _ in range(20)), *([text[:i], text[i:]] for i in range(len(text)))]:
            content, found, num_calls = read(name, pieces)
            assert [(called, json.loads(args)) for called, args in found] == calls, (text, pieces)
            assert (content, num_calls) == ("", len(calls)), pieces


WITHOUT_MARK = {"llama3", "pythonic", "xlam"}
"""Their calls are plain JSON or Python."""


@pytest.mark.parametrize("name", sorted(WITH_CALLS.keys() - WITHOUT_MARK))
def test_content_before_a_call_is_kept_and_space_between_is_not(name: str) -> None:
    text = "I look it up < [ {.\n\n" + written(name, [CALLS[0]])
    for pieces in ([text], list(text)):
        content, found, _ = read(name, pieces)
        assert (content, len(found)) == ("I look it up < [ {.", 1)


@pytest.mark.parametrize("name", WITH_CALLS)
def test_text_without_calls_stays_as_it_is(name: str) -> None:
    dialect = dialect_of(name)
    trigger = dialect.trigger or dialect.head
    for text in [
        "hello\n\n",
        "",
        " a < b [x] {y}",
        trigger[:-1],
        f"about {trigger} and more",
        f"{trigger} {trigger}",
        dialect.head + "unknown x",
    ]:
        for pieces in ([text], list(text)):
            assert read(name, pieces)[:2] == (text, []), pieces


@pytest.mark.parametrize("name", WITH_CALLS)
def test_a_call_that_is_cut_off_is_not_complete(name: str) -> None:
    text = written(name, [CALLS[0]])
    for end in range(len(text)):
        content, found, num_calls = read(name, list(text[:end]))
        assert len(found) <= 1 and num_calls <= len(found)
        if not found:
            assert content == text[:end] or not content.strip(), end


def test_calls_that_are_written_by_their_ids_keep_them() -> None:
    dialect = dialect_of("kimi")
    assert dialect.ids_name_functions and not any(dialect_of(name).ids_name_functions for name in WITH_CALLS if name != "kimi")
    parser = CallParser(dialect, FUNCTIONS)
    found = parser.push(written("kimi", CALLS[:2])) + parser.finish()
    ids = [item.call_id for item in found if isinstance(item, CallDelta) and item.name is not None]
    assert ids == ["functions.get_weather:0", "functions.now:1"]


def test_templates_without_calls_give_a_reason() -> None:
    for name in ("gemma", "harmony"):
        with pytest.raises(NoDialect):
            derived_dialect(template_of(name), END_TEXTS)


REASONING = {
    "hermes_thinking": ("<think>", "</think>"),
    "opens_thinking": ("<think>", "</think>"),
    "deepseek": ("<think>", "</think>"),
    "glm": ("<think>", "</think>"),
    "magistral": ("[THINK]", "[/THINK]"),
    "seed_oss": ("<seed:think>", "</seed:think>"),
    "llama3": None,
    "mistral": None,
    "qwen_35": ("<think>", "</think>"),
    "glm_47": ("<think>", "</think>"),
    "deepseek_v32": ("<think>", "</think>"),
    "gemma_4": ("<|channel>thought", "<channel|>"),
    "cohere_thinking": ("<|START_THINKING|>", "<|END_THINKING|>"),
}


@pytest.mark.parametrize("name", REASONING)
def test_reasoning_marks_are_found(name: str) -> None:
    marks = REASONING[name]
    assert derived_reasoning(template_of(name)) == (None if marks is None else ReasoningDialect(*marks))


def test_a_prompt_may_open_or_close_the_reasoning() -> None:
    dialect = ReasoningDialect("<think>", "</think>")
    user = [{"role": "user", "content": "hi"}]
    assert dialect.is_opened_by(template_of("opens_thinking").render(user))
    assert not dialect.is_opened_by(template_of("hermes").render(user))
    assert not dialect.is_opened_by(template_of("hermes").render(user, variables={"enable_thinking": False}))


@pytest.mark.parametrize(
    ("text", "is_open", "reasoning", "content"),
    [
        ("<think>\nab\n</think>\n\ncd\n", False, "ab", "cd\n"),
        ("ab</think>cd", True, "ab", "cd"),
        ("\nab\n\nc\n</think>\n\n", True, "ab\n\nc", ""),
        ("hello <think>x</think>", False, "", "hello <think>x</think>"),
        ("<thi", False, "", "<thi"),
        ("ab</thin", True, "ab</thin", ""),
        ("ab\n</think", True, "ab\n</think", ""),
        ("<think></think>cd", False, "", "cd"),
        ("", False, "", ""),
        ("", True, "", ""),
        ("\n\n<think>a</think>b", False, "a", "b"),
        ("a < b </thinks> c</think>d</think>", True, "a < b </thinks> c", "d</think>"),
    ],
)
def test_reasoning_is_taken_out_under_every_split(text: str, is_open: bool, reasoning: str, content: str) -> None:
    dialect = ReasoningDialect("<think>", "</think>")
    for pieces in [[text], list(text), *([text[:i], text[i:]] for i in range(len(text)))]:
        parser = ReasoningParser(dialect, is_open=is_open)
        parts = [*(parser.push(piece) for piece in pieces), parser.finish()]
        assert ("".join(part[0] for part in parts), "".join(part[1] for part in parts)) == (reasoning, content), pieces


def test_a_delta_names_its_call_once() -> None:
    parser = CallParser(dialect_of("hermes"), FUNCTIONS)
    deltas = [item for piece in written("hermes", CALLS[:2]) for item in parser.push(piece) if isinstance(item, CallDelta)]
    assert [(one.call_idx, one.name) for one in deltas if one.name] == [(0, "get_weather"), (1, "now")]
    assert all(one.arguments == "" for one in deltas if one.name)
