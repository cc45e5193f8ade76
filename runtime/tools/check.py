"""`fmo check-template`: what a chat template says about calls and reasoning, tried out.

The template renders calls with difficult arguments; what it writes must be read back exactly: in one piece, character by character, and cut
in two at every place. The compiler keeps these texts in the artifact (VECTORS_FILE): they must be read back by every later version too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..tokenizer.chat_template import ChatTemplate, load_chat_template
from ..tokenizer.tokenizer import Tokenizer, read_json
from .dialect import CallDialect, NoDialect, Slot, rendered_calls
from .forms import answer_forms
from .parser import CallParser

_STRINGS = {"type": "object", "properties": {"text": {"type": "string"}, "count": {"type": "integer"}, "items": {"type": "array"}}}
FUNCTIONS: dict[str, Any] = {"look_up": _STRINGS, "now": {"type": "object", "properties": {}}}
VECTORS_FILE = "call_vectors.json"
_ONE: list[list[tuple[str, dict[str, Any]]]] = [
    [("look_up", {"text": "plain", "count": 3})],
    [("look_up", {"text": 'a "quoted" {brace} [list] \\ back\nnew line  two 🙂 é'})],
    [("look_up", {"items": [1, {"a": None}, "x]}"], "count": -1})],
    [("now", {})],
]
_SEVERAL: list[list[tuple[str, dict[str, Any]]]] = [[*_ONE[0], *_ONE[3]], [*_ONE[1], *_ONE[2], *_ONE[0]]]


@dataclass(slots=True)
class TemplateReport:
    """`failures`: vectors that were not read back, as text for people."""

    has_template: bool
    calls: CallDialect | None = None
    why_no_calls: str = ""
    reasoning: tuple[str, str] | None = None
    num_vectors: int = 0
    num_splits: int = 0
    failures: list[str] = field(default_factory=list)
    vectors: list[dict[str, Any]] = field(default_factory=list)
    """{"text": as the template writes it, "calls": [[name, arguments], …]}"""

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
    marks = (forms.reasoning.open, forms.reasoning.close) if forms.reasoning is not None else None
    report = TemplateReport(True, forms.calls, forms.why_no_calls, marks)
    if forms.calls is None:
        return report
    end_texts = [tokenizer.backend.id_to_token(token_id) or "" for token_id in eos_ids]
    for calls in [*_ONE, *(_SEVERAL if forms.calls.separator is not None else [])]:
        report.num_vectors += 1
        try:
            text = rendered_calls(template, forms.calls, end_texts, calls)
        except NoDialect as error:
            report.failures.append(f"{calls[0][0]}: {error}")
            continue
        report.vectors.append({"text": text, "calls": [[name, arguments] for name, arguments in calls]})
        _try(report, forms.calls, text, calls)
    return report


def _check_stored(report: TemplateReport, path: Path) -> None:
    """Also reads back what was written into the artifact when it was compiled."""
    stored = read_json(path).get("vectors", [])
    for vector in stored:
        if vector in report.vectors:  # tried already
            continue
        report.num_vectors += 1
        if report.calls is None:
            report.failures.append(f"not read back: {json.dumps(vector['text'], ensure_ascii=False)}; {report.why_no_calls}")
        else:
            _try(report, report.calls, vector["text"], [(name, arguments) for name, arguments in vector["calls"]])


def _try(report: TemplateReport, dialect: CallDialect, text: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    for pieces in _splits(text):
        report.num_splits += 1
        if not _reads_back(dialect, pieces, calls):
            report.failures.append(f"not read back: {json.dumps(text, ensure_ascii=False)}, in {len(pieces)} pieces")
            return


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


def _reads_back(dialect: CallDialect, pieces: list[str], calls: list[tuple[str, dict[str, Any]]]) -> bool:
    parser = CallParser(dialect, FUNCTIONS)
    found: list[tuple[str, str]] = []
    for output in [*map(parser.push, pieces), parser.finish()]:
        for item in output:
            if isinstance(item, str):
                return False
            if item.name is not None:
                found.append((item.name, item.arguments))
            else:
                found[-1] = (found[-1][0], found[-1][1] + item.arguments)
    return parser.num_calls == len(calls) and [(name, json.loads(arguments)) for name, arguments in found] == calls


def _eos_ids(folder: Path, tokenizer: Tokenizer) -> list[int]:
    """End tokens as the manifest or the configs name them, and the tokenizer's own."""
    found: list[int] = list(read_json(folder / "manifest.json").get("model", {}).get("eos_token_ids", []))
    for path in (folder / "generation_config.json", folder / "config.json"):
        value = read_json(path).get("eos_token_id")
        found += value if isinstance(value, list) else [value] if isinstance(value, int) else []
    text = tokenizer.special_tokens.get("eos_token")
    token_id = tokenizer.backend.token_to_id(text) if text is not None else None
    return list(dict.fromkeys([*found, *([token_id] if token_id is not None else [])]))
