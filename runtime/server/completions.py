"""POST /v1/completions: text or token ids to their continuation, whole or in chunks, with the token ids and the seed that was used.

prompt: "…" | ["…", …] | [1, 2] | [[1, 2], …]   or   tokens: [1, 2] | [[1, 2], …]          one chunk per token: text, token, then the end
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import msgspec

from ..tokenizer.sample_text import TextDelta, TokenLogprob
from ..tokenizer.tokenizer import Tokenizer
from .chat import finite
from .direct_stream import TextFrame
from .errors import ApiError, bad_request, invalid_value
from .fields import CompletionRequest
from .generation import Generation, Prompt, UsageBody
from .http import encode_json, event_around
from .limits import Limits
from .params import is_prompt_only


def completion_prompts(request: CompletionRequest, limits: Limits) -> tuple[list[str] | list[list[int]], str]:
    """The prompts as given, texts or token ids, and the name of their field. Raises ApiError."""
    if (request.prompt is None) == (request.tokens is None):
        what = "both 'prompt' and 'tokens' are given" if request.prompt is not None else "field 'prompt' is missing"
        raise bad_request(f"{what}; give exactly one of 'prompt' and 'tokens'", "prompt", "missing_field")
    name = "prompt" if request.prompt is not None else "tokens"
    prompts = as_prompts(request.prompt if request.prompt is not None else request.tokens, name)
    if len(prompts) > limits.max_prompts:
        raise invalid_value(f"'{name}' has {len(prompts)} prompts, at most {limits.max_prompts} are allowed", name)
    return prompts, name


def as_prompts(given: Any, name: str) -> Any:
    """One prompt or several as a list of prompts."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise invalid_value(f"'{name}' is empty, expected at least one token", name)
    kinds = {type(item) for item in given}
    if kinds == {int}:
        return [given]
    if len(kinds) > 1:
        raise bad_request(f"'{name}' mixes texts, token ids and lists", name, "wrong_type")
    return given


def encode_prompts(prompts: list[str] | list[list[int]], tokenizer: Tokenizer | None, max_prompt_len: int, name: str) -> list[list[int]]:
    """Token ids of each prompt. Raises ApiError when text cannot be encoded or is certain to be too long."""
    return [prompt if isinstance(prompt, list) else encode_text(prompt, tokenizer, max_prompt_len, name) for prompt in prompts]


def encode_text(text: str, tokenizer: Tokenizer | None, max_prompt_len: int, name: str) -> list[int]:
    """Token ids of `text`; a text too long for `max_prompt_len` tokens by its size alone is refused without tokenizing it."""
    if tokenizer is None:
        raise no_tokenizer(name)
    check_text_size(text, tokenizer, max_prompt_len, name)
    return tokenizer.encode(text)


def check_text_size(text: str, tokenizer: Tokenizer, max_prompt_len: int, name: str) -> None:
    num_bytes = len(text) * 4
    if num_bytes > 2**16 and len(text) > max_prompt_len * tokenizer.max_token_bytes:
        raise invalid_value(f"'{name}' has {len(text)} characters, which is more than {max_prompt_len} tokens can hold", name)


def check_prompt_logprobs(prompts: list[Prompt], limits: Limits) -> None:
    """Raises ApiError when the log-probabilities of the prompts would be too many for one answer."""
    asked = [(len(prompt.token_ids), prompt.params) for prompt in prompts if prompt.params.prompt_logprobs is not None]
    total = sum(num_tokens * params.n * (1 + (params.prompt_logprobs or 0)) for num_tokens, params in asked)
    if total > limits.max_prompt_logprobs:
        what = f"'echo' with 'logprobs' asks for {total} log-probabilities of prompt tokens, at most {limits.max_prompt_logprobs} are given"
        raise invalid_value(f"{what}; send fewer prompts at once, or ask for fewer 'logprobs'", "logprobs")


def no_tokenizer(name: str) -> ApiError:
    return bad_request("this model has no tokenizer; send token ids in 'tokens' to /v1/completions", name, "tokenizer_missing")


def _without_token(delta: TextDelta) -> TextDelta:
    return replace(delta, text="", token_ids=[], logprobs=[], finish_reason="length")


