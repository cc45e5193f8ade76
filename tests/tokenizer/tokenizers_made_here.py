"""Small real tokenizers of every decoder kind that language models use, trained on a few lines in memory."""

import json
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = [
    "def main(self): return 'hello world'",
    "The quick brown fox jumps over the lazy dog.",
    "hello  world,   hello you!\n\tand you",
    "naïve café",
    "你好世界",
    "emoji 🙂🙃 here",
] * 3
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def byte_level() -> Tokenizer:
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|end|>", "<|user|>", "<|assistant|>", "<s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tok.add_tokens([AddedToken("<tool call>", special=False, normalized=False)])
    return tok


def llama_bpe() -> Tokenizer:
    """BPE with byte fallback behind a ▁ normalizer; the decoder strips the first space of the whole text."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[*SPECIAL, *byte_tokens], show_progress=False, limit_alphabet=40)
    tok = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.train_from_iterator(TEXT, trainer)
    spec = json.loads(tok.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] in SPECIAL]
    tok = Tokenizer.from_str(json.dumps(spec))
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tok


def metaspace_unigram() -> Tokenizer:
    tok = Tokenizer(models.Unigram())
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    tok.decoder = decoders.Metaspace()
    tok.train_from_iterator(TEXT, trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False))
    return tok


def word_piece() -> Tokenizer:
    tok = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.decoder = decoders.WordPiece()
    tok.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False))
    return tok


def word_level() -> Tokenizer:
    tok = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    tok.train_from_iterator(TEXT, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    return tok


MAKERS = {maker.__name__: maker for maker in (byte_level, llama_bpe, metaspace_unigram, word_piece, word_level)}


@cache
def backend_json(name: str) -> str:
    return MAKERS[name]().to_str()


@cache
def json_with_special_tokens(name: str, *tokens: str) -> str:
    """A tokenizer of MAKERS that has more special tokens."""
    backend = MAKERS[name]()
    backend.add_special_tokens(list(tokens))
    return backend.to_str()
