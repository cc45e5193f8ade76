"""The single rules of `simplify`: each line becomes the shorter line, with the same numbers."""

import numpy as np
import pytest

from friendli_compile.ir.interpreter import interpret
from friendli_compile.ir.text import parse_graph, print_graph
from friendli_compile.passes import simplify

HEAD = """
input %x: f32[num_tokens, 6]
input %z: f32[num_tokens, 6]
input %i: i32[num_tokens, 6]
input %m: bool[num_tokens, 6]
param %w: f32[1, 6]
"""
RULES = {
    "a reshape and its inverse": (
        '%a = tensor.reshape(%x) {dims=["num_tokens", 2, 3]}\n%y = tensor.reshape(%a) {dims=["num_tokens", 6]}',
        "return %x",
    ),
    "two permutes": (
        '%a = tensor.reshape(%x) {dims=["num_tokens", 2, 3]}\n%b = tensor.permute(%a) {perm=[0, 2, 1]}\n'
        "%y = tensor.permute(%b) {perm=[0, 2, 1]}",
        "return %a",
    ),
    "a slice of a slice": (
        "%a = tensor.slice(%x) {dim=1, start=1, stop=5}\n%y = tensor.slice(%a) {dim=1, start=1, stop=3}",
        "tensor.slice(%x) {dim=1, start=2, stop=4}",
    ),
    "a slice of a concat": (
        "%a = tensor.concat(%x, %z) {dim=1}\n%y = tensor.slice(%a) {dim=1, start=7, stop=9}",
        "tensor.slice(%z) {dim=1, start=1, stop=3}",
    ),
    "neighbouring slices": (
        "%a = tensor.slice(%x) {dim=1, start=0, stop=2}\n%b = tensor.slice(%x) {dim=1, start=2, stop=6}\n"
        "%y = tensor.concat(%a, %b) {dim=1}",
        "return %x",
    ),
    "an expansion that broadcasting makes": (
        '%a = tensor.expand(%w) {dims=["num_tokens", 6]}\n%y = ew.mul(%x, %a)',
        "ew.mul(%x, %w)",
    ),
    "a fill": ('%a = tensor.full() {dims=["num_tokens", 6], value=2.0, dtype="f32"}\n%y = ew.minimum(%a, %x)', "ew.minimum(%x, 2.0)"),
    "a square": ("%y = ew.mul(%x, %x)", "ew.square(%x)"),
    "a power of one half": ("%a = ew.abs(%x)\n%y = ew.pow(%a, 0.5)", "ew.sqrt("),
    "one over a root": ("%a = ew.abs(%x)\n%b = ew.sqrt(%a)\n%y = ew.div(1.0, %b)", "ew.rsqrt("),
    "a sum over six by six": (
        "%a = reduce.sum(%x) {dim=1, keepdim=true}\n%b = ew.div(%a, 6.0)\n%y = ew.add(%b, %x)",
        "reduce.mean(%x) {dim=1, keepdim=true}",
    ),
    "minus a number": ("%y = ew.sub(%x, 2.0)", "ew.add(%x, -2.0)"),
    "minus an integer": ("%y = ew.sub(%i, 2)", "ew.add(%i, -2)"),
    "plus zero times one": ("%a = ew.add(0.0, %x)\n%y = ew.mul(%a, 1.0)", "return %x"),
    "plus zero that widens": (
        "%a = tensor.expand(0.0) {dims=[2, 6]}\n%y = ew.add(%w, %a)",
        "tensor.expand(%w) {dims=[2, 6]}",
    ),
    "the larger of zero": ("%y = ew.maximum(0.0, %x)", "ew.relu(%x)"),
    "a choice by a negation": ("%a = ew.not(%m)\n%y = ew.where(%a, %x, %z)", "ew.where(%m, %z, %x)"),
    "a choice by a constant": ("%y = ew.where(true, %x, %z)", "return %x"),
    "a logical constant in front": ("%y = ew.or(false, %m)", "ew.or(%m, false)"),
    "a truth value cast twice": ('%a = tensor.cast(%m) {dtype="i32"}\n%y = tensor.cast(%a) {dtype="f32"}', 'tensor.cast(%m) {dtype="f32"}'),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_line_becomes_the_shorter_line_with_the_same_numbers(rule: str) -> None:
    before, after = RULES[rule]
    graph = parse_graph(f"{HEAD}{before}\nreturn %y")
    result = simplify.run(graph)
    assert after in print_graph(result)
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((2, 5, 6))
    inputs = {"x": x, "z": z, "i": rng.integers(-3, 4, (5, 6)), "m": x > z}
    params = {"w": z[:1].astype(np.float32)}
    (expected,), (found,) = interpret(graph, inputs, params), interpret(result, inputs, params)
    assert expected.shape == found.shape
    np.testing.assert_allclose(found, expected, rtol=1e-6)
