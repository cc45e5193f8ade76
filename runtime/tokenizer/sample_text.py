"""From the tokens of one sample to what its reader gets: text, token ids and log-probabilities, in step with each other.

    TokenOutput ─▶ end tokens hidden ─▶ detokenizer ─▶ stop strings ─▶ TextDelta(text, tokens, finish_reason)

Text is held back while it may be half a character or the beginning of a stop string; the log-probabilities of a token are given out
together with the text that it starts, so they do not tell what the text hides. Token ids are given out at once, except those that may begin
a stop sequence. Used by the server and by `LLM`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..engine import PromptScores, TokenOutput
from ..sampling import SamplingParams
from .detokenizer import Detokenizer
from .stop_strings import StopStrings
from .tokenizer import Tokenizer


@dataclass(slots=True)
class TokenLogprob:
    """One token. `text_offset`: characters of the sample's text before it, or of the prompt's. `top`: (token id, log-probability), best
    first."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]
    text_offset: int


@dataclass(slots=True)
class TextDelta:
    """What one engine output adds to a sample. `num_tokens` counts sampled tokens, an end-of-sequence token included.

    `stopped_by_text`: the engine does not know yet that the sample has ended. `stop_string`: the one that ended it, if one did.
    """

    sample_idx: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob]
    num_tokens: int
    num_cached_tokens: int
    finish_reason: str | None
    error: str | None = None
    stopped_by_text: bool = False
    stop_string: str | None = None


def prompt_logprobs(tokenizer: Tokenizer | None, prompt_ids: Sequence[int], scores: PromptScores) -> list[TokenLogprob]:
    """Those of the tokens from the second on."""
    detokenizer = tokenizer.detokenizer(()) if tokenizer is not None else None
    listed: list[TokenLogprob] = []
    num_chars = 0
    for idx, token_id in enumerate(prompt_ids):
        if idx > 0:
            logprob, top = scores[idx - 1]
            listed.append(TokenLogprob(token_id, logprob, top, num_chars))
        num_chars += len(detokenizer.push(token_id)) if detokenizer is not None else 0
    return listed


_NO_STOPS = StopStrings(())


