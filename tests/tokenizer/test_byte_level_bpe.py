"""Byte-level BPE in the core has the tokens, ids and texts of the library; what it does not cover is left to that."""

import json
import random
from typing import Any

import pytest
from friendli_runtime.tokenizer.byte_level_bpe import _RULES, ByteLevelBpe, read_byte_level_bpe
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, normalizers, pre_tokenizers, processors, trainers
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


def read(backend: Backend, *special_names: str) -> ByteLevelBpe | None:
    return read_byte_level_bpe(backend.to_str().encode(), special_names)


def encoder_of(backend: Backend, *special_names: str) -> ByteLevelBpe:
    encoder = read(backend, *special_names)
    assert encoder is not None
    return encoder


def assert_same_ids(encoder: ByteLevelBpe, backend: Backend, text: str) -> None:
    assert encoder.encode(text, add_special_tokens=False) == backend.encode(text, add_special_tokens=False).ids, repr(text[:200])


@pytest.mark.parametrize("pattern", [None, *sorted(_RULES)])
@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
def test_random_texts_have_the_tokens_of_the_whole(pattern: str | None, normalizer: Any) -> None:
    backend = made(pattern, normalizer=normalizer)
    backend.add_tokens(["tool", "x_a"])
    encoder = encoder_of(backend)
    rng = random.Random(5)
    for _ in range(3000):
        text = "".join(rng.choices(PIECES, k=rng.randrange(1, 12)))
        assert_same_ids(encoder, backend, text)


def test_tokenizers_whose_words_may_depend_on_each_other_are_left_to_the_library() -> None:
    assert read(made(None, add_prefix_space=True)) is None
    assert read(made(None, normalizer=normalizers.Lowercase())) is None
    assert read(made(r"\w+ \w+|\s+|.")) is None
    for options in ({"lstrip": True}, {"rstrip": True}, {"single_word": True}):
        from tokenizers import AddedToken

        backend = made(None)
        backend.add_tokens([AddedToken("tool", **options)])
        assert read(backend) is None
    backend = made(None)
    backend.add_tokens(["new york"])
    assert read(backend) is None
    parts = json.loads(made(None).to_str())
    parts["model"]["dropout"] = 0.5
    assert read(Backend.from_str(json.dumps(parts))) is None


@pytest.mark.parametrize("pattern", [None, *sorted(_RULES)])
def test_random_bytes_have_the_tokens_of_the_library(pattern: str | None) -> None:
    backend = made(pattern)
    encoder = encoder_of(backend)
    rng = random.Random(6)
    for _ in range(3000):
        alphabet = rng.choice(["".join(map(chr, range(128))), "'sSlLvVrReEtTmMdD ", " \t\n\r\v\f\x1c\x1fa1.", "<|end>|", "the cat"])
        text = "".join(rng.choices(alphabet, k=rng.randrange(1, 24)))
        assert_same_ids(encoder, backend, text)


@pytest.mark.parametrize("ignores_merges", [False, True])
def test_words_that_are_tokens_stay_whole_if_the_model_says_so(ignores_merges: bool) -> None:
    parts = json.loads(made(None).to_str())
    parts["model"]["ignore_merges"] = ignores_merges
    for text in ("\u0120zqzq", "zz\u010a", "zqzq\u010a\u010a"):  # no merge makes these
        parts["model"]["vocab"][text] = len(parts["model"]["vocab"])
    backend = Backend.from_str(json.dumps(parts))
    encoder = encoder_of(backend)
    for text in (" zqzq", "a zqzq zqzq", "zz\n", "zqzq\n\n", "the cat zqzq."):
        assert_same_ids(encoder, backend, text)
    assert (len(encoder.encode(" zqzq", add_special_tokens=False)) == 1) == ignores_merges


