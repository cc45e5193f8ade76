"""The scripted model answers with exactly the script of its prompt, whatever the text and wherever it stands."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from .scripted import (
    EOS,
    FAST_PAIRS,
    MATCH_SCORE,
    MAX_CONTEXT_LEN,
    NUM_PAIRS,
    ROPE_THETA,
    build,
    codewords,
    script_tag,
    scripted_prompt,
)

FIXED_TEXTS = [
    "",
    "a",
    "hello",
    "a" * 200,
    "ab" * 100,
    "\n\n  \t",
    "héllo wörld 😀 日本語",
    '<think>2 + 2</think><tool_call>{"name": "f", "arguments": {"x": [1, 1, 1]}}</tool_call>',
]
LONG_CONTEXT_LEN = 2500
PRECISIONS = ["float32", "bfloat16 weights", "bfloat16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("scripted"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module", params=PRECISIONS)
def model(folder: Path, request: pytest.FixtureRequest) -> LlamaForCausalLM:
    dtype = torch.float32 if request.param == "float32" else torch.bfloat16
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return loaded.float() if request.param == "bfloat16 weights" else loaded


def random_text(rng: random.Random, num_bytes: int) -> str:
    """About `num_bytes` of UTF-8: ASCII, accents, CJK, emoji, with runs of repeats."""
    text = ""
    while len(text.encode()) < num_bytes:
        low, high = rng.choice([(32, 127), (97, 100), (0xC0, 0x17F), (0x4E00, 0x9FFF), (0x1F600, 0x1F640)])
        text += chr(rng.randrange(low, high)) * rng.choice([1, 1, 1, 5])
    return text


def greedy_margins(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompt: str, text: str) -> torch.Tensor:
    """Per output token, the logit of the expected one minus that of the best other: all positive means greedy decoding gives `text`."""
    prompt_ids = tokenizer(prompt).input_ids
    expected = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.convert_tokens_to_ids(EOS)]
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt_ids, *expected[:-1]]])).logits[0, len(prompt_ids) - 1 :].float()
    rows, columns = torch.arange(len(expected)), torch.tensor(expected)
    of_expected = logits[rows, columns].clone()
    logits[rows, columns] = -torch.inf
    return of_expected - logits.max(dim=1).values


def test_distances_are_told_apart_in_the_whole_context() -> None:
    pairs = np.array(FAST_PAIRS)
    angles = np.arange(MAX_CONTEXT_LEN)[:, None] * ROPE_THETA ** (-pairs / NUM_PAIRS)
    codes = np.tanh(np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / 2).astype(np.float32)
    scores = codes @ codes.T
    of_itself = scores.diagonal().copy()
    np.fill_diagonal(scores, -np.inf)
    assert MATCH_SCORE * (of_itself - scores.max(axis=1)).min() > 40


@pytest.mark.parametrize("text", FIXED_TEXTS)
def test_the_completion_is_the_script(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert greedy_margins(model, tokenizer, scripted_prompt(text), text).min() > 20


@pytest.mark.parametrize("seed", range(3))
def test_random_scripts_are_copied_from_anywhere_in_the_prompt(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, seed: int
) -> None:
    rng = random.Random(seed)
    text = random_text(rng, rng.randrange(1, 300))
    before, after = (random_text(rng, rng.randrange(0, 150)) for _ in range(2))
    assert greedy_margins(model, tokenizer, scripted_prompt(text, before, after), text).min() > 20


def test_a_script_is_copied_across_a_long_context(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = random_text(random.Random(1), 700)
    filler = "x" * (LONG_CONTEXT_LEN - 2 * len(text.encode()) - 16)
    assert greedy_margins(model, tokenizer, scripted_prompt(text, after=filler), text).min() > 20


def test_generate_stops_after_the_script(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(scripted_prompt("déjà vu", "Say it: ", " please"), return_tensors="pt").input_ids
    output = model.generate(ids, max_new_tokens=50, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(output) == "déjà vu" + EOS


@pytest.mark.parametrize(
    ("messages", "answer"),
    [
        ([{"role": "user", "content": f"{script_tag('hi')} and some more"}], "hi"),
        ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": script_tag("hi")}]}], "hi"),
        (
            [
                {"role": "user", "content": script_tag("first")},
                {"role": "assistant", "content": None},
                {"role": "tool", "content": f"42 {script_tag('second')}"},
                {"role": "user", "content": "go on"},
            ],
            "second",
        ),
        ([{"role": "user", "content": "no script"}], ""),
    ],
    ids=["text after it", "content parts", "last of two", "none"],
)
def test_the_chat_template_plays_the_last_script(
    folder: Path, tokenizer: PreTrainedTokenizerBase, messages: list[dict], answer: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt.startswith(tokenizer.bos_token)
    assert greedy_margins(model, tokenizer, prompt.removeprefix(tokenizer.bos_token), answer).min() > 20


def test_the_same_bytes_are_built_every_time(folder: Path, tmp_path: Path) -> None:
    again = build(tmp_path / "again")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {path.name: path.read_bytes() for path in again.iterdir()}


def test_every_byte_is_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "héllo 😀\n"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert len(codewords()) == len(tokenizer)
