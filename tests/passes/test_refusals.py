"""What mixes tokens outside attention is refused with module, op and line; what only looks like a pattern is left alone."""

import textwrap

import pytest

from friendli_compile.errors import UnsupportedModel
from friendli_compile.ir.text import parse_graph, print_graph
from friendli_compile.passes import (
    fuse_activations,
    fuse_layer_norm,
    fuse_rms_norm,
    fuse_rope,
    merge_head_norms,
    merge_linears,
    share_kv_heads,
    token_major,
)

SOURCE = '@ ["model.layers.3.mixer", "aten.op.default", "modeling_x.py:42"]'
MIXING = {
    "a mean over the tokens": "%y = reduce.mean(%x) {dim=1}",
    "a running sum": "%y = tensor.cumsum(%x) {dim=1}",
    "a softmax over the tokens": "%y = nn.softmax(%x) {dim=1}",
    "row numbers as positions": '%y = tensor.iota() {dims=[1, "num_tokens"], dim=1, dtype="i32"}',
    "a table of tokens by tokens": "%t = tensor.permute(%x) {perm=[0, 2, 1]}\n%y = tensor.matmul(%x, %t)",
    "a product over the tokens": "%t = tensor.permute(%x) {perm=[0, 2, 1]}\n%y = tensor.matmul(%t, %x)",
    "a convolution along the tokens": "%t = tensor.permute(%x) {perm=[0, 2, 1]}\n%y = nn.conv1d(%t, %w, _) {padding=1}",
    "a maximum over the tokens": '%t = tensor.reshape(%x) {dims=[1, 8, "num_tokens"]}\n%y = reduce.max(%t) {dim=2}',
}


@pytest.mark.parametrize("mixing", MIXING)
def test_what_mixes_tokens_is_refused_with_module_op_and_line(mixing: str) -> None:
    lines = [f"{line} {SOURCE}" for line in MIXING[mixing].splitlines()]
    result = lines[-1].split(" ")[0]
    text = ["input %x: f32[1, num_tokens, 8]", "param %w: f32[8, 8, 3]", *lines, f"return {result}"]
    with pytest.raises(UnsupportedModel) as error:
        token_major.run(parse_graph("\n".join(text)))
    assert (error.value.module, error.value.op, error.value.source_line) == ("model.layers.3.mixer", "aten.op.default", "modeling_x.py:42")


ROPE = """
    input %x: f32[num_tokens, 2, 4]
    input %f: f32[num_tokens, 2]
    input %g: f32[num_tokens, 2]
    %ff = tensor.concat(%f, SECOND) {dim=1}
    %c = ew.cos(%ff)
    %s = ew.sin(%ff)
    %c1 = tensor.reshape(%c) {dims=["num_tokens", 1, 4]}
    %s1 = tensor.reshape(%s) {dims=["num_tokens", 1, 4]}
    %a = ew.mul(%x, %c1)
    %x1 = tensor.slice(%x) {dim=2, start=0, stop=2}
    %x2 = tensor.slice(%x) {dim=2, start=2, stop=4}
    %n = ew.neg(NEGATED)
    %r = tensor.concat(%n, PLAIN) {dim=2}
    %b = ew.mul(%r, %s1)
    %y = ew.add(%a, %b)
    return %y
"""


def rope(second: str = "%f", negated: str = "%x2", plain: str = "%x1") -> str:
    return ROPE.replace("SECOND", second).replace("NEGATED", negated).replace("PLAIN", plain)


NORM = """
    input %x: f32[num_tokens, 8]
    input %z: f32[num_tokens, 8]
    param %w: f32[8]
    %s = ew.square(SQUARED)
    %m = reduce.mean(%s) {dim=AXIS}
    %e = ew.add(%m, 1e-06)
    %r = ew.rsqrt(%e)
    %b = tensor.reshape(%r) {dims=["num_tokens", 1]}
    %n = ew.mul(%x, %b)
    %y = ew.mul(%n, WEIGHT)
    return %y
"""


def norm(squared: str = "%x", weight: str = "%w") -> str:
    return NORM.replace("SQUARED", squared).replace("AXIS", "1").replace("WEIGHT", weight)


