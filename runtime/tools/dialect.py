"""How a model writes tool calls, read off its chat template: the template is rendered with calls whose parts are known.

    answer = start  call  separator  call  end          call = <tool_call>\\n{"name": "  NAME  ", "arguments":  ARGS  }\\n</tool_call>

What stands around one call is compared with what stands between two of them: what both share belongs to the call, the rest is start,
separator and end. Arguments are one JSON object, or one parameter at a time (<parameter=KEY>VALUE</parameter>, KEY=VALUE). No template is
known by name here. `derived_dialect` gives None for a template that does not write calls, or in no such form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise, product
from typing import Any

from ..tokenizer.chat_template import ChatTemplate, ChatTemplateError

_NAMES = ("zqalpha", "zqbeta")
_IDS = ("zqid0000a", "zqid0000b")  # nine letters and digits: some templates insist
_KEYS = ("zqkeya", "zqkeyb")
_VALUES = ("zqvalua", "zqvalub")
_NUMBER = 9042017
_MAX_END_CHARS = 200
_CONTENT = "zqcontent"
_USER = {"role": "user", "content": "zquser"}
_MARK = re.compile(r"<[^<>\s]+>|\[[A-Za-z_]+\]")
_TRIGGER = re.compile(r"<[^<>\s]+>?|\[[A-Za-z_]+\]")


class Slot(Enum):
    """What varies in the text of a call. INDEX counts the calls of an answer from 0."""

    NAME = "name"
    ARGS = "arguments"
    ID = "id"
    INDEX = "index"


Part = str | Slot


@dataclass(frozen=True, slots=True)
class Parameters:
    """Arguments written one by one: `before` KEY `middle` VALUE `after`, with `separator` between two. `is_json`: strings are quoted.

    `json_marks`: what stands in place of `middle` and `after` around values that are no strings, where that is something else.
    """

    before: str
    middle: str
    after: str
    separator: str
    is_json: bool
    json_marks: tuple[str, str] | None = None

    @property
    def key_end(self) -> str:
        """What follows a key whatever its value is."""
        return self.middle if self.json_marks is None else common_prefix(self.middle, self.json_marks[0])


@dataclass(frozen=True, slots=True)
class CallDialect:
    """`call` begins and ends with literals (maybe empty). `separator` None: one call per answer.

    `trigger`: the mark with which calls begin anywhere in a text; None: calls are recognised only when the answer begins with them.
    `parameters` None: ARGS is a JSON object. `arguments_as_text`: the template wants the arguments of earlier calls as JSON text.
    `ids_name_functions`: templates that write a call by its id only, which has to be `named_id`. `values_as_text`: the template writes
    arguments that are no strings as JSON only when they are given as text. `needs_no_content`: it writes calls of messages whose content is
    null, not empty.
    """

    start: str
    call: tuple[Part, ...]
    separator: str | None
    end: str
    trigger: str | None
    parameters: Parameters | None
    arguments_as_text: bool
    ids_name_functions: bool = False
    values_as_text: bool = False
    needs_no_content: bool = False

    @property
    def head(self) -> str:
        """The literal text before the first slot of the first call."""
        first = self.call[0]
        assert isinstance(first, str)
        return self.start + first

    @property
    def literals(self) -> str:
        """All literal text, to look for special tokens in it."""
        params = self.parameters
        extra = [params.before, params.middle, params.after, params.separator, *(params.json_marks or ())] if params is not None else []
        return "\n".join([self.start, *(part for part in self.call if isinstance(part, str)), self.separator or "", self.end, *extra])

    def history_arguments(self, arguments: Any) -> Any:
        """The arguments of an earlier call as the template wants them."""
        if self.arguments_as_text:
            return json.dumps(arguments, ensure_ascii=False)
        if self.values_as_text and isinstance(arguments, dict):
            return {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in arguments.items()}
        return arguments


class NoDialect(ValueError):
    """Why a template gives no dialect."""


def derived_dialect(template: ChatTemplate, end_texts: Sequence[str], *, in_channels: bool = False) -> CallDialect:
    """`end_texts`: the written forms of the tokens that end an answer. `in_channels`: calls are told from text by their channel and need no
    trigger. Raises NoDialect.
    """
    reasons = []
    for is_trimmed, no_content, as_text, in_ids in product((False, True), repeat=4):
        try:
            renderer = _Renderer(template, end_texts, as_text=as_text, in_ids=in_ids, no_content=no_content, is_trimmed=is_trimmed)
            dialect = _derived(renderer)
            if in_channels:
                return replace(dialect, trigger=None)
            if dialect.trigger is not None and dialect.trigger in renderer.plain_answer():
                raise NoDialect(f"'{dialect.trigger}', with which calls begin, begins other answers too")
            return dialect
        except NoDialect as error:
            reasons.append(str(error))
    raise NoDialect(reasons[0])


def rendered_calls(
    template: ChatTemplate, dialect: CallDialect, end_texts: Sequence[str], calls: Sequence[tuple[str, dict[str, Any]]]
) -> str:
    """What a model writes for these calls, as its template shows them. Raises NoDialect when the template fails on them."""
    messages = []
    for idx, (name, arguments) in enumerate(calls):
        call_id = named_id(name, idx) if dialect.ids_name_functions else f"call{idx:05d}"
        function = {"name": name, "arguments": dialect.history_arguments(arguments)}
        messages.append({"id": call_id, "type": "function", "function": function})
    as_text, in_ids = dialect.arguments_as_text, dialect.ids_name_functions
    text = _Renderer(template, end_texts, as_text=as_text, in_ids=in_ids, no_content=dialect.needs_no_content).answer(messages)
    begin = dialect.trigger or dialect.head
    return text[max(text.find(begin), 0) :].rstrip()


def named_id(name: str, call_idx: int | str) -> str:
    """The id of a call whose text is its id."""
    return f"functions.{name}:{call_idx}"


@dataclass(frozen=True, slots=True)
class _Renderer:
    """Gives what the model writes for an assistant's message: after the generation prompt, before the end of the turn.

    `as_text`: arguments are given as JSON text. `in_ids`: the ids name the functions. `no_content`: the content beside calls is null.
    `is_trimmed`: what begins every answer, an empty reasoning for instance, is left out.
    """

    template: ChatTemplate
    end_texts: Sequence[str]
    as_text: bool
    in_ids: bool
    no_content: bool
    is_trimmed: bool = False

    def plain_answer(self) -> str:
        prompt = self._render([_USER], [], add_generation_prompt=True)
        text = self._render([_USER, {"role": "assistant", "content": _CONTENT}], [], add_generation_prompt=False)
        return text[_shared_start(prompt, text) :]

    def answer(self, calls: list[dict[str, Any]]) -> str:
        tools = [_tool(name) for name in _NAMES]
        prompt = self._render([_USER], tools, add_generation_prompt=True)
        content = None if self.no_content else ""
        text = self._render([_USER, {"role": "assistant", "content": content, "tool_calls": calls}], tools, add_generation_prompt=False)
        plain = self._render([_USER, {"role": "assistant", "content": _CONTENT}], tools, add_generation_prompt=False)
        answer = text[_shared_start(prompt, text) :]
        if self.is_trimmed:
            before_content, _, _ = plain[_shared_start(prompt, plain) :].partition(_CONTENT)
            answer = answer.removeprefix(before_content.rstrip())
        cut = min(
            (found for end in self.end_texts if end and (found := answer.find(end, max(_last_sentinel(answer), 0))) >= 0), default=None
        )
        if cut is not None:
            return answer[:cut]
        turn_end = plain[plain.rfind(_CONTENT) + len(_CONTENT) :] if _CONTENT in plain else ""
        return answer.removesuffix(turn_end)

    def call(self, idx: int, num_args: int) -> dict[str, Any]:
        return self.call_with(dict(zip(_KEYS[:num_args], _VALUES[:num_args], strict=True)), idx)

    def call_with(self, given: dict[str, Any], idx: int = 0) -> dict[str, Any]:
        arguments = json.dumps(given, ensure_ascii=False) if self.as_text else given
        call_id = named_id(_NAMES[idx], idx) if self.in_ids else _IDS[idx]
        return {"id": call_id, "type": "function", "function": {"name": _NAMES[idx], "arguments": arguments}}

    def _render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        try:
            return self.template.render(messages, tools=tools, add_generation_prompt=add_generation_prompt)
        except ChatTemplateError as error:
            raise NoDialect(f"the template does not render a message with tool calls: {error}") from None


def _tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {key: {"type": "string", "description": "d"} for key in _KEYS}, "required": []}
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}


def _shared_start(prompt: str, text: str) -> int:
    """Where the answer begins in `text`: after the prompt, or where the prompt goes another way (it opens the reasoning, say)."""
    shared = len(common_prefix(prompt, text))
    if shared == len(prompt):
        return shared
    while shared and not (prompt[shared - 1].isspace() or prompt[shared - 1] in ">]"):
        shared -= 1  # not in the middle of a mark that only begins alike
    return shared


def _last_sentinel(text: str) -> int:
    return max(text.rfind(sentinel) for sentinel in (*_NAMES, *_IDS, *_VALUES))


# From renderings to the dialect ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Found:
    """A rendered answer: for each call its slots in order, as (begin, end, slot)."""

    text: str
    calls: list[list[tuple[int, int, Slot]]]

    def inside(self, call_idx: int) -> list[Part]:
        """Slots and the literals between them, from the first to the last slot."""
        slots = self.calls[call_idx]
        parts: list[Part] = [slots[0][2]]
        for (_, end, _), (begin, _, slot) in pairwise(slots):
            parts += [self.text[end:begin], slot]
        return parts

    def begin(self, call_idx: int) -> int:
        return self.calls[call_idx][0][0]

    def end(self, call_idx: int) -> int:
        return self.calls[call_idx][-1][1]


def _derived(renderer: _Renderer) -> CallDialect:
    text = renderer.answer([renderer.call(0, 1)])
    if _NAMES[0] not in text:
        raise NoDialect("the template does not write the name of a called function")
    parameters = None if _json_args(text, 0) else _parameters(renderer)
    one = _found(text, 1, parameters, in_ids=renderer.in_ids)
    head, tail = one.text[: one.begin(0)], one.text[one.end(0) :]
    try:
        two = _found(renderer.answer([renderer.call(0, 1), renderer.call(1, 1)]), 2, parameters, in_ids=renderer.in_ids)
    except NoDialect:  # the template takes one call only
        return _dialect(renderer, "", [head, *one.inside(0), tail], None, "", parameters)
    if two.inside(0) != one.inside(0) or two.inside(1) != one.inside(0):
        raise NoDialect("the template writes the second call of an answer in another way than the first")
    between = two.text[two.end(0) : two.begin(1)]
    before, start = _shared_end(head, between)
    rest = between[: len(between) - _length(before)]
    after = _shared_begin(tail, rest)
    call = [*before, *one.inside(0), after]
    return _dialect(renderer, start, call, rest[len(after) :], tail[len(after) :], parameters)


def _dialect(
    renderer: _Renderer, start: str, call: list[Part], separator: str | None, end: str, parameters: Parameters | None
) -> CallDialect:
    if not isinstance(call[0], str):
        call = ["", *call]
    first = call[0]
    assert isinstance(first, str)
    start = start.lstrip()
    if not start:  # what separates a call from the one before it separates the first one from what is before that
        if separator is not None:
            separator += first[: len(first) - len(first.lstrip())]
        first = call[0] = first.lstrip()
    found = _TRIGGER.match(start + first)
    dialect = CallDialect(
        start,
        tuple(call),
        separator,
        end.rstrip(),
        found[0] if found else None,
        parameters,
        renderer.as_text,
        renderer.in_ids,
        values_as_text=parameters is not None and parameters.json_marks is None and not parameters.is_json and _wants_text(renderer),
        needs_no_content=renderer.no_content,
    )
    if any(sentinel in dialect.literals for sentinel in (*_NAMES, *_IDS, *_KEYS, *_VALUES)):
        raise NoDialect("the template repeats a name or a value within a call")
    if len(dialect.end) > _MAX_END_CHARS:
        raise NoDialect("the template writes something else than a mark after the calls")
    return dialect


def _wants_text(renderer: _Renderer) -> bool:
    """Whether a list is written as JSON only when it is given as text."""
    value = [True, {_KEYS[1]: None}]
    written = json.dumps(value)
    as_it_is, as_text = (renderer.answer([renderer.call_with({_KEYS[0]: given})]) for given in (value, written))
    return "".join(written.split()) not in "".join(as_it_is.split()) and written in as_text


def _json_args(text: str, from_pos: int) -> re.Match[str] | None:
    return re.compile(rf'\{{\s*"{_KEYS[0]}"\s*:\s*"{_VALUES[0]}"\s*\}}').search(text, from_pos)


def _found(text: str, num_calls: int, parameters: Parameters | None, *, in_ids: bool) -> _Found:
    """The slots of each call of an answer. Raises NoDialect when one is missing."""
    calls = []
    pos = 0
    for name, call_id in list(zip(_NAMES, _IDS, strict=True))[:num_calls]:
        name_at = text.find(name, pos)
        if name_at < 0:
            raise NoDialect("the template does not write every call")
        if parameters is None:
            args = _json_args(text, pos)
            span = (args.start(), args.end()) if args is not None else None
        else:
            span = _parameter_span(text, name_at + len(name), parameters)
        if span is None:
            raise NoDialect("the arguments of a call are not found in what the template writes")
        if span[0] < name_at:
            raise NoDialect("the template writes the arguments of a call before its name")
        slots = [(name_at, name_at + len(name), Slot.NAME), (*span, Slot.ARGS)]
        id_at = text.find(call_id, pos)
        if in_ids:  # functions.NAME:INDEX, where the index has one digit
            slots.append((slots[0][1] + 1, slots[0][1] + 2, Slot.INDEX))
        elif id_at >= 0:
            slots.append((id_at, id_at + len(call_id), Slot.ID))
        calls.append(sorted(slots, key=lambda slot: slot[0]))
        pos = calls[-1][-1][1]
    return _Found(text, calls)


def _parameter_span(text: str, pos: int, parameters: Parameters) -> tuple[int, int] | None:
    quote = '"' if parameters.is_json else ""
    written = parameters.before + _KEYS[0] + parameters.middle + quote + _VALUES[0] + quote + parameters.after
    at = text.find(written, pos)
    return None if at < 0 else (at, at + len(written))


def _parameters(renderer: _Renderer) -> Parameters:
    """The form of arguments that are written one by one. Raises NoDialect."""
    one = renderer.answer([renderer.call(0, 1)])
    two = renderer.answer([renderer.call(0, 2)])
    name_end = one.find(_NAMES[0]) + len(_NAMES[0])
    key_at, value_at = one.find(_KEYS[0], name_end), one.find(_VALUES[0], name_end)
    value_end = two.find(_VALUES[0]) + len(_VALUES[0])
    next_key_at = two.find(_KEYS[1], value_end)
    if key_at < 0 or value_at < key_at or next_key_at < 0:
        raise NoDialect("the arguments of a call are not found in what the template writes")
    head, middle, tail = one[name_end:key_at], one[key_at + len(_KEYS[0]) : value_at], one[value_at + len(_VALUES[0]) :]
    between = two[value_end:next_key_at]
    shared, _ = _shared_end(head, between)
    before = "".join(part for part in shared if isinstance(part, str))
    rest = between[: len(between) - len(before)]
    after = _shared_begin(tail, rest)
    is_json = middle.endswith('"') and after.startswith('"')
    if is_json:
        middle, after = middle[:-1], after[1:]
    elif not after:
        raise NoDialect("nothing marks the end of an argument that the template writes")
    separator = rest[len(after) + is_json :]
    json_marks = None if is_json else _json_marks(renderer, middle, after, tail)
    return Parameters(before, middle, after, separator, is_json, json_marks)


def _json_marks(renderer: _Renderer, middle: str, after: str, tail: str) -> tuple[str, str] | None:
    """What stands around a number in place of `middle` and `after`; None: the same. `tail`: what follows a text. Raises NoDialect."""
    text = renderer.answer([renderer.call_with({_KEYS[0]: _NUMBER})])
    before, found, rest = text.partition(str(_NUMBER))
    at = before.rfind(_KEYS[0])
    following = tail[len(after) :]
    if not found or at < 0 or not rest.endswith(following):
        raise NoDialect("the template writes arguments that are numbers in a form of their own")
    marks = before[at + len(_KEYS[0]) :], rest[: len(rest) - len(following)]
    if marks == (middle, after):
        return None
    if not common_prefix(middle, marks[0]):
        raise NoDialect("nothing marks the end of an argument's name that the template writes")
    return marks


def _shared_end(head: str, between: str) -> tuple[list[Part], str]:
    """What `head` and `between` end with alike, a 0 that became a 1 being an INDEX; and what is left of `head`."""
    parts: list[Part] = []
    while True:
        shared = common_suffix(head, between)
        skipped = max(_to_mark_end(head, len(head) - len(shared)), _to_mark_end(between, len(between) - len(shared)))
        shared = shared[skipped:]
        parts.insert(0, shared)
        head, between = head[: len(head) - len(shared)], between[: len(between) - len(shared)]
        if not (shared and head.endswith("0") and between.endswith("1")):
            return parts, head
        parts.insert(0, Slot.INDEX)
        head, between = head[:-1], between[:-1]


def _shared_begin(tail: str, rest: str) -> str:
    """What both begin with, without the begin of a mark that ends differently."""
    shared = len(common_prefix(tail, rest))
    return tail[: min(to_mark_begin(tail, shared), to_mark_begin(rest, shared))]


def _to_mark_end(text: str, pos: int) -> int:
    """Characters from `pos` to the end of the mark that `pos` is inside of, 0 when it is in none."""
    return next((found.end() - pos for found in _MARK.finditer(text) if found.start() < pos < found.end()), 0)


def to_mark_begin(text: str, pos: int) -> int:
    return next((found.start() for found in _MARK.finditer(text) if found.start() < pos < found.end()), pos)


def _length(parts: list[Part]) -> int:
    return sum(len(part) if isinstance(part, str) else 1 for part in parts)


def common_prefix(a: str, b: str) -> str:
    length = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:length]


def common_suffix(a: str, b: str) -> str:
    length = len(common_prefix(a[::-1], b[::-1]))
    return a[len(a) - length :]