class CompletionAnswer:
    """Deltas to text chunks, or to one text completion."""

    def __init__(self, generation: Generation, answer_id: str, model: str, tokenizer: Tokenizer | None, request: CompletionRequest) -> None:
        self._generation = generation
        self._id, self._model, self._tokenizer = f"cmpl-{answer_id}", model, tokenizer
        self._with_logprobs = request.logprobs is not None
        self._with_prompt = bool(request.echo)
        self._created = int(time.time())
        self._is_prompt_only = is_prompt_only(request)
        self._echoed: set[int] = set()
        self._texts: dict[int, list[str]] = {}
        self._tokens: dict[int, list[int]] = {}
        self._logprobs: dict[int, list[TokenLogprob]] = {}
        self._finish_reasons: dict[int, str] = {}
        self._text_frames: dict[int, TextFrame] = {}

    def chunks(self, choice_idx: int, delta: TextDelta) -> list[dict[str, Any]]:
        """One frame per token, the text with the last of them; then the end if the delta is the last."""
        frames = []
        if self._with_prompt and choice_idx not in self._echoed:
            self._echoed.add(choice_idx)
            prompt = self._generation.prompt_text(choice_idx)
            scores = self._prompt_lists(choice_idx) if self._with_logprobs else None
            frames.append(self._chunk({"index": choice_idx, "text": prompt, "finish_reason": None, "logprobs": scores}))
        if self._is_prompt_only:
            delta = _without_token(delta)
        listed = self._listed(choice_idx, delta.logprobs) if self._with_logprobs and delta.logprobs else None
        for token_id in delta.token_ids[:-1]:
            frames.append(self._chunk({"index": choice_idx, "text": "", "token": token_id, "finish_reason": None, "logprobs": None}))
        if delta.token_ids or delta.text or listed:
            last = {"token": delta.token_ids[-1]} if delta.token_ids else {}
            frames.append(self._chunk({"index": choice_idx, "text": delta.text, **last, "finish_reason": None, "logprobs": listed}))
        if delta.finish_reason is not None:
            frames.append(self._chunk({"index": choice_idx, "text": "", "finish_reason": delta.finish_reason, "logprobs": None}))
        return frames

    def text_frame(self, choice_idx: int) -> TextFrame:
        """See `direct_stream.Framed`."""
        frame = self._text_frames.get(choice_idx)
        if frame is None:
            text, token = f"text of {self._id}", f"token of {self._id}"
            chunk = self._chunk({"index": choice_idx, "text": text, "token": token, "finish_reason": None, "logprobs": None})
            before, rest = event_around(text, chunk)
            between, _, after = rest.partition(encode_json(token))
            frame = self._text_frames[choice_idx] = TextFrame(before, after, between)
        return frame

    def count_direct(self, choice_idx: int, num_tokens: int) -> None:
        """See `direct_stream.Framed`: no reasoning is told apart."""

    def usage_chunk(self) -> dict[str, Any]:
        return {**self._chunk({}), "choices": [], "usage": self._usage()}

    def add(self, choice_idx: int, delta: TextDelta) -> None:
        """Collects a delta for `whole`."""
        if self._is_prompt_only:
            delta = _without_token(delta)
        self._texts.setdefault(choice_idx, []).append(delta.text)
        self._tokens.setdefault(choice_idx, []).extend(delta.token_ids)
        self._logprobs.setdefault(choice_idx, []).extend(delta.logprobs)
        if delta.finish_reason is not None:
            self._finish_reasons[choice_idx] = delta.finish_reason

    def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": i,
                "text": self._prompt_text(i) + "".join(self._texts[i]),
                "tokens": self._tokens[i],
                "seed": self._generation.seed(i),
                "finish_reason": reason,
                "logprobs": self._whole_lists(i) if self._with_logprobs else None,
            }
            for i, reason in sorted(self._finish_reasons.items())
        ]
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": choices,
            "usage": self._usage(),
        }

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {"id": self._id, "object": "text_completion", "created": self._created, "model": self._model, "choices": [choice]}

    def _usage(self) -> UsageBody:
        usage = self._generation.usage
        return (msgspec.structs.replace(usage, num_completion_tokens=0) if self._is_prompt_only else usage).as_json()

    def _prompt_text(self, choice_idx: int) -> str:
        return self._generation.prompt_text(choice_idx) if self._with_prompt else ""

    def _whole_lists(self, choice_idx: int) -> dict[str, Any]:
        answer = self._listed(choice_idx, self._logprobs[choice_idx])
        if not self._with_prompt:
            return answer
        return {name: values + answer[name] for name, values in self._prompt_lists(choice_idx).items()}

    def _prompt_lists(self, choice_idx: int) -> dict[str, Any]:
        """Nothing comes before the first token of the prompt that could make it likely."""
        first_id = self._generation.prompts[choice_idx // self._generation.num_samples].token_ids[0]
        first = {"tokens": [self._text(first_id)], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [0]}
        others = self._lists(self._generation.prompt_logprobs(choice_idx), 0)
        return {name: values + others[name] for name, values in first.items()}

    def _listed(self, choice_idx: int, entries: list[TokenLogprob]) -> dict[str, Any]:
        return self._lists(entries, len(self._prompt_text(choice_idx)))

    def _lists(self, entries: list[TokenLogprob], num_chars_before: int) -> dict[str, Any]:
        """OpenAI's four parallel lists."""
        return {
            "tokens": [self._text(entry.token_id) for entry in entries],
            "token_logprobs": [finite(entry.logprob) for entry in entries],
            "top_logprobs": [self._top(entry) for entry in entries],
            "text_offset": [num_chars_before + entry.text_offset for entry in entries],
        }

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """Best first; of tokens that are written alike (parts of characters) the best one stays."""
        top: dict[str, float] = {}
        for token_id, logprob in entry.top:
            top.setdefault(self._text(token_id), finite(logprob))
        return top

    def _text(self, token_id: int) -> str:
        return str(token_id) if self._tokenizer is None else self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")
