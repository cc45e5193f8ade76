"""Tokens of a sample to text, token ids and log-probabilities in step."""

import pytest
from friendli_runtime.engine import TokenOutput
from friendli_runtime.sampling import SamplingParams
from friendli_runtime.tokenizer.sample_text import SampleText, TextDelta
from friendli_runtime.tokenizer.tokenizer import Tokenizer

from .tokenizers_made_here import backend_json

TOKENIZER = Tokenizer.from_json(backend_json("byte_level"), {})
EOS = TOKENIZER.backend.token_to_id("<|end|>")


def run(text: str, end: str = "stop", end_token: int | None = EOS, **params: object) -> list[TextDelta]:
    sample = SampleText(TOKENIZER, [5], SamplingParams(**params), (EOS,))  # type: ignore[arg-type]
    ids = [*TOKENIZER.encode(text), *([end_token] if end_token is not None else [])]
    outputs = [TokenOutput(0, token_id, -0.5, [], None, None, 0) for token_id in ids]
    outputs[-1].finish_reason = end
    return [delta for output in outputs if (delta := sample.push(output)) is not None]


def joined(deltas: list[TextDelta]) -> tuple[str, list[int], str | None]:
    return "".join(delta.text for delta in deltas), [i for delta in deltas for i in delta.token_ids], deltas[-1].finish_reason


def test_the_end_token_is_counted_but_not_given() -> None:
    deltas = run("hello world")
    assert joined(deltas) == ("hello world", TOKENIZER.encode("hello world"), "stop")
    assert sum(delta.num_tokens for delta in deltas) == 3


def test_a_token_that_ends_by_length_is_given_even_if_it_is_eos() -> None:
    assert joined(run("hello", end="length"))[1] == [*TOKENIZER.encode("hello"), EOS]


def test_an_unfinished_character_at_the_end_is_shown_as_such() -> None:
    sample = SampleText(TOKENIZER, [5], SamplingParams(), (EOS,))
    first = TOKENIZER.encode("☃")[0]
    assert sample.push(TokenOutput(0, first, None, None, "length", None, 0)).text == "\ufffd"  # type: ignore[union-attr]


@pytest.mark.parametrize("sequence", [" hello world", " world"])
def test_a_stop_sequence_is_no_part_of_the_answer(sequence: str) -> None:
    ids = tuple(TOKENIZER.encode(sequence))
    deltas = run("you hello world", end_token=None, stop_token_sequences=(ids, (ids[-1], 7, 8)))
    text, token_ids, _ = joined(deltas)
    assert text == "you hello world".removesuffix(TOKENIZER.decode(ids))
    assert token_ids == TOKENIZER.encode("you hello world")[: -len(ids)]


def test_a_stop_string_ends_the_sample_and_what_follows_is_ignored() -> None:
    deltas = run("hello stop and more", stop=("stop",))
    assert joined(deltas)[::2] == ("hello ", "stop")
    assert deltas[-1].stopped_by_text and deltas[-1].finish_reason == "stop"


def test_a_stop_string_within_min_tokens_does_not_end_the_sample() -> None:
    num_first = len(TOKENIZER.encode("stop hello"))
    assert joined(run("stop hello stop now", stop=("stop",), min_tokens=num_first))[0] == "stop hello "


def test_logprobs_come_with_the_text_they_belong_to() -> None:
    for delta in run("hello wor", stop=(" world!",), logprobs=0):
        assert not delta.logprobs or delta.text
    deltas = run("hello world!", stop=(" world!",), logprobs=0)
    entries = [entry for delta in deltas for entry in delta.logprobs]
    assert [TOKENIZER.decode([entry.token_id]) for entry in entries] == ["hello"]


def test_without_a_tokenizer_there_are_token_ids_and_no_text() -> None:
    sample = SampleText(None, [5], SamplingParams(), (EOS,))
    delta = sample.push(TokenOutput(0, 7, None, None, None, None, 0))
    assert delta is not None and (delta.text, delta.token_ids) == ("", [7])
