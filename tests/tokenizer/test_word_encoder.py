"""A text that is cut at words has the tokens of the whole text."""

import json
import random
from typing import Any

import pytest
from friendli_runtime.tokenizer.word_encoder import _RULES, MAX_PIECE_CHARS, MAX_PIECES, WordEncoder, word_encoder
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE

PIECES = [
    "the",
    " cat",
    " The",
    "'s",
    "'LL x",
    " a",
    "  ",
    " ",
    "\n",
    "\t",
    "\r\n",
    " 123",
    "4567",
    ".",
    ", ",
    " (",
    "…",
    "é",
    " e\u0301",
    "日本",
    "\u3000",
    "\u2003",
    "\u200a ",
    "\u200b ",
    "\u2028",
    "\u202f ",
    "\u205f",
    "\u1680 ",
    "— ",
    "Å ngström",
]
PIECES += [
    "🙂",
    "\u00a0",
    "\u0085",
    "\x1c",
    "\x00",
    " \u0301",
    "A",
    "z ",
    "<|end|>",
    " <|end|>x",
    "tool",
    "-",
    "_",
    "!b",
    "~ c",
    "\u200d",
    "'t d",
]


def made(pattern: str | None, **options: Any) -> Backend:
    """A byte-level tokenizer whose words are cut by `pattern`, None: by ByteLevel itself."""
    backend = Backend(BPE())
    backend.normalizer = options.get("normalizer")
    if pattern is None:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=options.get("add_prefix_space", False))
    else:
        from tokenizers import Regex

        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(["the cat, The dog's tool and\n\n  a 12345 e\u0301 … !b ~ c 't d" * 3], trainer)
    return backend


def encoder_of(backend: Backend) -> WordEncoder:
    encoder = word_encoder(backend)
    assert encoder is not None
    return encoder


@pytest.mark.parametrize("pattern", [None, *sorted(_RULES)])
@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
def test_random_texts_have_the_tokens_of_the_whole(pattern: str | None, normalizer: Any) -> None:
    backend = made(pattern, normalizer=normalizer)
    backend.add_tokens(["tool", "x_a"])
    encoder = encoder_of(backend)
    rng = random.Random(5)
    for _ in range(3000):
        text = "".join(rng.choices(PIECES, k=rng.randrange(1, 12)))
        assert encoder.encode(text) == backend.encode(text, add_special_tokens=False).ids, repr(text)


def test_tokenizers_whose_words_may_depend_on_each_other_have_no_cache() -> None:
    assert word_encoder(made(None, add_prefix_space=True)) is None
    assert word_encoder(made(None, normalizer=normalizers.Lowercase())) is None
    assert word_encoder(made(r"\w+ \w+|\s+|.")) is None
    for options in ({"lstrip": True}, {"rstrip": True}, {"single_word": True}):
        from tokenizers import AddedToken

        backend = made(None)
        backend.add_tokens([AddedToken("tool", **options)])
        assert word_encoder(backend) is None
    backend = made(None)
    backend.add_tokens(["new york"])
    assert word_encoder(backend) is None
    parts = json.loads(made(None).to_str())
    parts["model"]["dropout"] = 0.5
    assert word_encoder(Backend.from_str(json.dumps(parts))) is None


@pytest.mark.parametrize("pattern", [None, *sorted(_RULES)])
def test_random_bytes_have_the_tokens_of_the_library(pattern: str | None) -> None:
    backend = made(pattern)
    encoder = encoder_of(backend)
    rng = random.Random(6)
    for _ in range(3000):
        alphabet = rng.choice(["".join(map(chr, range(128))), "'sSlLvVrReEtTmMdD ", " \t\n\r\v\f\x1c\x1fa1.", "<|end>|", "the cat"])
        text = "".join(rng.choices(alphabet, k=rng.randrange(1, 24)))
        assert encoder.encode(text) == backend.encode(text, add_special_tokens=False).ids, repr(text)


@pytest.mark.parametrize("ignores_merges", [False, True])
def test_words_that_are_tokens_stay_whole_if_the_model_says_so(ignores_merges: bool) -> None:
    parts = json.loads(made(None).to_str())
    parts["model"]["ignore_merges"] = ignores_merges
    for text in ("\u0120zqzq", "zz\u010a", "zqzq\u010a\u010a"):  # no merge makes these
        parts["model"]["vocab"][text] = len(parts["model"]["vocab"])
    backend = Backend.from_str(json.dumps(parts))
    encoder = encoder_of(backend)
    for text in (" zqzq", "a zqzq zqzq", "zz\n", "zqzq\n\n", "the cat zqzq."):
        assert encoder.encode(text) == backend.encode(text, add_special_tokens=False).ids
    assert (len(encoder.encode(" zqzq")) == 1) == ignores_merges


def test_the_longest_of_added_tokens_is_taken_and_those_that_read_the_raw_text_come_first() -> None:
    from tokenizers import AddedToken

    backend = made(None)
    backend.add_tokens(["<a", "<ab>", "<abc", "b<", AddedToken("a<", normalized=False), AddedToken("c>", normalized=False)])
    encoder = encoder_of(backend)
    rng = random.Random(7)
    for _ in range(3000):
        text = "".join(rng.choices("<abc> ", k=rng.randrange(1, 14)))
        assert encoder.encode(text) == backend.encode(text, add_special_tokens=False).ids, repr(text)


def test_long_words_have_the_tokens_of_the_library() -> None:
    backend = made(None)
    encoder = encoder_of(backend)
    for length in (63, 64, 65, 1000):
        for text in ("a" * length, "the cat " + "tool" * length + " the", " " * length + "x", "the\n" + "-" * length):
            assert encoder.encode(text) == backend.encode(text, add_special_tokens=False).ids, (length, text[:20])


def test_what_is_remembered_is_bounded() -> None:
    encoder = encoder_of(made(None))
    encoder.encode("\u00e9" * (MAX_PIECE_CHARS + 1))
    assert not encoder._ids_of
    encoder.encode(" ".join(f"\u00e9{number}" for number in range(MAX_PIECES + 100)))
    assert 0 < len(encoder._ids_of) <= MAX_PIECES
    encoder.encode(" ".join(f"a{number}." for number in range(MAX_PIECES + 100)))
    assert 0 < encoder._core.num_known_words <= 4096


def test_half_a_character_is_an_error_of_the_text() -> None:
    with pytest.raises(UnicodeEncodeError):
        encoder_of(made(None)).encode("a \ud800 b")
