"""The parts of examples/stdlib-coder that train the embedded model: documents, batches, optimizer, export. Nothing is trained here."""

import ast
import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

EXAMPLE = Path(__file__).parents[2] / "examples" / "stdlib-coder"
MODULES = ["corpus", "tokenizer", "model", "optimizer", "data", "export", "train"]
SOURCE = '''\
import os


class Stack:
    """A stack."""

    def push(self, item):
        """Adds an item on top."""
        self.items.append(item)
        return self

    @property
    def top(self):
        return self.items[-1] if self.items else None


def walk(root):
    for name in sorted(os.listdir(root)):
        yield os.path.join(root, name)
'''


@pytest.fixture(scope="module")
def example() -> Iterator[SimpleNamespace]:
    """The modules of the example, imported under their own names and forgotten afterwards: it is a folder of scripts, no package."""
    hidden = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    sys.path.insert(0, str(EXAMPLE))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(EXAMPLE))
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


def test_snippets_are_whole_definitions_at_column_zero(example: SimpleNamespace) -> None:
    snippets = example.corpus.snippets_of(SOURCE)
    definitions = [ast.parse(snippet).body for snippet in snippets]
    assert sorted(body[0].name for body in definitions) == ["Stack", "push", "top", "walk"]
    assert all(len(body) == 1 for body in definitions)
    assert any(snippet.startswith("@property\ndef top") for snippet in snippets)


@pytest.mark.parametrize("seed", range(4))
def test_a_chat_asks_for_the_code_that_it_answers_with(example: SimpleNamespace, seed: int) -> None:
    for snippet in example.corpus.snippets_of(SOURCE):
        (chat,) = example.corpus.chats_of(snippet, random.Random(seed))
        if chat.user.startswith("Complete"):
            assert chat.user.removeprefix("Complete this code:\n```python\n").removesuffix("```") + chat.assistant == snippet
        else:
            assert chat.assistant == f"```python\n{snippet}```"


def test_the_tokenizer_gives_indentation_and_words_with_their_space_one_token_each(example: SimpleNamespace) -> None:
    tokenizer = example.tokenizer.train_tokenizer([SOURCE * 20], 400)
    assert [tokenizer.decode([token_id]) for token_id in tokenizer.encode("    return self", add_special_tokens=False).ids] == [
        "    ",
        "return ",
        "self",
    ]


def test_split_tokens_still_spell_the_text(example: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example.data, "SPLIT_TOKEN_PROBABILITY", 0.5)
    tokenizer = example.tokenizer.train_tokenizer([SOURCE * 20], 400)
    ids = tokenizer.encode(SOURCE).ids
    split = example.data.split_some_tokens(ids, tokenizer, random.Random(0))
    assert len(split) > len(ids)
    assert tokenizer.decode(split) == SOURCE


def test_a_batch_depends_on_its_step_alone_and_targets_are_the_next_tokens(example: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 500, size=int(rng.integers(5, 90))).astype(np.uint16) for _ in range(40)]
    forwards, backwards = (example.data.TrainingStream(documents, window_len=32, batch_tokens=64, seed=3) for _ in range(2))
    steps = range(2 * forwards.batches_per_epoch + 1)
    batches = {step: forwards.batch(step, seq_len=16) for step in steps}
    for step in reversed(steps):
        inputs, targets = backwards.batch(step, seq_len=16)
        assert inputs.shape == (4, 16)
        assert torch.equal(inputs, batches[step][0])
        assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_an_epoch_shows_every_window_once(example: SimpleNamespace) -> None:
    stream = example.data.TrainingStream([np.arange(641, dtype=np.uint16)], window_len=32, batch_tokens=64, seed=0)
    first_tokens = sorted(int(row[0]) for step in range(stream.batches_per_epoch) for row in stream.batch(step, seq_len=32)[0])
    assert first_tokens == list(range(0, 640, 32))


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 24, 24)])
def test_muon_makes_updates_nearly_orthogonal(example: SimpleNamespace, shape: tuple[int, int, int]) -> None:
    updates = example.optimizer.orthogonalize(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    singular_values = torch.linalg.svdvals(updates)
    assert updates.shape == shape
    assert singular_values.max() < 1.3
    assert singular_values.mean() > 0.7


def test_the_learning_rate_warms_up_and_ends_near_zero(example: SimpleNamespace) -> None:
    scales = [example.optimizer.learning_rate_scale(step, num_steps=500, num_decay_steps=200) for step in range(500)]
    assert max(scales) == 1.0
    assert scales[:60] == sorted(scales[:60])
    assert scales[300:] == sorted(scales[300:], reverse=True)
    assert scales[-1] == pytest.approx(1 / 200)


def test_transformers_computes_the_same_logits_from_the_exported_folder(example: SimpleNamespace, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = example.model.ModelConfig(vocab_size=400, hidden_size=64, intermediate_size=96, num_layers=2, head_dim=32, max_context_len=64)
    model = example.model.Llama(config)
    with torch.no_grad():
        for param in model.parameters():  # the zero-initialised projections included
            param.add_(0.1 * torch.randn_like(param))
    tokenizer = example.tokenizer.train_tokenizer([SOURCE * 20], config.vocab_size)
    example.export.export_model(model, tokenizer, tmp_path)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    model.load_state_dict({name: weight.bfloat16().float() for name, weight in model.state_dict().items()})
    ids = torch.randint(0, config.vocab_size, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(exported(ids).logits, model(ids), atol=1e-4, rtol=1e-4)
