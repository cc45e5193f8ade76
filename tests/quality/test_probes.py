"""Probe text is text of several kinds; samples follow the model's own distribution; a bad probe file is refused in three parts."""

from pathlib import Path

import numpy as np
import pytest
from friendli_runtime.tokenizer.tokenizer import Tokenizer
from models.scripted import BOS, VOCAB_SIZE, save_tokenizer

from friendli_compile.errors import FmoError
from friendli_compile.quality.figures import log_softmax
from friendli_compile.quality.packed_run import PackedRun, Runnable
from friendli_compile.quality.probes import (
    MAX_TOKENS,
    MIN_TOKENS,
    PROBE_TEXT,
    SAMPLE_LEN,
    WINDOW_LEN,
    default_num_tokens,
    file_probes,
    sampled_probes,
    shipped_probes,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return Tokenizer.load(folder)


def test_the_shipped_text_has_several_kinds_and_some_twenty_kilobytes() -> None:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in PROBE_TEXT.glob("*.txt")}
    assert {"prose", "code", "dialogue", "lists", "numbers", "languages"} <= set(texts)
    assert 18_000 <= sum(len(text.encode()) for text in texts.values()) <= 40_000
    assert sum(character > "\u0370" for character in texts["languages"]) > 500  # not only Latin letters


def test_every_kind_of_text_is_used_also_when_few_tokens_are_wanted(tokenizer: Tokenizer) -> None:
    texts = [path.read_text(encoding="utf-8") for path in sorted(PROBE_TEXT.glob("*.txt"))]
    probes = shipped_probes(tokenizer, VOCAB_SIZE, 4096, num_tokens=384)
    starts = [tokenizer.decode(window[1:31].tolist()) for window in probes.sequences[: len(texts)]]
    assert [text.startswith(start[:20]) for text, start in zip(texts, starts, strict=True)] == [True] * len(texts)


def test_windows_begin_as_the_tokenizer_begins_a_text_and_fit_the_context(tokenizer: Tokenizer) -> None:
    bos = tokenizer.encode(BOS, add_special_tokens=False)
    for max_context_len in (4096, 100, 3):
        probes = shipped_probes(tokenizer, VOCAB_SIZE, max_context_len, num_tokens=2000)
        assert probes.num_scored >= 2000 and set(probes.parts) == {"text"}
        assert all(1 < len(window) <= min(WINDOW_LEN, max_context_len) for window in probes.sequences)
        assert all(window[: len(bos)].tolist() == bos for window in probes.sequences)


def test_tokens_that_the_model_does_not_have_are_not_probed(tokenizer: Tokenizer) -> None:
    whole, limited = (shipped_probes(tokenizer, size, 4096, num_tokens=20_000) for size in (VOCAB_SIZE, 240))  # 240: few letters but Latin
    assert 0 < len(limited.sequences) < len(whole.sequences)
    assert max(window.max() for window in limited.sequences) < 240 <= max(window.max() for window in whole.sequences)


def test_larger_models_are_compared_on_fewer_tokens_and_never_on_too_few() -> None:
    counts = [default_num_tokens(num_params) for num_params in (10**6, 10**9, 10**10, 10**12)]
    assert counts[0] == MAX_TOKENS and counts[-1] == MIN_TOKENS and counts == sorted(counts, reverse=True)


def test_samples_are_the_same_for_the_same_seed_only(reference: Runnable) -> None:
    first, again, other = (sampled_probes(reference, [1], 512, 100, seed=seed, sample_len=33) for seed in (0, 0, 1))
    assert first.num_scored >= 100 and set(first.parts) == {"samples"} and len(first.sequences[0]) == 33
    assert all((a == b).all() for a, b in zip(first.sequences, again.sequences, strict=True))
    assert any((a != b).any() for a, b in zip(first.sequences, other.sequences, strict=True))


def test_samples_follow_the_distribution_of_the_model(reference: Runnable) -> None:
    """The mean surprise of sampled tokens is the mean entropy of the distributions that they were drawn from."""
    probes = sampled_probes(reference, [1, 2, 3], 512, 3000, sample_len=65)
    run = PackedRun(reference, SAMPLE_LEN)
    surprises, entropies = [], []
    for tokens in probes.sequences:
        log_p = np.concatenate([log_softmax(logits) for _, logits in run.pieces(tokens)])[:-1]
        surprises.append(-log_p[np.arange(len(log_p)), tokens[1:]])
        entropies.append(-(np.exp(log_p) * log_p).sum(axis=1))
    surprise, entropy = np.concatenate(surprises), np.concatenate(entropies)
    assert abs((surprise - entropy).mean()) < 4 * (surprise - entropy).std() / np.sqrt(len(surprise))
    assert {int(tokens[0]) for tokens in probes.sequences} == {1, 2, 3}


@pytest.mark.parametrize(
    ("data", "what"),
    [(b"", "no text"), (b" \n\t ", "no text"), (b"caf\xe9", "byte 3 is 0xe9"), (b"a\0b", "NUL"), (b"\x7fELF\x02\x01\x01\0", "NUL")],
)
def test_a_file_that_is_empty_or_not_text_is_refused(tmp_path: Path, tokenizer: Tokenizer, data: bytes, what: str) -> None:
    path = tmp_path / "probe.txt"
    path.write_bytes(data)
    with pytest.raises(FmoError, match=what) as refused:
        file_probes(path, tokenizer, VOCAB_SIZE, 4096, 2000)
    assert str(path) in refused.value.where and refused.value.hint


def test_a_missing_file_a_folder_a_short_text_and_a_missing_tokenizer_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Too short.")
    for path, own_tokenizer, what in (
        (tmp_path / "missing.txt", tokenizer, "No such file"),
        (tmp_path, tokenizer, "Is a directory"),
        (short, tokenizer, r"\d+ tokens to compare, in 1 blocks"),
        (short, None, "no tokenizer.json"),
    ):
        with pytest.raises(FmoError, match=what) as refused:
            file_probes(path, own_tokenizer, VOCAB_SIZE, 4096, 2000)
        assert str(path) in refused.value.where and refused.value.hint


def test_a_file_is_read_up_to_the_budget_of_tokens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "probe.txt"
    path.write_text("\ufeffEvery morning the baker opens the same door. " * 200, encoding="utf-8")
    probes = file_probes(path, tokenizer, VOCAB_SIZE, 4096, 2000)
    assert 2000 <= probes.num_scored < 2000 + WINDOW_LEN
    assert tokenizer.decode(probes.sequences[0][1:].tolist()).startswith("Every morning")