class SampleText:
    """The text of one sample. After the output with a `finish_reason` (or `stopped_by_text`), further outputs are ignored.

    `accepts`: of a constrained sample, whether a text is a whole answer; a stop string ends the sample only after one.
    `shown_ids`: special tokens that are part of the text.
    """

    __slots__ = (
        "_detokenizer",
        "_end_ids",
        "_end_sequences",
        "_held_tokens",
        "_is_plain",
        "_num_decoded_chars",
        "_num_given_chars",
        "_num_tokens_before_stops",
        "_stops",
        "_waiting",
        "finished",
    )

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        eos_ids: Sequence[int],
        accepts: Callable[[str], bool] | None = None,
        shown_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._detokenizer: Detokenizer | None = None
        if tokenizer is not None:
            self._detokenizer = tokenizer.detokenizer(prompt_ids, is_exact=accepts is not None, shown_ids=shown_ids)
        self._stops = StopStrings(params.stop, accepts) if params.stop else _NO_STOPS
        self._end_ids = params.stop_token_ids if params.ignore_eos else (*params.stop_token_ids, *eos_ids)
        sequences = params.stop_token_sequences
        self._end_sequences = sorted(sequences, key=len, reverse=True) if sequences else ()
        self._held_tokens: list[TokenOutput] = []
        self._num_tokens_before_stops = params.min_tokens
        self._num_decoded_chars = 0
        self._num_given_chars = 0
        self._is_plain = not params.stop and not sequences and params.logprobs is None
        self._waiting: deque[TokenLogprob] | None = None if self._is_plain else deque()
        self.finished = False

    @property
    def is_whole(self) -> bool:
        """Whether the next token, if it is whole characters and not the last one, gives its own text and nothing else."""
        return self._is_plain and not self.finished and self._detokenizer is not None and self._detokenizer.is_whole

    def push(self, output: TokenOutput) -> TextDelta | None:
        """The delta of one engine output; None once the sample is over."""
        if self.finished:
            return None
        token_id = output.token_id
        if self._is_plain and token_id is not None:
            if output.finish_reason is not None:
                return self._last_plain(output, token_id)
            text = self._detokenizer.push(token_id) if self._detokenizer is not None else ""
            return TextDelta(output.sample_idx, text, [token_id], [], 1, output.num_cached_tokens, None)
        delta = TextDelta(
            output.sample_idx, "", [], [], int(output.token_id is not None), output.num_cached_tokens, output.finish_reason, output.error
        )
        for token in self._released(output):
            assert token.token_id is not None
            delta.token_ids.append(token.token_id)
            delta.text += self._add_token(token.token_id, token)
            self._num_tokens_before_stops -= 1
        if self._stops.stopped:
            delta.finish_reason, delta.stopped_by_text = "stop", output.finish_reason is None
        elif output.finish_reason is not None:
            delta.text += self._flush()
            delta.stopped_by_text = False
            if self._stops.stopped:
                delta.finish_reason = "stop"
        delta.stop_string = self._stops.matched
        self.finished = delta.finish_reason is not None
        self._num_given_chars += len(delta.text)
        delta.logprobs = self._take_logprobs()
        return delta

    def _last_plain(self, output: TokenOutput, token_id: int) -> TextDelta:
        """`push` of the last token where nothing is held back but parts of a character."""
        reason, detokenizer = output.finish_reason, self._detokenizer
        self.finished = True
        is_hidden = reason == "stop" and token_id in self._end_ids
        text = ""
        if detokenizer is not None:
            text = detokenizer.finish() if is_hidden else detokenizer.push(token_id) + detokenizer.finish()
        return TextDelta(output.sample_idx, text, [] if is_hidden else [token_id], [], 1, output.num_cached_tokens, reason, output.error)

    def _released(self, output: TokenOutput) -> list[TokenOutput]:
        """The tokens that are now certain to be part of the answer: not an end token, not part of a stop sequence."""
        if output.finish_reason == "stop" and output.token_id in self._end_ids:
            released, self._held_tokens = self._held_tokens, []
            return released
        if not self._end_sequences:
            return [output] if output.token_id is not None else []
        held = self._held_tokens if output.token_id is None else [*self._held_tokens, output]
        num_kept = 0 if output.finish_reason else self._partial_len(held)
        num_dropped = self._ended_len(held) if output.finish_reason == "stop" else 0
        num_released = len(held) - max(num_kept, num_dropped)
        self._held_tokens = held[num_released:] if num_kept else []
        return held[:num_released]

    def _partial_len(self, held: list[TokenOutput]) -> int:
        """Tokens at the end of `held` that may be the beginning of a stop sequence."""
        ids = tuple(token.token_id for token in held)
        longest = max((len(sequence) - 1 for sequence in self._end_sequences), default=0)
        for num in range(min(longest, len(ids)), 0, -1):
            if any(len(sequence) > num and sequence[:num] == ids[len(ids) - num :] for sequence in self._end_sequences):
                return num
        return 0

    def _ended_len(self, held: list[TokenOutput]) -> int:
        """Length of the stop sequence at the end of `held`, 0 without one."""
        ids = tuple(token.token_id for token in held)
        return next((len(sequence) for sequence in self._end_sequences if ids[len(ids) - len(sequence) :] == sequence), 0)

    def _add_token(self, token_id: int, output: TokenOutput) -> str:
        if output.logprob is not None and self._waiting is not None:
            self._waiting.append(TokenLogprob(token_id, output.logprob, output.top_logprobs or [], self._num_decoded_chars))
        return self._decoded(self._detokenizer.push(token_id) if self._detokenizer is not None else "")

    def _flush(self) -> str:
        """What detokenizer and stop strings still hold, at the end of a sample."""
        text = self._decoded(self._detokenizer.finish() if self._detokenizer is not None else "")
        return text if self._stops.stopped else text + self._stops.finish()

    def _decoded(self, text: str) -> str:
        """What may be shown of newly decoded text. Stop strings are looked for in the text after `min_tokens` tokens."""
        self._num_decoded_chars += len(text)
        return text if self._num_tokens_before_stops > 0 else self._stops.push(text)

    def _take_logprobs(self) -> list[TokenLogprob]:
        """The waiting log-probabilities of tokens whose text begins in what was given out; the rest is dropped at the end."""
        taken: list[TokenLogprob] = []
        while self._waiting and (self._waiting[0].text_offset < self._num_given_chars or self._none_held()):
            taken.append(self._waiting.popleft())
        return taken

    def _none_held(self) -> bool:
        """Whether all decoded text was given out, so that a token without text of its own hides nothing."""
        return self._num_given_chars == self._num_decoded_chars
