"""Token streams for training and evaluation.

Training: every document is `<|bos|> text <|eos|>` (chat: the chat template, then `<|eos|>`). An epoch is all documents end to end in a new
seeded order, cut into windows of the longest context, and the windows shuffled. So the batch of step `i` depends on the seed and on
`i` alone, which is what lets a run be resumed.
"""

import random

import numpy as np
import torch
from corpus import ChatDocument, Corpus, SourceFile
from tokenizer import BOS, EOS, IM_END, IM_START
from tokenizers import Tokenizer
from torch import Tensor

SPLIT_TOKEN_PROBABILITY = 0.01  # of seeing a token as two shorter ones: prompts may end in the middle of a token


class TrainingStream:
    """Batches by step number."""

    def __init__(self, documents: list[np.ndarray], window_len: int, batch_tokens: int, seed: int):
        self.documents = documents
        self.window_len = window_len
        self.windows_per_batch = batch_tokens // window_len
        num_windows = (sum(map(len, documents)) - 1) // window_len
        self.batches_per_epoch = num_windows // self.windows_per_batch
        self.seed = seed
        self.epoch_idx = -1
        self.windows = np.empty(0)

    def batch(self, step: int, seq_len: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, both [batch_tokens / seq_len, seq_len] int64; `seq_len` divides the window length."""
        epoch_idx, batch_idx = divmod(step, self.batches_per_epoch)
        if epoch_idx != self.epoch_idx:
            self.windows, self.epoch_idx = self.windows_of_epoch(epoch_idx), epoch_idx
        first = batch_idx * self.windows_per_batch
        windows = torch.from_numpy(self.windows[first : first + self.windows_per_batch].astype(np.int64))
        return windows[:, :-1].reshape(-1, seq_len), windows[:, 1:].reshape(-1, seq_len)

    def windows_of_epoch(self, epoch_idx: int) -> np.ndarray:
        """[num_windows, window_len + 1] uint16, neighbours sharing one token."""
        rng = np.random.default_rng([self.seed, epoch_idx])
        stream = np.concatenate([self.documents[i] for i in rng.permutation(len(self.documents))])
        windows = np.lib.stride_tricks.sliding_window_view(stream, self.window_len + 1)[:: self.window_len]
        return windows[rng.permutation(len(windows))]


def training_documents(corpus: Corpus, tokenizer: Tokenizer, seed: int) -> list[np.ndarray]:
    """All documents as uint16 token ids, in a fixed order."""
    rng = random.Random(seed)
    plain = [f"{BOS}{text}{EOS}" for text in [*(file.text for file in corpus.train_files), *corpus.snippets]]
    texts = plain + [chat_text(chat) for chat in corpus.chats]
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    return [np.array(split_some_tokens(encoding.ids, tokenizer, rng), dtype=np.uint16) for encoding in encodings]


def chat_text(chat: ChatDocument) -> str:
    """The exchange as the chat template renders it, and `<|eos|>`."""
    user, assistant = f"{IM_START}user\n{chat.user}{IM_END}\n", f"{IM_START}assistant\n{chat.assistant}{IM_END}\n"
    return f"{BOS}{user}{assistant}{EOS}"


def split_some_tokens(ids: list[int], tokenizer: Tokenizer, rng: random.Random) -> list[int]:
    """Replaces a few tokens by the encodings of their two halves; the text stays the same."""
    result = []
    for token_id in ids:
        text = tokenizer.decode([token_id]) if rng.random() < SPLIT_TOKEN_PROBABILITY else ""
        if len(text) > 1 and text.isascii():
            cut = rng.randrange(1, len(text))
            for half in (text[:cut], text[cut:]):
                result += tokenizer.encode(half, add_special_tokens=False).ids
        else:
            result.append(token_id)
    return result


def held_out_windows(files: list[SourceFile], tokenizer: Tokenizer, window_len: int) -> tuple[list[np.ndarray], int]:
    """Windows of at most window_len + 1 tokens (each file `<|bos|> text`, cut without overlap), and the bytes of text they predict."""
    windows = []
    for file in files:
        ids = np.array(tokenizer.encode(file.text).ids, dtype=np.int64)
        windows += [ids[first : first + window_len + 1] for first in range(0, len(ids) - 1, window_len)]
    return windows, sum(len(file.text.encode()) for file in files)