def test_the_longest_of_added_tokens_is_taken_and_those_that_read_the_raw_text_come_first() -> None:
    from tokenizers import AddedToken

    backend = made(None)
    backend.add_tokens(["<a", "<ab>", "<abc", "b<", AddedToken("a<", normalized=False), AddedToken("c>", normalized=False)])
    encoder = encoder_of(backend)
    rng = random.Random(7)
    for _ in range(3000):
        text = "".join(rng.choices("<abc> ", k=rng.randrange(1, 14)))
        assert_same_ids(encoder, backend, text)


def test_long_words_have_the_tokens_of_the_library() -> None:
    backend = made(None)
    encoder = encoder_of(backend)
    for length in (63, 64, 65, 1000):
        for text in ("a" * length, "the cat " + "tool" * length + " the", " " * length + "x", "the\n" + "-" * length):
            assert_same_ids(encoder, backend, text)


def test_remembered_words_are_told_apart_whatever_their_bytes() -> None:
    """Of every length around what is remembered, most of them many times, some in the place of others."""
    backend = made(None)
    encoder = encoder_of(backend)
    rng = random.Random(11)
    words = ["".join(rng.choices(letters, k=rng.randrange(1, 18))) for letters in ("ab", "\x00\x01", "aA") for _ in range(2000)]
    ids = {word: backend.encode(word, add_special_tokens=False).ids for word in words}
    for word in rng.choices(words, k=20_000):
        assert encoder.encode(word, add_special_tokens=False) == ids[word], repr(word)
    assert 100 < encoder._core.num_known_words <= 4096 + 1024


def test_what_is_remembered_is_bounded() -> None:
    encoder = encoder_of(made(None))
    encoder.encode("\u00e9" * 100, add_special_tokens=False)
    assert encoder._core.num_known_pieces == 0
    encoder.encode(" ".join(f"\u00e9{number}" for number in range(16500)), add_special_tokens=False)
    assert 0 < encoder._core.num_known_pieces <= 16384
    letters = "abcdefghijklm"
    long_words = ("z" * 16 + a + b + c for a in letters for b in letters for c in letters)
    encoder.encode(" ".join(long_words), add_special_tokens=False)
    encoder.encode(" ".join(f"a{number}." for number in range(16500)), add_special_tokens=False)
    assert 0 < encoder._core.num_known_words <= 4096 + 1024


def test_half_a_character_is_an_error_of_the_text() -> None:
    with pytest.raises(UnicodeEncodeError):
        encoder_of(made(None)).encode("a \ud800 b", add_special_tokens=False)


@pytest.mark.parametrize("pattern", [None, *sorted(_RULES)])
@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
def test_words_of_every_script_and_length_have_the_tokens_of_the_library(pattern: str | None, normalizer: Any) -> None:
    backend = made(pattern, normalizer=normalizer)
    encoder = encoder_of(backend)
    rng = random.Random(8)
    scripts = [(0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x400, 0x4FF), (0x900, 0x97F), (0x3000, 0x30FF), (0xAC00, 0xAC40)]
    scripts += [(0x1F600, 0x1F640)]
    for _ in range(400):
        low, high = rng.choice(scripts)
        word = "".join(chr(rng.randint(low, high)) for _ in range(rng.choice((1, 3, 20, 70))))
        text = rng.choice(("", "the cat ", " ")) + word * rng.choice((1, 1, 5)) + rng.choice(("", " tool", "\n"))
        assert_same_ids(encoder, backend, text)
        assert_same_ids(encoder, backend, text)  # remembered


@pytest.mark.parametrize("form", ["as the library writes it", "escaped", "indented", "old merges"])
def test_every_way_to_write_a_tokenizer_json_is_read(form: str) -> None:
    backend = made(None)
    backend.add_special_tokens(["<|é🙂|>"])
    parts = json.loads(backend.to_str())
    if form == "old merges":
        parts["model"]["merges"] = [" ".join(pair) for pair in parts["model"]["merges"]]
    text = {"escaped": json.dumps(parts), "indented": json.dumps(parts, indent=2)}.get(form, json.dumps(parts, ensure_ascii=False))
    encoder = read_byte_level_bpe(text.encode(), [])
    assert encoder is not None
    for sample in ("the cat's tool <|é🙂|> café", "\n\n日本"):
        assert_same_ids(encoder, backend, sample)
    for token_id in range(-1, backend.get_vocab_size() + 2):
        assert encoder.id_to_token(token_id) == (backend.id_to_token(token_id) if token_id >= 0 else None)
        assert token_id < 0 or encoder.token_to_id(backend.id_to_token(token_id) or "no token") == (
            token_id if token_id < backend.get_vocab_size() else None
        )
    assert encoder.num_tokens == backend.get_vocab_size() == encoder.max_token_id + 1
    assert encoder.max_token_bytes == max(len(token.encode()) for token in backend.get_vocab())


