"""Answers that consist of several messages, each with a header that names its channel, found out from the chat template.

    answer = header body end  opening header body end  …  header body         header = [ recipient] mark NAME [ recipient] [ kind] body_mark

One channel holds reasoning, one the content, one calls, whose header names the function as a recipient, before the mark or behind the name.
A template is of this kind when, between the reasoning and the content of one answer, it opens the assistant's turn again. It is known by
that and not by a name: the marks, the names of the channels and the form of a recipient are those that the template writes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..tokenizer.chat_template import ChatTemplate, ChatTemplateError
from .dialect import CallDialect, Slot
from .reasoning import HISTORY_KEYS, ReasoningDialect

_REASON, _CONTENT = "zqreason", "zqcontent"
_USER = {"role": "user", "content": "zquser"}
_HEADER = re.compile(r"\s*(<[^<>\s]+>)(\w+)(<[^<>\s]+>)\s*")
_MARK = re.compile(r"<[^<>\s]+>")


@dataclass(frozen=True, slots=True)
class ChannelCall:
    """The header of a call names `channel` and, as a word, `recipient` + the function. `kind`: the word for what its body is.

    `end`: what closes the body of a call; nothing when a token that ends the answer does.
    """

    channel: str
    recipient: str
    kind: str
    end: str
    is_parallel: bool


@dataclass(frozen=True, slots=True)
class ChannelDialect:
    """`opening`: how a message of the assistant begins, which the prompt writes for the first one. `end`: closes a message before another.

    `reasoning`, `content`: names of channels. `call` None: no calls. `history_key`: where the template reads earlier reasoning;
    `reasons_for_content`: beside calls it takes that or content, not both.
    """

    opening: str
    mark: str
    body_mark: str
    end: str
    reasoning: str
    content: str
    history_key: str
    reasons_for_content: bool = False
    call: ChannelCall | None = None

    @property
    def literals(self) -> str:
        """All marks, to look for special tokens in them."""
        return "\n".join([self.opening, self.mark, self.body_mark, self.end, self.call.end if self.call is not None else ""])

    @property
    def reasoning_dialect(self) -> ReasoningDialect:
        return ReasoningDialect(self.mark + self.reasoning + self.body_mark, self.end, self.history_key)

    def begun_by(self, prompt: str) -> str:
        """What a prompt that ends like this has already written of the first message behind its opening."""
        _, opened, begun = prompt.rpartition(self.opening)
        return begun if opened else ""


def derived_channels(template: ChatTemplate) -> ChannelDialect | None:
    """None when the template does not write answers in this form; `call` is not filled in."""
    try:
        prompt = template.render([_USER])
        opening = prompt.removeprefix(template.render([_USER], add_generation_prompt=False)).strip()
    except ChatTemplateError:
        return None
    for key in HISTORY_KEYS:
        message = {"role": "assistant", "content": _CONTENT, key: _REASON}
        try:
            text = template.render([_USER, message], add_generation_prompt=False)
        except ChatTemplateError:
            continue
        found = _channels(text[len(prompt) :], opening, key) if opening and text.startswith(prompt) else None
        if found is not None:
            return replace(found, reasons_for_content=_refuses_both(template, message))
    return None


def _channels(answer: str, opening: str, key: str) -> ChannelDialect | None:
    """From an answer with reasoning and content."""
    before, reasoned, rest = answer.partition(_REASON)
    between, has_content, _ = rest.partition(_CONTENT)
    end, opened, second = between.partition(opening)
    headers = [_HEADER.fullmatch(before), _HEADER.fullmatch(second)]
    first, last = headers
    if not (reasoned and has_content and opened and end.strip()) or first is None or last is None:
        return None
    if (first[1], first[3]) != (last[1], last[3]) or first[2] == last[2]:
        return None
    return ChannelDialect(opening, first[1], first[3], end.strip(), first[2], last[2], key)


def _refuses_both(template: ChatTemplate, message: dict[str, Any]) -> bool:
    """Whether the template, which takes a message with reasoning and content, does not do so when it has calls too."""
    call = {"id": "zqid0000a", "type": "function", "function": {"name": "zqalpha", "arguments": {}}}
    try:
        template.render([_USER, {**message, "tool_calls": [call]}], add_generation_prompt=False)
    except ChatTemplateError:
        return True
    return False


def with_calls(channels: ChannelDialect, calls: CallDialect | None, end_texts: Sequence[str]) -> ChannelDialect:
    """`calls`: how the template writes a call behind the opening; left out when that is no message with a recipient and JSON.

    Another call may follow when its opening does, unless what closes the first one is among `end_texts`, which end the answer.
    """
    if calls is None or calls.parameters is not None or len(calls.call) != 5 or (calls.call[1], calls.call[3]) != (Slot.NAME, Slot.ARGS):
        return channels
    before, _, between, _, after = calls.call
    assert isinstance(before, str) and isinstance(between, str) and isinstance(after, str)
    header = re.sub(r"\S*$", "", before), between.removesuffix(channels.body_mark)
    recipient = before[len(header[0]) :]
    _, marked, words = " ".join(header).partition(channels.mark)
    named = _MARK.sub("", words).split()
    if not (marked and recipient and named and between.endswith(channels.body_mark)) or _MARK.search(recipient):
        return channels
    closing, opened, more = (after + (calls.separator or "")).partition(channels.opening)
    end = closing.strip() if opened and not more.strip() else (after + calls.end).strip()
    is_parallel = bool(opened) and bool(end) and end not in end_texts
    return replace(channels, call=ChannelCall(named[0], recipient, " ".join(named[1:]), "" if end in end_texts else end, is_parallel))


def history_message(channels: ChannelDialect, message: dict[str, Any]) -> dict[str, Any]:
    """Content beside the reasoning of earlier calls joins it where the template takes one of them only."""
    reasoning, content = message.get("reasoning_content"), message.get("content")
    if not (channels.reasons_for_content and message.get("tool_calls") and reasoning and content):
        return message
    return {**message, "content": "", "reasoning_content": f"{reasoning}\n\n{content}"}


def rendered_answer(template: ChatTemplate, channels: ChannelDialect, end_texts: Sequence[str], reasoning: str, content: str) -> str:
    """What a model writes for an answer with reasoning, as its template shows it."""
    text = template.render(
        [_USER, {"role": "assistant", "content": content, channels.history_key: reasoning}], add_generation_prompt=False
    ).removeprefix(template.render([_USER]))
    after = text.rfind(content) + len(content)
    ends = [at for end in (*end_texts, channels.end) if end and (at := text.find(end, after)) >= 0]
    return text[: min(ends, default=len(text))]


def marks_are_special(channels: ChannelDialect, split: Sequence[str | int]) -> bool:
    """`split`: `literals` as the tokenizer splits them. Marks that a text could spell would not be marks."""
    text = "".join(part for part in split if isinstance(part, str))
    return not _MARK.search(text)
