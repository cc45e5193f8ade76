"""The embedded model examples/stdlib-coder/model: it loads, is as good as its report says, and its greedy answers are Python."""

import ast
import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

EXAMPLE = Path(__file__).parents[2] / "examples" / "stdlib-coder"
MODEL = EXAMPLE / "model"
MAX_FOLDER_BYTES = 20 * 2**20
PROMPTS = [
    "def ",
    "class ",
    "def add(a, b):\n",
    "def __init__(self, name, value):\n",
    "def close(self):\n",
    "def __repr__(self):\n",
    "class Stack:\n",
    "import os\nimport sys\n\n\ndef main():\n",
]
MIN_PROMPTS_THAT_PARSE = 5


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(MODEL)


def parses_after_trimming(code: str) -> bool:
    """Whether some prefix of whole lines, longer than a first line, is valid Python."""
    lines = code.splitlines()
    for num_lines in range(len(lines), 1, -1):
        try:
            ast.parse("\n".join(lines[:num_lines]))
        except SyntaxError:
            continue
        return True
    return False


def test_the_folder_is_small_and_complete() -> None:
    names = {path.name for path in MODEL.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "report.json"} <= names
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= MAX_FOLDER_BYTES


def test_the_recorded_perplexity_is_reproduced_on_the_held_out_excerpt(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    recorded = json.loads((MODEL / "report.json").read_text())["held_out_excerpt"]
    ids = torch.tensor(tokenizer((EXAMPLE / "held_out_excerpt.txt").read_text()).input_ids)
    window_len = model.config.max_position_embeddings
    total_nats = 0.0
    for first in range(0, len(ids) - 1, window_len):
        window = ids[first : first + window_len + 1]
        with torch.no_grad():
            logits = model(window[None, :-1]).logits[0]
        total_nats += F.cross_entropy(logits, window[1:], reduction="sum").item()
    assert len(ids) - 1 == recorded["tokens"]
    assert math.exp(total_nats / recorded["tokens"]) == pytest.approx(recorded["perplexity"], rel=1e-3)


def test_greedy_continuations_are_python(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    answers = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        output = model.generate(ids, max_new_tokens=64, do_sample=False)
        answers.append(tokenizer.decode(output[0], skip_special_tokens=True))
    that_parse = [answer for answer in answers if parses_after_trimming(answer)]
    assert len(that_parse) >= MIN_PROMPTS_THAT_PARSE, "\n----\n".join(answers)


def test_the_chat_template_frames_every_message_and_opens_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Write a Python function: Add."}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|bos|><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWrite a Python function: Add.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    text = (EXAMPLE / "held_out_excerpt.txt").read_text() + "\tπ ≈ 3.14159 😀\r\n"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == "<|bos|>" + text
    assert len(tokenizer("def ").input_ids) == len(tokenizer("class ").input_ids) == 2