@pytest.mark.parametrize(
    "processor",
    [
        None,
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)]),
        processors.Sequence([processors.ByteLevel(), processors.TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", 0)])]),
    ],
)
def test_the_tokens_around_a_text_are_those_of_the_library(processor: Any) -> None:
    backend = made(None)
    if processor is not None:
        backend.post_processor = processor
    encoder = encoder_of(backend)
    for text in ("", "a", "the cat<|end|>", "café"):
        assert encoder.encode(text, add_special_tokens=True) == backend.encode(text, add_special_tokens=True).ids
    ids = backend.encode("the café<|end|> x").ids
    for skip in (False, True):
        assert encoder.decode(ids, skip_special_tokens=skip) == backend.decode(ids, skip_special_tokens=skip)


def test_tokens_that_are_special_by_name_are_those_of_the_library() -> None:
    from tokenizers import AddedToken

    names = ("the", "tool", "<|end|>", "not there", "x_a")
    backend = made(None)
    backend.add_tokens(["tool", AddedToken("x_a", normalized=False)])
    encoder = encoder_of(backend, *names)
    backend.add_special_tokens([name for name in names if backend.token_to_id(name) is not None and name != "<|end|>"])
    assert encoder.special_ids == {token.content: idx for idx, token in backend.get_added_tokens_decoder().items() if token.special}
    for text in ("the tool x_a", "thetool<|end|>", "a tools x_ab the"):
        assert_same_ids(encoder, backend, text)
        ids = backend.encode(text).ids
        assert encoder.decode(ids, skip_special_tokens=True) == backend.decode(ids, skip_special_tokens=True)


def spoilt(path: list[str | int], value: Any) -> bytes:
    parts = json.loads(made(None).to_str())
    place = parts
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(parts).encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["model", "merges"], [["a", "nowhere"]]),
        (["model", "merges"], ["a b c"]),
        (["model", "merges"], [["a"]]),
        (["model", "merges"], {}),
        (["model", "vocab"], []),
        (["model", "vocab"], {"a": 0}),
        (["model", "vocab", "twice"], 5),
        (["model", "vocab", "far"], 2**30),
        (["model", "vocab", "negative"], -1),
        (["model", "vocab", "text"], "5"),
        (["model"], []),
        (["added_tokens", 0, "id"], 7),
        (["added_tokens"], None),
        (["pre_tokenizer"], None),
        (["post_processor"], {"type": "Sequence", "processors": 5}),
    ],
)
def test_a_tokenizer_json_with_a_mistake_is_left_to_the_library(path: list[str | int], value: Any) -> None:
    assert read_byte_level_bpe(spoilt(path, value), []) is None


def test_a_tokenizer_json_that_ends_early_or_has_other_bytes_is_left_to_the_library() -> None:
    data = made(None).to_str().encode()
    assert read_byte_level_bpe(data, []) is not None
    rng = random.Random(9)
    for _ in range(300):
        assert read_byte_level_bpe(data[: rng.randrange(len(data))], []) is None
    for _ in range(300):
        place = rng.randrange(len(data))
        changed = data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
        encoder = read_byte_level_bpe(changed, [])
        if encoder is not None:  # one character is another
            encoder.decode(range(encoder.max_token_id + 1), skip_special_tokens=False)
            assert encoder.encode("the cat <|end|> é", add_special_tokens=False)