GELU = """
    input %x: f32[num_tokens, 8]
    %h = ew.mul(%x, 0.5)
    %d = ew.mul(%x, SCALE)
    %e = ew.erf(%d)
    %f = ew.add(%e, 1.0)
    %y = ew.mul(%h, %f)
    return %y
"""
LINEAR = """
    input %x: f32[num_tokens, 4]
    input %ids: i32[num_tokens]
    param %w1: f32[4, 4]
    param %w2: f32[4, 4]
    %a = nn.linear(%x, %w1, _)
    %b = nn.linear(%x, %w2, _)
    %e = nn.embedding(%w1, %ids)
    %c = ew.add(%a, %b)
    %y = ew.add(%c, %e)
    return %y
"""
REPEAT = """
    input %q: f32[num_tokens, 4, 8]
    input %k: f32[num_tokens, 2, 8]
    %k1 = tensor.reshape(%k) {dims=["num_tokens", 1, 2, 8]}
    %k2 = tensor.expand(%k1) {dims=["num_tokens", 2, 2, 8]}
    %k3 = tensor.reshape(%k2) {dims=["num_tokens", 4, 8]}
    %y = attn.paged(%q, %k3, %k3, _, _) {scale=1.0, kv_layer=0}
    return %y
"""

HEADS = """
    input %x: f32[num_tokens, 2, 8]
    param %w0: f32[8]
    param %w1: f32[8]
    param %b0: f32[8]
    param %b1: f32[8]
    %s0 = tensor.slice(%x) {dim=1, start=0, stop=1}
    %s1 = tensor.slice(%x) {dim=1, start=1, stop=2}
    %n0 = nn.layer_norm(%s0, %w0, %b0) {eps=1e-05}
    %n1 = nn.layer_norm(%s1, %w1, %b1) {eps=1e-05}
    %y = tensor.concat(FIRST, SECOND) {dim=1}
    return %y
"""

MATCHES = {
    "norms of heads": (merge_head_norms.run, HEADS.replace("FIRST", "%n0").replace("SECOND", "%n1"), "nn.layer_norm(%x, _, _)"),
    "rope": (fuse_rope.run, rope(), "nn.rope"),
    "norm": (fuse_rms_norm.run, norm(), "nn.rms_norm"),
    "gelu": (fuse_activations.run, GELU.replace("SCALE", "0.70710677"), "ew.gelu("),
}
NEAR_MISSES = {
    "norms of heads that change places": (merge_head_norms.run, HEADS.replace("FIRST", "%n1").replace("SECOND", "%n0"), "nn.layer_norm(%x"),
    "halves of cos that differ": (fuse_rope.run, rope(second="%g"), "nn.rope"),
    "halves that are not turned against each other": (fuse_rope.run, rope(negated="%x1", plain="%x2"), "nn.rope"),
    "a norm by the mean square of another value": (fuse_rms_norm.run, norm(squared="%z"), "nn.rms_norm"),
    "a weight that is not a weight": (fuse_rms_norm.run, norm(weight="%z"), "nn.rms_norm(%x, %z"),
    "a gelu with another constant": (fuse_activations.run, GELU.replace("SCALE", "0.71"), "ew.gelu"),
    "a weight that an embedding shares": (merge_linears.run, LINEAR, "tensor.concat"),
    "heads that are repeated in the other order": (share_kv_heads.run, REPEAT, "attn.paged(%q, %k, %k"),
    "a scaled value minus its mean": (
        fuse_layer_norm.run,
        """
        input %x: f32[num_tokens, 8]
        input %z: f32[num_tokens, 8]
        %m = reduce.mean(%z) {dim=1}
        %b = tensor.reshape(%m) {dims=["num_tokens", 1]}
        %d = ew.sub(%x, %b)
        %y = nn.rms_norm(%d, _) {eps=1e-05}
        return %y
        """,
        "nn.layer_norm",
    ),
}


@pytest.mark.parametrize("pattern", MATCHES)
def test_the_pattern_itself_is_matched(pattern: str) -> None:
    run, text, op = MATCHES[pattern]
    assert op in print_graph(run(parse_graph(textwrap.dedent(text))))


@pytest.mark.parametrize("near_miss", NEAR_MISSES)
def test_what_only_looks_like_a_pattern_is_left_alone(near_miss: str) -> None:
    run, text, op = NEAR_MISSES[near_miss]
    assert op not in print_graph(run(parse_graph(textwrap.dedent(text))))
