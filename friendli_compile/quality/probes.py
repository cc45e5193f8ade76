"""The token sequences on which a quantized model is compared with its reference.

    text     the probe text shipped with the project (probe_text/*.txt: prose, code, dialogue, lists, numbers, languages), or --probe FILE
    samples  drawn from the reference itself, at temperature 1 from a seed: what the model will really meet while it answers

The text is cut into windows of WINDOW_LEN tokens (fewer where few tokens are wanted, so that every kind of text has its share), each with
the tokenizer's own beginning (BOS), and windows are taken from the kinds of text in turn until the budget of tokens is used. A model
without a tokenizer, or one whose tokenizer makes nothing of the text, gets samples only. With --probe FILE that file is all that counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from friendli_runtime.tokenizer.tokenizer import Tokenizer

from ..errors import FmoError
from .figures import MIN_BLOCKS, log_softmax, num_blocks_of
from .packed_run import PackedRun, Runnable

PROBE_TEXT = Path(__file__).parent / "probe_text"
WINDOW_LEN, MIN_WINDOW_LEN = 256, 64  # tokens
SAMPLE_LEN = 128  # tokens
MAX_SAMPLED_SEQS = 64
SAMPLE_SHARE = 0.25  # of the tokens, where there is text too
MIN_TOKENS, MAX_TOKENS = 512, 8192
TOKEN_PARAMS = 1 << 40  # tokens × parameters that one comparison may spend: seconds for 10⁸ parameters, about a minute from 10⁹ on
TEXT, SAMPLES = "text", "samples"


@dataclass(frozen=True)
class ProbeSet:
    """`sequences[i]` [length] i32 is of the part `parts[i]` (text or samples)."""

    sequences: tuple[np.ndarray, ...]
    parts: tuple[str, ...]

    @property
    def num_scored(self) -> int:
        """Positions that have a next token."""
        return sum(len(tokens) - 1 for tokens in self.sequences)

    def __add__(self, other: ProbeSet) -> ProbeSet:
        return ProbeSet(self.sequences + other.sequences, self.parts + other.parts)


def default_num_tokens(num_params: int) -> int:
    """Tokens to compare on: fewer for larger models, so that the time stays bounded."""
    return int(min(MAX_TOKENS, max(MIN_TOKENS, TOKEN_PARAMS // max(num_params, 1))))


def read_probe_file(path: Path) -> str:
    """The text of --probe FILE. Raises FmoError where it is missing, empty, or not UTF-8 text."""
    hint = "give a file of plain UTF-8 text, a few kilobytes or more, like the prompts that you will serve"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FmoError(f"the probe file cannot be read: {error.strerror}", where=str(path), hint=hint) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"the probe file is not text: byte {error.start} is 0x{data[error.start]:02x}, which UTF-8 does not allow there"
        raise FmoError(what, where=str(path), hint=hint) from None
    if "\0" in text:
        raise FmoError(f"the probe file is not text: character {text.index(chr(0))} is NUL", where=str(path), hint=hint)
    if not text.strip():
        raise FmoError(f"the probe file holds no text ({len(data)} bytes)", where=str(path), hint=hint)
    return text


def file_probes(path: Path, tokenizer: Tokenizer | None, vocab_size: int, max_context_len: int, num_tokens: int) -> ProbeSet:
    """Windows of --probe FILE. Raises FmoError where the tokenizer is missing or makes too little of it."""
    text = read_probe_file(path)
    if tokenizer is None:
        what = "the model has no tokenizer.json, so the probe file cannot be read"
        raise FmoError(what, where=str(path), hint="leave --probe away: the model is compared on samples that it draws itself")
    probes = _text_probes([text], tokenizer, vocab_size, max_context_len, num_tokens)
    num_blocks = num_blocks_of([len(tokens) - 1 for tokens in probes.sequences])
    if num_blocks < MIN_BLOCKS:
        what = (
            f"the probe file gives {probes.num_scored} tokens to compare, in {num_blocks} blocks; {MIN_BLOCKS} are needed for an interval"
        )
        raise FmoError(what, where=str(path), hint="give a longer text, or leave --probe away for the one that is shipped")
    return probes


def shipped_probes(tokenizer: Tokenizer | None, vocab_size: int, max_context_len: int, num_tokens: int) -> ProbeSet:
    """Windows of the probe text of the project; none where the tokenizer is missing or does not know the text."""
    if tokenizer is None:
        return ProbeSet((), ())
    texts = [path.read_text(encoding="utf-8") for path in sorted(PROBE_TEXT.glob("*.txt"))]
    return _text_probes(texts, tokenizer, vocab_size, max_context_len, num_tokens)


@dataclass(frozen=True)
class Vocabulary:
    """What tokens a model may get."""

    size: int
    bos_token_id: int | None
    special_ids: frozenset[int]

    def starts(self, seed: int = 0) -> list[int]:
        """Tokens that a sample may begin with: BOS, or ordinary ones."""
        if self.bos_token_id is not None:
            return [self.bos_token_id]
        ordinary = [token for token in range(self.size) if token not in self.special_ids] or list(range(self.size))
        return [int(token) for token in np.random.default_rng(seed).choice(ordinary, MAX_SAMPLED_SEQS)]


def make_probes(
    model: Runnable, tokenizer: Tokenizer | None, vocabulary: Vocabulary, max_context_len: int, num_tokens: int, file: Path | None = None
) -> ProbeSet:
    """`num_tokens` positions, or a few more: of `file` where one is given, else shipped text and samples that `model` draws."""
    if file is not None:
        return file_probes(file, tokenizer, vocabulary.size, max_context_len, num_tokens)
    text = shipped_probes(tokenizer, vocabulary.size, max_context_len, round(num_tokens * (1 - SAMPLE_SHARE)))
    return text + sampled_probes(model, vocabulary.starts(), max_context_len, num_tokens - text.num_scored)


def sampled_probes(
    model: Runnable, starts: Sequence[int], max_context_len: int, num_tokens: int, seed: int = 0, sample_len: int = SAMPLE_LEN
) -> ProbeSet:
    """Sequences that the model draws itself, each after one of the `starts` (BOS, or ordinary tokens): `num_tokens` or a few more."""
    length = min(sample_len, max_context_len)
    num_seqs = max(1, -(-num_tokens // max(length - 1, 1)))
    sequences: list[np.ndarray] = []
    rng = np.random.default_rng(seed)
    while len(sequences) < num_seqs:
        count = min(MAX_SAMPLED_SEQS, num_seqs - len(sequences))
        first = np.array([starts[(len(sequences) + i) % len(starts)] for i in range(count)], np.int32)
        sequences += list(_draw(model, first, length, rng))
    return ProbeSet(tuple(sequences), (SAMPLES,) * len(sequences))


def _draw(model: Runnable, first: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """[num_seqs, length] i32: temperature 1, from the whole distribution; what ends an answer does not end a sample."""
    run = PackedRun(model, length, num_seqs=len(first))
    tokens = np.empty((len(first), length), np.int32)
    tokens[:, 0] = first
    for position in range(length - 1):
        cumulative = np.exp(log_softmax(run.step(tokens[:, position], position))).cumsum(axis=1)
        draws = rng.random((len(first), 1)) * cumulative[:, -1:]
        tokens[:, position + 1] = np.minimum((cumulative <= draws).sum(axis=1), cumulative.shape[1] - 1)
    return tokens


def _text_probes(texts: Sequence[str], tokenizer: Tokenizer, vocab_size: int, max_context_len: int, num_tokens: int) -> ProbeSet:
    """Windows of the texts in turn, until they have `num_tokens` positions to compare."""
    beginning = _beginning(tokenizer)
    wanted_len = min(WINDOW_LEN, max(MIN_WINDOW_LEN, num_tokens // len(texts)))
    length = min(wanted_len, max_context_len) - len(beginning)
    cut = [_windows(tokenizer.encode(text, add_special_tokens=False), length, vocab_size) for text in texts]
    chosen: list[np.ndarray] = []
    missing = num_tokens
    for window in (window for row in zip_longest(*cut) for window in row if window is not None):
        if missing <= 0:
            break
        chosen.append(np.array([*beginning, *window], np.int32))
        missing -= len(chosen[-1]) - 1
    return ProbeSet(tuple(chosen), (TEXT,) * len(chosen))


def _windows(ids: Sequence[int], length: int, vocab_size: int) -> list[list[int]]:
    """Pieces of `length` tokens (the last may be shorter, but not a lone token) whose ids the model has."""
    if length < 2:
        return []
    pieces = [list(ids[start : start + length]) for start in range(0, len(ids), length)]
    return [piece for piece in pieces if len(piece) > 1 and max(piece) < vocab_size]


def _beginning(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before a text."""
    plain, whole = (tokenizer.encode("a", add_special_tokens=add) for add in (False, True))
    for start in range(len(whole) - len(plain) + 1):
        if plain and whole[start : start + len(plain)] == plain:
            return whole[:start]
    return []
