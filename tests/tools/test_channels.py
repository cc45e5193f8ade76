"""Answers in channels: derived from the template by their form, read exactly under every split, kept to what a request asks for."""

import json
import random
from functools import cache
from typing import Any

import pytest
from friendli_runtime.structured.constraint import ConstraintCompiler
from friendli_runtime.structured.errors import InvalidConstraint
from friendli_runtime.structured.response_format import ConstraintLimits, grammar_of
from friendli_runtime.tokenizer.chat_template import ChatTemplate
from friendli_runtime.tokenizer.tokenizer import Tokenizer
from friendli_runtime.tools.channel_grammar import ChannelConstraint, ChannelWishes, channel_constraint
from friendli_runtime.tools.channels import ChannelCall, ChannelDialect, derived_channels
from friendli_runtime.tools.check import check_template
from friendli_runtime.tools.forms import AnswerForms, AnswerReader, ReadOptions, answer_forms
from friendli_runtime.tools.request import tool_request
from tokenizer.tokenizers_made_here import json_with_special_tokens

from .templates import CHANNEL_MARKS, CHANNELS, HARMONY, HARMONY_TOOLS, WITH_CALLS

TOKENIZER = Tokenizer.from_json(json_with_special_tokens("byte_level", *CHANNEL_MARKS), {})
ENDS = {"harmony": ["<|return|>", "<|call|>"], "harmony_named_last": ["<|return|>", "<|call|>"], "bracketed": ["<s>"]}
CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
FUNCTIONS: dict[str, Any] = {"get_weather": CITY, "now": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in FUNCTIONS.items()]
OPEN = "<|start|>assistant"
THINK = "<|channel|>analysis<|message|>"
FINAL = "<|channel|>final<|message|>"
PREAMBLE = "<|channel|>commentary<|message|>"
CALL = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Köln 🙂", "days": 2}'
CALL_IN_ROLE = ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Köln 🙂", "days": 2}'
ARGUMENTS = {"city": "Köln 🙂", "days": 2}


def end_ids(name: str) -> list[int]:
    found = [TOKENIZER.backend.token_to_id(text) for text in ENDS[name]]
    return [token_id for token_id in found if token_id is not None]


@cache
def forms_of(name: str) -> AnswerForms:
    return answer_forms(ChatTemplate(CHANNELS[name], {}), TOKENIZER, end_ids(name))


def read(pieces: list[str], options: ReadOptions) -> tuple[str, str, list[Any], int]:
    """Reasoning, content, calls as [name, arguments text], and how many calls are whole."""
    reader = AnswerReader(options)
    reasoning = content = ""
    calls: list[Any] = []
    for piece in [*map(reader.push, pieces), reader.finish()]:
        reasoning, content = reasoning + piece.reasoning, content + piece.content
        for call in piece.calls:
            if call.name is not None:
                assert call.call_idx == len(calls)
                calls.append([call.name, ""])
            calls[-1][1] += call.arguments
    return reasoning, content, calls, reader.num_calls


def splits(text: str) -> list[list[str]]:
    rng = random.Random(text)
    places = [sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(8))) for _ in range(20)]
    cuts = [[text[a:b] for a, b in zip([0, *row], [*row, len(text)], strict=True)] for row in places]
    return [[text], list(text), *cuts, *([text[:i], text[i:]] for i in range(1, len(text)))]


def test_the_form_is_derived_from_the_template() -> None:
    role = ChannelCall("commentary", "to=functions.", "json", "", is_parallel=False)
    expected = ChannelDialect(OPEN, "<|channel|>", "<|message|>", "<|end|>", "analysis", "final", "thinking", True, role)
    assert forms_of("harmony").channels == expected
    last = forms_of("harmony_named_last").channels
    assert last is not None and (last.history_key, last.call) == ("reasoning_content", role)
    action = ChannelCall("action", "for=", "", "<done>", is_parallel=True)
    assert forms_of("bracketed").channels == ChannelDialect(
        "<turn>model", "<part>", "<body>", "<done>", "thoughts", "reply", "reasoning_content", False, action
    )


