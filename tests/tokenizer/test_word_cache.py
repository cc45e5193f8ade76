"""A text that is cut at words has the tokens of the whole text."""

import json
import random
from typing import Any

import pytest
from friendli_runtime.tokenizer.word_cache import _PATTERNS, MAX_WORD_CHARS, MAX_WORDS, WordCache, word_cache
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


@pytest.mark.parametrize("pattern", [None, *sorted(_PATTERNS)])
@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
def test_random_texts_have_the_tokens_of_the_whole(pattern: str | None, normalizer: Any) -> None:
    backend = made(pattern, normalizer=normalizer)
    backend.add_tokens(["tool", "x_a"])
    cache = word_cache(backend)
    assert cache is not None
    rng = random.Random(5)
    for _ in range(3000):
        text = "".join(rng.choices(PIECES, k=rng.randrange(1, 12)))
        assert cache.encode(text) == backend.encode(text, add_special_tokens=False).ids, repr(text)


def test_tokenizers_whose_words_may_depend_on_each_other_have_no_cache() -> None:
    assert word_cache(made(None, add_prefix_space=True)) is None
    assert word_cache(made(None, normalizer=normalizers.Lowercase())) is None
    assert word_cache(made(r"\w+ \w+|\s+|.")) is None
    for options in ({"lstrip": True}, {"rstrip": True}, {"single_word": True}):
        from tokenizers import AddedToken

        backend = made(None)
        backend.add_tokens([AddedToken("tool", **options)])
        assert word_cache(backend) is None
    backend = made(None)
    backend.add_tokens(["new york"])
    assert word_cache(backend) is None
    parts = json.loads(made(None).to_str())
    parts["model"]["dropout"] = 0.5
    assert word_cache(Backend.from_str(json.dumps(parts))) is None


def test_the_cache_is_bounded() -> None:
    cache = WordCache(made(None))
    cache.encode("a" * (MAX_WORD_CHARS + 1))
    assert not cache._ids_of
    cache.encode(" ".join(f"a{number}" for number in range(MAX_WORDS + 100)))
    assert 0 < len(cache._ids_of) <= MAX_WORDS
