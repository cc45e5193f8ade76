"""`fmo check-template`: what a chat template says about calls and reasoning, tried out.

The template renders calls with difficult arguments, and answers in channels with reasoning; what it writes must be read back exactly: in
one piece, character by character, and cut in two at every place. The compiler keeps these texts in the artifact (VECTORS_FILE): they must
be read back by every later version too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..tokenizer.chat_template import ChatTemplate, load_chat_template
from ..tokenizer.tokenizer import Tokenizer, read_json
from .channels import ChannelDialect, rendered_answer
from .dialect import CallDialect, NoDialect, Slot, rendered_calls
from .forms import AnswerForms, AnswerReader, ReadOptions, answer_forms

_STRINGS = {"type": "object", "properties": {"text": {"type": "string"}, "count": {"type": "integer"}, "items": {"type": "array"}}}
FUNCTIONS: dict[str, Any] = {"look_up": _STRINGS, "now": {"type": "object", "properties": {}}}
VECTORS_FILE = "call_vectors.json"
_ONE: list[list[tuple[str, dict[str, Any]]]] = [
    [("look_up", {"text": "plain", "count": 3})],
    [("look_up", {"text": 'a "quoted" {brace} [list] \\ back\nnew line  two 🙂 é'})],
    [("look_up", {"items": [1, {"a": None}, "x]}"], "count": -1})],
    [("now", {})],
]
_ANSWERS = [("think", "answer"), ('a "quoted" <|b|>\n\n🙂 ', "line\n\n  two <c> {é}")]
"""Reasoning and content."""
_SEVERAL: list[list[tuple[str, dict[str, Any]]]] = [[*_ONE[0], *_ONE[3]], [*_ONE[1], *_ONE[2], *_ONE[0]]]


@dataclass(slots=True)
class TemplateReport:
    """`failures`: vectors that were not read back, as text for people."""

    has_template: bool
    forms: AnswerForms | None = None
    num_vectors: int = 0
    num_splits: int = 0
    failures: list[str] = field(default_factory=list)
    vectors: list[dict[str, Any]] = field(default_factory=list)
    """{"text": as the template writes it, "calls": [[name, arguments], …]}; of answers in channels also "reasoning" and "content" """

    @property
    def calls(self) -> CallDialect | None:
        return self.forms.calls if self.forms is not None else None

    @property
    def why_no_calls(self) -> str:
        return self.forms.why_no_calls if self.forms is not None else ""

    @property
    def reasoning(self) -> tuple[str, str] | None:
        found = self.forms.reasoning if self.forms is not None else None
        return (found.open, found.close) if found is not None else None

    @property
    def channels(self) -> ChannelDialect | None:
        return self.forms.channels if self.forms is not None else None

    def as_json(self) -> dict[str, Any]:
        calls = None
        if self.calls is not None:
            calls = {
                "example": example(self.calls),
                "trigger": self.calls.trigger,
                "parallel": self.calls.separator is not None,
                "arguments": "json" if self.calls.parameters is None else "parameters",
            }
        return {
            "has_template": self.has_template,
            "calls": calls,
            "why_no_calls": self.why_no_calls or None,
            "reasoning": list(self.reasoning) if self.reasoning is not None else None,
            "channels": channel_names(self.channels) if self.channels is not None else None,
            "num_vectors": self.num_vectors,
            "num_splits": self.num_splits,
            "failures": self.failures,
        }


def check_folder(folder: Path) -> TemplateReport:
    """The template of a checkpoint, or of the `tokenizer` folder of an artifact. Raises ConfigError when there is no tokenizer."""
    inner = folder / "tokenizer"
    where = inner if (inner / "tokenizer.json").is_file() else folder
    if not (where / "tokenizer.json").is_file():
        raise ConfigError("there is no tokenizer.json", where=str(folder), hint="give a Hugging Face folder or an artifact")
    tokenizer = Tokenizer.load(where)
    template = load_chat_template(where, tokenizer)
    if template is None:
        return TemplateReport(has_template=False)
    report = check_template(template, tokenizer, _eos_ids(folder, tokenizer))
    _check_stored(report, folder / VECTORS_FILE)
    return report


def check_template(template: ChatTemplate, tokenizer: Tokenizer, eos_ids: list[int]) -> TemplateReport:
    forms = answer_forms(template, tokenizer, eos_ids)
    report = TemplateReport(True, forms)
    end_texts = [tokenizer.backend.id_to_token(token_id) or "" for token_id in eos_ids]
    if forms.channels is not None:
        for reasoning, content in _ANSWERS:
            report.num_vectors += 1
            text = rendered_answer(template, forms.channels, end_texts, reasoning, content)
            report.vectors.append({"text": text, "calls": [], "reasoning": reasoning, "content": content})
            _try(report, report.vectors[-1])
    if forms.calls is None:
        return report
    for calls in [*_ONE, *(_SEVERAL if forms.calls.separator is not None else [])]:
        report.num_vectors += 1
        try:
            text = rendered_calls(template, forms.calls, end_texts, calls)
        except NoDialect as error:
            report.failures.append(f"{calls[0][0]}: {error}")
            continue
        report.vectors.append({"text": text, "calls": [[name, arguments] for name, arguments in calls]})
        _try(report, report.vectors[-1])
    return report


def _check_stored(report: TemplateReport, path: Path) -> None:
    """Also reads back what was written into the artifact when it was compiled."""
    stored = read_json(path).get("vectors", [])
    for vector in stored:
        if vector in report.vectors:  # tried already
            continue
        report.num_vectors += 1
        if report.calls is None and (vector["calls"] or report.channels is None):
            report.failures.append(f"not read back: {json.dumps(vector['text'], ensure_ascii=False)}; {report.why_no_calls}")
        else:
            _try(report, vector)


def _try(report: TemplateReport, vector: dict[str, Any]) -> None:
    assert report.forms is not None
    for pieces in _splits(vector["text"]):
        report.num_splits += 1
        if not _reads_back(report.forms, pieces, vector):
            report.failures.append(f"not read back: {json.dumps(vector['text'], ensure_ascii=False)}, in {len(pieces)} pieces")
            return


def channel_names(channels: ChannelDialect) -> dict[str, str | None]:
    return {"reasoning": channels.reasoning, "content": channels.content, "calls": channels.call.channel if channels.call else None}


def example(dialect: CallDialect) -> str:
    """One call as the model writes it, with names for what varies."""
    form = dialect.parameters
    quote = '"' if form is not None and form.is_json else ""
    args = "ARGUMENTS" if form is None else f"{form.before}KEY{form.middle}{quote}VALUE{quote}{form.after}"
    names = {Slot.NAME: "NAME", Slot.ARGS: args, Slot.ID: "ID", Slot.INDEX: "0"}
    call = "".join(part if isinstance(part, str) else names[part] for part in dialect.call)
    return dialect.start + call + dialect.end


def _splits(text: str) -> Iterator[list[str]]:
    yield [text]
    yield list(text)
    for place in range(1, len(text)):
        yield [text[:place], text[place:]]


def _reads_back(forms: AnswerForms, pieces: list[str], vector: dict[str, Any]) -> bool:
    """Only answers in channels have reasoning and content in their vectors: there one parser reads all."""
    options = ReadOptions(forms if forms.channels is not None else replace(forms, reasoning=None), FUNCTIONS, False, True, True)
    reader = AnswerReader(options)
    reasoning = content = ""
    found: list[tuple[str, str]] = []
    for piece in [*map(reader.push, pieces), reader.finish()]:
        reasoning, content = reasoning + piece.reasoning, content + piece.content
        for call in piece.calls:
            if call.name is not None:
                found.append((call.name, call.arguments))
            else:
                found[-1] = (found[-1][0], found[-1][1] + call.arguments)
    if (reasoning, content, reader.num_calls) != (vector.get("reasoning", ""), vector.get("content", ""), len(vector["calls"])):
        return False
    return [[name, json.loads(arguments)] for name, arguments in found] == vector["calls"]


def _eos_ids(folder: Path, tokenizer: Tokenizer) -> list[int]:
    """End tokens as the manifest or the configs name them, and the tokenizer's own."""
    found: list[int] = list(read_json(folder / "manifest.json").get("model", {}).get("eos_token_ids", []))
    for path in (folder / "generation_config.json", folder / "config.json"):
        value = read_json(path).get("eos_token_id")
        found += value if isinstance(value, list) else [value] if isinstance(value, int) else []
    text = tokenizer.special_tokens.get("eos_token")
    token_id = tokenizer.backend.token_to_id(text) if text is not None else None
    return list(dict.fromkeys([*found, *([token_id] if token_id is not None else [])]))