@pytest.mark.parametrize("source", [*WITH_CALLS.values(), HARMONY_TOOLS])
def test_no_other_family_is_taken_for_one_with_channels(source: str) -> None:
    assert derived_channels(ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})) is None


def test_marks_that_a_text_could_spell_make_no_channels() -> None:
    plain = Tokenizer.from_json(json_with_special_tokens("byte_level", "<|channel|>"), {})
    assert answer_forms(ChatTemplate(HARMONY, {}), plain, [0]).channels is None


@pytest.mark.parametrize("name", CHANNELS)
def test_what_the_template_writes_is_read_back(name: str) -> None:
    report = check_template(ChatTemplate(CHANNELS[name], {}), TOKENIZER, end_ids(name))
    assert report.failures == [] and report.num_vectors == (8 if name == "bracketed" else 6) and report.num_splits > 200
    assert report.as_json()["channels"]["calls"] == ("action" if name == "bracketed" else "commentary")


@pytest.mark.parametrize(
    ("text", "reasoning", "content", "calls"),
    [
        (f"{THINK}hm\n\nso<|end|>{OPEN}{FINAL}Yes < 3 | 4", "hm\n\nso", "Yes < 3 | 4", 0),
        (f"{THINK}hm<|end|>{OPEN}{CALL}", "hm", "", 1),
        (f"{THINK}hm<|end|>{OPEN}{CALL_IN_ROLE}", "hm", "", 1),
        (f"{THINK}a<|end|>{OPEN}{PREAMBLE}I look.<|end|>{OPEN}{THINK}b<|end|>{OPEN}{CALL}", "a\n\nb", "I look.", 1),
        (f"{PREAMBLE}First<|end|>{OPEN}{FINAL}then", "", "First\n\nthen", 0),
        (f"{FINAL}straight", "", "straight", 0),
        ("no header at all <|x", "", "no header at all <|x", 0),
        ("t", "", "t", 0),
        (f"{THINK}hm{OPEN}{FINAL}no end before", "hm", "no end before", 0),
        (f"{THINK}hm<|end|>{OPEN}<|channel|>fin", "hm", "", 0),
        (f"{THINK}cut of", "cut of", "", 0),
        (f"{THINK}<|end|>{OPEN}{FINAL}", "", "", 0),
        ("<|channel|>commentary to=functions.unknown json<|message|>{}", "", "{}", 0),
        ("<|channel|>analysis to=browser.find code<|message|>{}", "{}", "", 0),
        (f"{OPEN}{FINAL}opened twice", "", "opened twice", 0),
    ],
)
def test_channels_are_taken_apart_under_every_split(text: str, reasoning: str, content: str, calls: int) -> None:
    options = ReadOptions(forms_of("harmony"), FUNCTIONS, False, True, True)
    for pieces in splits(text):
        found = read(pieces, options)
        assert (found[0], found[1], found[3]) == (reasoning, content, calls), pieces
        assert [(name, json.loads(arguments)) for name, arguments in found[2]] == [("get_weather", ARGUMENTS)] * calls


def test_a_call_that_is_cut_off_is_not_whole() -> None:
    options = ReadOptions(forms_of("harmony"), FUNCTIONS, False, True, True)
    for end in range(len("<|channel|>"), len(CALL)):
        _, content, calls, num_calls = read(list(CALL[:end]), options)
        assert not content and len(calls) <= 1 and num_calls == 0


def test_several_calls_of_one_answer_are_told_apart() -> None:
    text = '<part>action for=now<body>{}<done><turn>model<part>action for=get_weather<body>{"city": "a"}<done>'
    for pieces in splits(text):
        found = read(pieces, ReadOptions(forms_of("bracketed"), FUNCTIONS, False, True, True))
        assert found == ("", "", [["now", "{}"], ["get_weather", '{"city": "a"}']], 2), pieces


