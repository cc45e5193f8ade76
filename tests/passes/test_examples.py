"""Every pass does what the example in its docstring shows, and leaves the numbers as they are."""

import importlib
import pkgutil
import re
import textwrap

import numpy as np
import pytest

import friendli_compile.passes as passes
from friendli_compile.ir.attention import BatchDescription
from friendli_compile.ir.graph import Graph, Value
from friendli_compile.ir.interpreter import interpret
from friendli_compile.ir.rewrite import renumbered
from friendli_compile.ir.text import parse_graph, print_graph
from friendli_compile.ir.verify import verify

NUM_TOKENS = 5
_EXAMPLE = re.compile(r"^before:\n(.*?)^after:\n(.*?)(?=^\S|\Z)", re.MULTILINE | re.DOTALL)


def examples() -> list:
    result = []
    for module in pkgutil.iter_modules(passes.__path__):
        loaded = importlib.import_module(f"friendli_compile.passes.{module.name}")
        if not hasattr(loaded, "run"):
            continue
        found = _EXAMPLE.findall(loaded.__doc__ or "")
        assert found, f"{module.name} has no example in its docstring"
        result += [pytest.param(loaded.run, *example, id=f"{module.name}-{i}") for i, example in enumerate(found)]
    return result


def canonical_text(graph: Graph) -> str:
    """Names of constants and computed values do not matter, and neither does the order of parameters."""
    lines = print_graph(renumbered(graph)).splitlines()
    return "\n".join(sorted(line for line in lines if line.startswith("param"))) + "\n".join(
        re.sub(r"%c\d+\b", "%c", line) for line in lines if not line.startswith("param")
    )


def run_randomly(graph: Graph, seed: int) -> list[np.ndarray]:
    def array(value: Value) -> np.ndarray:
        rng = np.random.default_rng([seed, *value.name.encode()])
        dims = [NUM_TOKENS if dim == "num_tokens" else 3 if dim == "num_logits" else dim for dim in value.dims]
        if value.name == "logit_rows":
            return np.arange(NUM_TOKENS, dtype=np.int32)[::-1][: dims[0]].copy()
        return rng.integers(0, 3, dims) if value.dtype == "i32" else rng.standard_normal(dims).astype(np.float32)

    params = {value.name: array(value) for value in graph.params}
    inputs = {value.name: array(value) for value in graph.inputs}
    return interpret(graph, inputs, params, BatchDescription.of_lengths([2, 3]))


@pytest.mark.parametrize(("run", "before", "after"), examples())
def test_the_pass_turns_the_graph_before_into_the_graph_after(run, before: str, after: str) -> None:
    graph, expected = parse_graph(textwrap.dedent(before)), parse_graph(textwrap.dedent(after))
    result = run(graph)
    verify(result, token_major=True)
    assert canonical_text(result) == canonical_text(expected)


@pytest.mark.parametrize(("run", "before", "after"), examples())
def test_the_pass_keeps_the_numbers(run, before: str, after: str) -> None:
    graph = parse_graph(textwrap.dedent(before))
    result = run(graph)
    for old, new in zip(run_randomly(graph, 1), run_randomly(result, 1), strict=True):
        if any(value.name == "logit_rows" for value in result.inputs):
            old = old[[4, 3, 2]]
        np.testing.assert_allclose(np.squeeze(new), np.squeeze(old), rtol=1e-5, atol=1e-5)
