"""The streaming detokenizers against `decode` of the whole list."""

import random

import pytest
from friendli_runtime.tokenizer.detokenizer import TableDetokenizer, WindowDetokenizer
from friendli_runtime.tokenizer.tokenizer import Tokenizer

from .tokenizers_made_here import MAKERS, backend_json

TEXTS = ["hello world", "  two  spaces ", "naïve 你好 🙂🙃 café", "def main(self):\n\treturn 'x'", "a", " ", "🙂"]


def load(name: str, **options: bool) -> Tokenizer:
    return Tokenizer.from_json(backend_json(name), {}, **options)


def stream(tokenizer: Tokenizer, prompt_ids: list[int], ids: list[int]) -> list[str]:
    detokenizer = tokenizer.detokenizer(prompt_ids)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.finish()]


@pytest.mark.parametrize("name", MAKERS)
def test_decoders_of_language_models_work_by_table_and_others_by_window(name: str) -> None:
    kind = WindowDetokenizer if name == "word_piece" else TableDetokenizer
    assert isinstance(load(name).detokenizer([]), kind)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("text", TEXTS)
def test_streamed_text_equals_decode_of_all_tokens(name: str, text: str) -> None:
    tokenizer = load(name)
    ids = tokenizer.encode(text)
    assert "".join(stream(tokenizer, [], ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "word_piece"])
def test_a_continuation_is_what_decode_adds_to_the_decoded_prompt(name: str) -> None:
    tokenizer = load(name)
    rng = random.Random(7)
    for _ in range(200):
        ids = tokenizer.encode(" ".join(rng.choices(["hello", "world", "main(self)", "café", "fox ", "\n"], k=6)), add_special_tokens=False)
        cut = rng.randrange(1, len(ids))
        decoded = tokenizer.decode(ids[:cut])
        if "\ufffd" in decoded:
            continue
        assert decoded + "".join(stream(tokenizer, ids[:cut], ids[cut:])) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", MAKERS)
def test_random_tokens_never_give_a_broken_character_that_later_tokens_mend(name: str) -> None:
    tokenizer = load(name)
    rng = random.Random(3)
    for _ in range(100):
        ids = [rng.randrange(tokenizer.backend.num_tokens + 2) for _ in range(12)]
        whole = "".join(stream(tokenizer, [], ids))
        for length in range(len(ids)):
            sent = "".join(stream(tokenizer, [], ids[:length])[:-1])
            assert whole.startswith(sent)


def test_random_bytes_decode_as_the_library_decodes_them() -> None:
    tokenizer = load("byte_level")
    rng = random.Random(5)
    for _ in range(300):
        ids = [rng.randrange(tokenizer.backend.num_tokens) for _ in range(10)]
        assert "".join(stream(tokenizer, [], ids)) == tokenizer.decode(ids)


def test_no_text_is_given_before_a_character_is_complete() -> None:
    tokenizer = load("llama_bpe")
    ids = [tokenizer.backend.token_to_id(f"<0x{byte:02X}>") for byte in "🙂".encode()]
    assert stream(tokenizer, [5], ids) == ["", "", "", "🙂", ""]


def test_a_leading_space_survives_after_a_prompt_but_not_at_the_start() -> None:
    tokenizer = load("llama_bpe")
    space, w = (tokenizer.backend.token_to_id(token) for token in ("▁", "w"))
    assert "".join(stream(tokenizer, tokenizer.encode("hello"), [space, w])) == " w"
    bos = tokenizer.backend.token_to_id("<s>")
    assert "".join(stream(tokenizer, [bos], tokenizer.encode("hello", add_special_tokens=False))) == "hello"


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_are_shown_exactly_when_not_skipped(skip: bool) -> None:
    tokenizer = load("byte_level", skip_special_tokens=skip)
    ids = [*tokenizer.encode("hello"), tokenizer.backend.token_to_id("<|end|>")]
    expected = "hello" if skip else "hello<|end|>"
    assert "".join(stream(tokenizer, [], ids)) == tokenizer.decode(ids) == expected


def test_token_bytes_of_a_split_character_join_to_the_character() -> None:
    tokenizer = load("byte_level")
    ids = tokenizer.encode("☃")
    assert len(ids) > 1
    assert b"".join(map(tokenizer.token_bytes, ids)) == "☃".encode()
