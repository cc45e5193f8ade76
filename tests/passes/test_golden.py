"""What the whole pipeline makes of a layer, as text that is reviewed. FMO_BLESS=1 rewrites the golden files."""

import os
from pathlib import Path

import pytest

from friendli_compile.ir.rewrite import renumbered
from friendli_compile.ir.text import parse_graph, print_graph
from friendli_compile.passes import PIPELINE, run_pipeline

from .running import logits_of, random_params, relative_error

GOLDEN = Path(__file__).parent / "golden"
LAYERS = [path.name.removesuffix(".traced.txt") for path in sorted(GOLDEN.glob("*.traced.txt"))]


@pytest.mark.parametrize("layer", LAYERS)
def test_the_compiled_layer_is_the_reviewed_one(layer: str) -> None:
    traced = parse_graph((GOLDEN / f"{layer}.traced.txt").read_text())
    text = print_graph(renumbered(run_pipeline(traced)))
    expected = GOLDEN / f"{layer}.compiled.txt"
    if os.environ.get("FMO_BLESS") == "1":
        expected.write_text(text)
    assert text == expected.read_text(), "if the change is wanted: FMO_BLESS=1 pytest tests/passes/test_golden.py, and review the diff"


@pytest.mark.parametrize("layer", LAYERS)
def test_every_pass_keeps_the_logits(layer: str) -> None:
    traced = parse_graph((GOLDEN / f"{layer}.traced.txt").read_text())
    params = random_params(traced)
    reference = logits_of(traced, params)
    errors = {}
    run_pipeline(traced, lambda name, graph: errors.update({name: relative_error(logits_of(graph, params), reference)}))
    assert max(errors.values()) <= 1e-5, errors


def test_the_pipeline_gives_the_same_graph_every_time() -> None:
    text = (GOLDEN / "llama_layer.traced.txt").read_text()
    assert print_graph(run_pipeline(parse_graph(text))) == print_graph(run_pipeline(parse_graph(text)))


def test_what_is_behind_the_last_attention_runs_on_logit_rows_only() -> None:
    graph = run_pipeline(parse_graph((GOLDEN / "llama_layer.traced.txt").read_text()))
    linears = [node.output.dims[0] for node in graph.nodes if node.op == "nn.linear"]
    assert linears == ["num_tokens"] + ["num_logits"] * 4  # q-k-v | output projection, gate-up, down, logits


def test_debug_level_3_prints_the_graph_after_every_pass(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FMO_DEBUG", "3")
    run_pipeline(parse_graph((GOLDEN / "gpt2_layer.traced.txt").read_text()))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert all(f"# --- {name}: " in printed.err for name in ("as traced", *(name for name, _ in PIPELINE)))
