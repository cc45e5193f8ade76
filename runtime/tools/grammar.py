"""A grammar (Lark, as llguidance reads it) of answers with tool calls: known functions only, arguments valid for their schema.

    auto       any text; from the trigger on calls, and nothing after them      required   calls from the first token on
               without a trigger: any text, unless it begins as a call does up to the arguments: then calls

Literals of the dialect that are special tokens of the tokenizer become just those tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..structured.constraint import JSON_WHITESPACE, JSON_WHITESPACE_CHARS
from ..structured.response_format import Grammar
from ..tokenizer.tokenizer import Tokenizer
from .bare_values import alternatives, beside_text, choices, takes_text
from .dialect import CallDialect, Parameters, Part, Slot

ANY_TEXT = r"/(.|\n)*/"
TEXT_NOT_JSON = r"/([^ \t\r\n\[{](.|\n)*)?/"
_INDEX_OR_ID = {Slot.INDEX: "[0-9]{1,3}", Slot.ID: "[a-zA-Z0-9]{9}"}
"""Regular expressions."""


def call_grammar(
    dialect: CallDialect, schemas: Mapping[str, dict[str, Any]], tokenizer: Tokenizer, *, is_required: bool, is_parallel: bool
) -> Grammar:
    """`schemas`: function → checked schema of its parameters (json_schema.checked_schema). Auto needs a trigger, or `call_beginnings`."""
    writer = _Writer(dialect, tokenizer)
    names = list(schemas)
    first_head = dialect.head
    if is_required:
        start = "first"
    elif dialect.trigger is None:
        start = f"{ANY_TEXT} | first"
    else:
        first_head = first_head[len(dialect.trigger) :]
        start = f"{ANY_TEXT} | triggered first"
        writer.add_trigger(dialect.trigger)
    more = is_parallel and dialect.separator is not None
    calls = f"call_first {'call_more*' if more else ''} {writer.literal(dialect.end)}"
    writer.add("first", calls)
    if is_required or dialect.trigger is not None:
        writer.add_calls("call_first", first_head, names)
    else:
        writer.add_begun_calls("call_first", call_beginnings(dialect, names), names)
    if more:
        first = dialect.call[0]
        assert isinstance(first, str) and dialect.separator is not None
        writer.add_calls("call_more", dialect.separator + first, names)
    for idx, name in enumerate(names):
        writer.add_arguments(f"args_{idx}", schemas[name])
    return Grammar("lark", "\n".join(["%llguidance {}", f"start: {start}", *writer.rules]) + "\n")


def call_beginnings(dialect: CallDialect, names: Sequence[str]) -> list[str]:
    """For each function, a regular expression of how the text of an answer begins that calls it, up to the arguments.

    White space is as free as it is where calls are read.
    """
    is_loose = dialect.parameters is None or dialect.parameters.is_json
    space = JSON_WHITESPACE_CHARS + "*"
    beginnings = []
    for name in names:
        regex = ""
        for part in (dialect.head, *dialect.call[1 : dialect.call.index(Slot.ARGS)]):
            if isinstance(part, str):
                regex += "".join(space + re.escape(char) for char in part if not char.isspace()) if is_loose else re.escape(part)
            else:
                regex += re.escape(name) if part is Slot.NAME else _INDEX_OR_ID[part]
        beginnings.append(regex)
    return beginnings


class _Writer:
    def __init__(self, dialect: CallDialect, tokenizer: Tokenizer) -> None:
        self._dialect = dialect
        self._tokenizer = tokenizer
        self.rules: list[str] = []

    def add(self, name: str, body: str) -> None:
        self.rules.append(f"{name}: {body}")

    def literal(self, text: str) -> str:
        return special_literal(self._tokenizer, text)

    def add_trigger(self, trigger: str) -> None:
        parts = self._tokenizer.split_special(trigger)
        if len(parts) == 1 and isinstance(parts[0], str):
            self.add("triggered[lazy]", f"{ANY_TEXT} {json.dumps(trigger)}")
        else:
            self.add("triggered", f"{ANY_TEXT} {self.literal(trigger)}")

    def add_calls(self, rule: str, head: str, names: list[str]) -> None:
        """One alternative per function."""
        self.add(rule, " | ".join(f"{rule}_{idx}" for idx in range(len(names))))
        for idx, name in enumerate(names):
            parts = (self._part(part, idx, name) for part in self._dialect.call[1:])
            self.add(f"{rule}_{idx}", " ".join([self.literal(head), *parts]))

    def add_begun_calls(self, rule: str, beginnings: list[str], names: list[str]) -> None:
        """As `add_calls`, where other text may stand in place of a call: the first match of a beginning decides."""
        self.add(rule, " | ".join(f"{rule}_{idx}" for idx in range(len(names))))
        args_at = self._dialect.call.index(Slot.ARGS)
        for idx, (beginning, name) in enumerate(zip(beginnings, names, strict=True)):
            self.add(f"{rule}_{idx}_begun[lazy]", regex_terminal(beginning))
            parts = (self._part(part, idx, name) for part in self._dialect.call[args_at:])
            self.add(f"{rule}_{idx}", " ".join([f"{rule}_{idx}_begun", f"/({JSON_WHITESPACE})?/", *parts]))

    def _part(self, part: Part, idx: int, name: str) -> str:
        if isinstance(part, str):
            return self.literal(part)
        if part in _INDEX_OR_ID:
            return f"/{_INDEX_OR_ID[part]}/"
        return json.dumps(name) if part is Slot.NAME else f"args_{idx}"

    def add_arguments(self, rule: str, schema: dict[str, Any]) -> None:
        form = self._dialect.parameters
        if form is None:
            self.add(rule, json_rule(schema))
        else:
            self._add_parameters(rule, schema, form)

    def _add_parameters(self, rule: str, schema: dict[str, Any], form: Parameters) -> None:
        """The properties in the order of the schema: `rule`_I_S stands for those from the I-th on, S telling whether one was written."""
        properties = schema.get("properties", {})
        required = set(schema.get("required", ()))
        for idx, (key, value) in enumerate(properties.items()):
            self._add_value(f"{rule}_v{idx}", value, schema, form)
            for is_started in (0, 1):
                head = (form.separator if is_started else "") + form.before + key + (form.middle if form.json_marks is None else "")
                one = f"{self.literal(head)} {rule}_v{idx} {rule}_{idx + 1}_1"
                self.add(f"{rule}_{idx}_{is_started}", one if key in required else f"{one} | {rule}_{idx + 1}_{is_started}")
        for is_started in (0, 1):
            self.add(f"{rule}_{len(properties)}_{is_started}", '""')
        self.add(rule, f"{rule}_0_0")

    def _add_value(self, rule: str, schema: Any, root: dict[str, Any], form: Parameters) -> None:
        """A value and what comes after it; where the form tells text from JSON, also what comes before it."""
        before, after = map(self.literal, form.json_marks or ("", form.after))
        definitions: dict[str, Any] = {key: root[key] for key in ("$defs", "definitions") if key in root}
        kinds = [] if form.is_json else alternatives(schema, root)
        if not any(map(takes_text, kinds)):
            whole = {**definitions, **schema} if isinstance(schema, dict) else {}
            self.add(rule, f"{before} {json_rule(whole)} {after}")
            return
        is_told_from_json = form.json_marks is None and any(one.get("type") in ("array", "object") for one in kinds)
        names = []
        for idx, one in enumerate(kinds):
            name = f"{rule}_k{idx}"
            if takes_text(one):
                self._add_text(name, one, form, is_told_from_json=is_told_from_json)
                names.append(f"{self.literal(form.middle)} {name}" if form.json_marks is not None else name)
            if (beside := beside_text(one)) is not None and (form.json_marks is not None or choices(one) or not takes_text(one)):
                self.add(f"{name}_json", f"{before} {json_rule({**definitions, **beside})} {after}")
                names.append(f"{name}_json")
        self.add(rule, " | ".join(names))

    def _add_text(self, rule: str, schema: dict[str, Any], form: Parameters, *, is_told_from_json: bool) -> None:
        """Text and what comes after it. `is_told_from_json`: it may not begin as a list or an object does."""
        after = self.literal(form.after)
        if texts := [value for value in choices(schema) if isinstance(value, str)]:
            self.add(rule, f"({' | '.join(map(json.dumps, texts))}) {after}")
            return
        is_plain = all(isinstance(part, str) for part in self._tokenizer.split_special(form.after))
        regexes = _text_regexes(schema)
        if regexes and is_plain:  # the text is what comes before the first `after`
            end = _escaped(form.after)
            self.add(rule.upper(), " & ".join([*(f"/{one}{end}/" for one in regexes), f"~/(.|\\n)*{end}(.|\\n)+/"]))
            self.add(rule, rule.upper())
        elif regexes:
            self.add(rule.upper(), " & ".join(f"/{one}/" for one in regexes))
            self.add(rule, f"{rule.upper()} {after}")
        elif is_plain:
            self.add(f"{rule}[lazy]", f"{TEXT_NOT_JSON if is_told_from_json else ANY_TEXT} {json.dumps(form.after)}")
        else:
            self.add(rule, f"{TEXT_NOT_JSON if is_told_from_json else ANY_TEXT} {after}")


def special_literal(tokenizer: Tokenizer, text: str) -> str:
    """Text as a sequence of strings and special tokens; empty text is no symbol at all."""
    return " ".join(f"<[{part}]>" if isinstance(part, int) else json.dumps(part) for part in tokenizer.split_special(text))


def regex_terminal(pattern: str) -> str:
    return f"/{_slashes_escaped(pattern)}/"


def json_rule(schema: dict[str, Any]) -> str:
    """A JSON value that is valid for a checked schema."""
    return "%json " + json.dumps({**schema, "x-guidance": {"whitespace_pattern": JSON_WHITESPACE}})


def _text_regexes(schema: dict[str, Any]) -> list[str]:
    """What a text without quotes has to match: its pattern and its length. Of a value of any kind: nothing."""
    if schema.get("type") != "string":
        return []
    whole = schema.get("pattern", "").removeprefix("^").removesuffix("$")  # checked schemas have ^(?:…)$
    regexes = [_slashes_escaped(whole)] if whole else []
    if "minLength" in schema or "maxLength" in schema:
        regexes.append(f"(.|\\n){{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}}")
    return regexes


def _escaped(text: str) -> str:
    """A regular expression, between slashes, of `text` itself."""
    return _slashes_escaped(re.escape(text).replace("\\\n", "\\n"))


def _slashes_escaped(pattern: str) -> str:
    return re.sub(r"\\.|/|\n", lambda found: {"/": r"\/", "\n": r"\n"}.get(found[0], found[0]), pattern, flags=re.DOTALL)