def test_reasoning_may_stay_in_the_text_with_its_marks() -> None:
    text = f"{THINK}hm<|end|>{OPEN}{FINAL}yes"
    for pieces in splits(text):
        assert read(pieces, ReadOptions(forms_of("harmony")))[:2] == ("", text)
        assert read(pieces, ReadOptions(forms_of("harmony"), FUNCTIONS))[:2] == ("", text)
    content, calls = read(list(f"{THINK}hm<|end|>{OPEN}{CALL}"), ReadOptions(forms_of("harmony"), FUNCTIONS))[1:3]
    assert (content, len(calls)) == (f"{THINK}hm<|end|>", 1)


def test_a_prompt_may_have_begun_the_first_message() -> None:
    channels = forms_of("harmony").channels
    assert channels is not None and channels.begun_by(f"x<|end|>{OPEN}{THINK}") == THINK
    for begun, text, expected in [
        (THINK, "hm<|end|>", ("hm", "")),
        (FINAL + "Once", " upon", ("", " upon")),
        ("<|channel|>", "final<|message|>a", ("", "a")),
    ]:
        options = ReadOptions(forms_of("harmony"), {}, begun == THINK, True, True, channels.begun_by("<|end|>" + OPEN + begun))
        assert read(list(text), options)[:2] == expected


# What the grammar allows -----------------------------------------------------------------------------------------------------------------


@cache
def compiler() -> ConstraintCompiler:
    return ConstraintCompiler(TOKENIZER, TOKENIZER.backend.num_tokens + 3, end_ids("harmony"))


def constraint_of(
    choice: Any = None,
    response_format: Any = None,
    budget: int | None = None,
    begun: str = "",
    name: str = "harmony",
    parallel: bool = True,
) -> ChannelConstraint:
    forms = forms_of(name)
    limits = ConstraintLimits()
    tools = tool_request(TOOLS, choice, parallel, 8, limits) if choice is not None else None
    options = ReadOptions(forms, FUNCTIONS if tools is not None else {}, False, True, True, begun)
    assert forms.channels is not None
    wishes = ChannelWishes(tools, grammar_of(response_format, limits), budget)
    found = channel_constraint(wishes, forms.channels, compiler(), end_ids(name), begun, options.is_in_content)
    assert found is not None
    return found


def allows(constraint: ChannelConstraint, text: str, end: str = "<|return|>") -> bool:
    """Whether the model may write this text and then end."""
    masks, mask = constraint.sample(), constraint.first_mask
    for token_id in TOKENIZER.encode(text, add_special_tokens=False):
        if not mask[token_id // 8] >> token_id % 8 & 1:
            return False
        mask = masks.advance(token_id)
    end_id = TOKENIZER.backend.token_to_id(end)
    return end_id is not None and bool(mask[end_id // 8] >> end_id % 8 & 1)


THEN = f"{THINK}hm<|end|>{OPEN}"


def test_tools_that_may_be_called_leave_all_messages_but_bad_calls() -> None:
    constraint = constraint_of("auto")
    for text in (f"{THEN}{FINAL}any\ntext", FINAL, CALL, CALL_IN_ROLE, f"{THEN}{PREAMBLE}I look<|end|>{OPEN}{THEN}{CALL}"):
        assert allows(constraint, text), text
    for text in (
        CALL.replace("get_weather", "get_wether"),
        CALL.replace('"city"', '"town"'),
        CALL + "}",
        "plain",
        f"{THINK}hm",
        f"{PREAMBLE}hm",
        f"{CALL}<|end|>{OPEN}{FINAL}x",
    ):
        assert not allows(constraint, text), text
    bare = CALL.replace(" <|constrain|>json", "")
    assert allows(constraint, bare) and allows(constraint, CALL.replace("<|constrain|>", ""))
    for glued in ("json", "<|constrain|>json", "<s>json"):
        assert not allows(constraint, CALL.replace(" <|constrain|>json", glued)), "the kind is no part of the name"


def test_required_and_named_calls_come_after_reasoning_only() -> None:
    named = {"type": "function", "function": {"name": "now"}}
    assert allows(constraint_of("required"), THEN + CALL) and allows(constraint_of("required"), CALL_IN_ROLE)
    assert not allows(constraint_of("required"), THEN + FINAL + "no") and not allows(constraint_of("required"), PREAMBLE + "x")
    assert not allows(constraint_of(named), THEN + CALL)
    assert allows(constraint_of(named), f"{THEN}<|channel|>commentary to=functions.now json<|message|>{{}}")


def test_parallel_calls_follow_where_the_template_writes_several() -> None:
    one = "<part>action for=now<body>{}<done>"
    two = f"{one}<turn>model{one}"
    assert allows(constraint_of("auto", name="bracketed"), two, "<s>")
    assert allows(constraint_of("auto", name="bracketed", parallel=False), one, "<s>")
    assert not allows(constraint_of("auto", name="bracketed", parallel=False), two, "<s>")


def test_a_format_holds_in_the_content_only() -> None:
    for wanted, good, bad in [
        ({"type": "regex", "schema": "[a-c/]{2}"}, "a/", "abc"),
        ({"type": "json_object"}, '{"a": [1]}', "1"),
        ({"type": "json_schema", "json_schema": {"schema": CITY}}, '{"city": "x"}', '{"days": 1}'),
    ]:
        constraint = constraint_of(response_format=wanted)
        assert allows(constraint, THEN + FINAL + good) and allows(constraint, FINAL + good)
        assert not allows(constraint, THEN + FINAL + bad) and not allows(constraint, THEN + PREAMBLE + good)


def test_a_budget_closes_the_reasoning_within_a_character_too() -> None:
    constraint = constraint_of(budget=3)
    assert allows(constraint, f"{THINK}hm<|end|>{OPEN}{FINAL}{'long ' * 20}") and allows(constraint, FINAL)
    assert not allows(constraint, f"{THINK}{'long ' * 3}<|end|>{OPEN}{FINAL}x")
    assert not allows(constraint, THEN + THEN + FINAL)
    pieces = TOKENIZER.encode("жж", add_special_tokens=False)
    assert len(pieces) == 4
    masks, mask = constraint.sample(), constraint.first_mask
    for token_id in [*TOKENIZER.encode(THINK, add_special_tokens=False), *pieces[:3]]:
        assert mask[token_id // 8] >> token_id % 8 & 1
        mask = masks.advance(token_id)
    allowed = [token_id for token_id in range(len(mask) * 8) if mask[token_id // 8] >> token_id % 8 & 1]
    assert len(allowed) == 1


def test_what_the_prompt_has_begun_counts() -> None:
    regex = {"type": "regex", "schema": "ab"}
    assert allows(constraint_of(response_format=regex, begun=FINAL), "ab")
    assert allows(constraint_of("required", begun=THINK), f"hm<|end|>{OPEN}{CALL}")
    with pytest.raises(InvalidConstraint, match="begins the answer"):
        constraint_of(response_format=regex, begun=FINAL + "x")


def test_stop_strings_count_where_the_answer_may_end() -> None:
    free = ReadOptions(forms_of("harmony"), {}, False, True, True)
    assert free.is_in_content(THEN + FINAL + "x") and not free.is_in_content(THINK + "x") and not free.is_in_content("<|channel|>fin")
    tools, formatted = constraint_of("auto"), constraint_of(response_format={"type": "regex", "schema": "a+"})
    assert tools.accepts(THEN + FINAL + "x") and not tools.accepts(CALL) and not tools.accepts(THINK + "hm")
    assert formatted.accepts(THEN + FINAL + "aa") and not formatted.accepts(THEN + FINAL) and not formatted.accepts(THEN)
