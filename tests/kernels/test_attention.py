"""attn.paged against numpy in float64, and the numerical contract: equal bits for prefill, chunks, single tokens, batches and threads."""

from collections.abc import Iterator

import numpy as np
import pytest
from friendli_runtime.loaded_model import KV_DTYPE_BYTES, kv_layers_block_bytes

from .tiny_plan import TinyPlan, forward, round_bf16

ISAS = ["scalar", "avx2"]
Arrays = dict[str, np.ndarray]


def make_arrays(num_tokens: int, num_q_heads: int, num_kv_heads: int, k_dim: int, v_dim: int, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes = {"q": (num_q_heads, k_dim), "k": (num_kv_heads, k_dim), "v": (num_kv_heads, v_dim)}
    return {name: rng.standard_normal((num_tokens, *shape)).astype(np.float32) for name, shape in shapes.items()}


def attention_plan(arrays: Arrays, attrs: dict, sinks: np.ndarray | None = None, slopes: np.ndarray | None = None) -> tuple[TinyPlan, dict]:
    """Row i of the arrays belongs to token id i."""
    q, k, v = arrays["q"], arrays["k"], arrays["v"]
    plan = TinyPlan(kv_layers=[(k.shape[1], k.shape[2], v.shape[2])], max_num_tokens=max(64, len(q)))
    out = plan.buffer(["num_tokens", q.shape[1], v.shape[2]])
    optional = [None if x is None else plan.weight(x) for x in (sinks, slopes)]
    inputs = [*(plan.per_token(arrays[name]) for name in "qkv"), *optional]
    plan.call("attn.paged", inputs, [out], {"scale": 0.3, "kv_layer": 0} | attrs)
    return plan, out


def reference(arrays: Arrays, attrs: dict, sinks: np.ndarray | None = None, slopes: np.ndarray | None = None) -> np.ndarray:
    """One sequence, float64: [num_tokens, num_q_heads, v_dim]."""
    q, k, v = (arrays[name].astype(np.float64) for name in "qkv")
    group = q.shape[1] // k.shape[1]
    i, j = np.arange(len(q))[:, None], np.arange(len(q))[None, :]
    first = np.zeros_like(i)
    if attrs.get("window"):
        first = np.maximum(first, i - attrs["window"] + 1)
    if attrs.get("chunk"):
        first = np.maximum(first, i // attrs["chunk"] * attrs["chunk"])
    result = np.zeros((len(q), q.shape[1], v.shape[2]))
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[:, head // group].T * np.float64(np.float32(0.3))
        if attrs.get("softcap"):
            scores = attrs["softcap"] * np.tanh(scores / attrs["softcap"])
        if slopes is not None:
            scores = scores + np.float64(slopes[head]) * (j - i)
        scores = np.where((j <= i) & (j >= first), scores, -np.inf)
        top = scores.max(1, keepdims=True) if sinks is None else np.maximum(scores.max(1, keepdims=True), sinks[head])
        e = np.exp(scores - top)
        total = e.sum(1, keepdims=True) + (0 if sinks is None else np.exp(sinks[head] - top))
        result[:, head] = e / total @ v[:, head // group]
    return result


HEADS = [(1, 1, 8, 8), (4, 2, 16, 24), (6, 6, 64, 64), (8, 1, 33, 7), (10, 2, 96, 128), (71, 1, 5, 9)]
VARIANTS: dict[str, dict] = {
    "plain": {},
    "window": {"window": 37},
    "chunk": {"chunk": 50},
    "softcap": {"softcap": 2.0},
    "window and chunk": {"window": 70, "chunk": 64, "softcap": 20.0},
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_prefill_is_causal_attention_for_every_shape_of_heads(heads: tuple[int, int, int, int], isa: str) -> None:
    arrays = make_arrays(150, *heads)
    plan, out = attention_plan(arrays, {})
    np.testing.assert_allclose(plan.run(out, 150, isa=isa, num_threads=2), reference(arrays, {}), atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("with_extras", [False, True], ids=["", "sinks and slopes"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_mask_and_score_variant_agrees_with_the_reference(variant: str, with_extras: bool, isa: str) -> None:
    arrays = make_arrays(200, 4, 2, 32, 16)
    rng = np.random.default_rng(1)
    sinks, slopes = (rng.standard_normal(4).astype(np.float32), rng.random(4).astype(np.float32)) if with_extras else (None, None)
    attrs = VARIANTS[variant]
    plan, out = attention_plan(arrays, attrs, sinks, slopes)
    np.testing.assert_allclose(plan.run(out, 200, isa=isa), reference(arrays, attrs, sinks, slopes), atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_a_bf16_cache_holds_keys_and_values_rounded_to_nearest(isa: str) -> None:
    arrays = make_arrays(150, 4, 2, 32, 20)
    plan, out = attention_plan(arrays, {})
    rounded = arrays | {"k": round_bf16(arrays["k"]), "v": round_bf16(arrays["v"])}
    np.testing.assert_allclose(plan.run(out, 150, isa=isa, kv_dtype="bf16"), reference(rounded, {}), atol=1e-5)


def round_i8(x: np.ndarray) -> np.ndarray:
    """As the cache keeps it: one scale per token and head."""
    largest = np.abs(x).max(-1, keepdims=True)
    codes = np.rint(x * (np.float32(127) / np.where(largest == 0, np.float32(1), largest)))
    return codes * (largest / np.float32(127))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_an_i8_cache_holds_keys_and_values_rounded_per_token_and_head(heads: tuple[int, int, int, int], isa: str) -> None:
    arrays = make_arrays(150, *heads)
    arrays["k"][7] = 0.0
    arrays["v"][9] *= 1000.0
    plan, out = attention_plan(arrays, {})
    rounded = arrays | {"k": round_i8(arrays["k"]), "v": round_i8(arrays["v"])}
    expected = reference(rounded, {})
    result = plan.run(out, 150, isa=isa, kv_dtype="i8", num_threads=2)
    np.testing.assert_allclose(result, expected, atol=2e-5, rtol=1e-4)
    exact = reference(arrays, {})
    assert 1e-4 < np.abs(result - exact).max() / np.abs(exact).max() < 0.03


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_dtype", ["f32", "bf16", "i8"])
@pytest.mark.parametrize("with_extras", [False, True], ids=["", "sinks and slopes"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_contexts_of_several_pieces_agree_with_the_reference(variant: str, with_extras: bool, kv_dtype: str, isa: str) -> None:
    length = 1100
    arrays = make_arrays(length, 2, 1, 16, 8)
    rng = np.random.default_rng(1)
    sinks, slopes = (rng.standard_normal(2).astype(np.float32), 0.01 * rng.random(2).astype(np.float32)) if with_extras else (None, None)
    attrs = VARIANTS[variant] | ({"window": 600} if variant == "window" else {})
    plan, out = attention_plan(arrays, attrs, sinks, slopes)
    rounding = {"f32": lambda x: x, "bf16": round_bf16, "i8": round_i8}[kv_dtype]
    expected = reference(arrays | {"k": rounding(arrays["k"]), "v": rounding(arrays["v"])}, attrs, sinks, slopes)
    result = plan.run(out, length, isa=isa, kv_dtype=kv_dtype, num_blocks=80)
    np.testing.assert_allclose(result, expected, atol=2e-5)


@pytest.mark.parametrize("kv_dtype", ["f32", "bf16", "i8"])
@pytest.mark.parametrize("heads", [(2, 1, 24, 40), (9, 3, 16, 16)], ids=str)
def test_decoding_a_long_context_has_the_same_bits_with_any_number_of_threads(heads: tuple[int, ...], kv_dtype: str) -> None:
    length = 1600
    arrays = make_arrays(length, *heads)
    plan, out = attention_plan(arrays, {})
    finished = plan.finish(out)
    options = {"max_num_tokens": length, "max_num_logits": 3, "kv_dtype": kv_dtype, "num_blocks": 110}
    rows = np.arange(length, dtype=np.int32)
    table = np.random.default_rng(3).permutation(110)[None, :100].astype(np.int32)
    results = []
    for num_threads in (1, 2, 3):
        executor = plan.bind(finished, num_threads=num_threads, **options)
        first = length - 3
        executor.forward(rows[:first], rows[:first], np.array([0, first], np.int32), np.array([0], np.int32), table, rows[:1])
        results.append(np.concatenate([forward(executor, [1], [p], np.array([p]), table) for p in range(first, length)]))
    whole = plan.bind(finished, num_threads=2, **options)
    at_once = whole.forward(rows, rows, np.array([0, length], np.int32), np.array([0], np.int32), table, rows[-3:])
    assert all(np.array_equal(result, at_once) for result in results)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("kv_dtype", ["f32", "bf16", "i8"])
def test_a_value_that_is_no_number_reaches_every_query_that_sees_it_and_no_other(kv_dtype: str, bad: float, isa: str) -> None:
    arrays = make_arrays(100, 2, 1, 16, 16)
    arrays["v"][60, 0, 3] = bad
    plan, out = attention_plan(arrays, {})
    result = plan.run(out, 100, isa=isa, kv_dtype=kv_dtype, num_threads=2)
    assert np.isfinite(result[:60]).all()
    assert not np.isfinite(result[60:, :, 3]).any()


def test_the_bytes_of_a_block_are_those_that_the_loader_counts() -> None:
    layers = [(2, 33, 20), (1, 8, 64)]
    plan = TinyPlan(kv_layers=layers)
    finished = plan.finish(plan.per_token(np.zeros((4, 8), np.float32)))
    for kv_dtype in KV_DTYPE_BYTES:
        executor = plan.bind(finished, kv_dtype=kv_dtype, num_blocks=3)
        assert executor.kv_bytes_per_block == kv_layers_block_bytes(finished["kv_layers"], kv_dtype)


def pieces(length: int, chunk: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, chunk):
        yield start, min(start + chunk, length)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_dtype", ["f32", "bf16", "i8"])
@pytest.mark.parametrize("heads", [(4, 2, 32, 24), (1, 1, 16, 16), (12, 1, 8, 8)], ids=str)
@pytest.mark.parametrize("variant", ["plain", "window and chunk"])
def test_chunks_and_single_tokens_give_the_bits_of_one_prefill(variant: str, heads: tuple[int, ...], kv_dtype: str, isa: str) -> None:
    length = 150
    arrays = make_arrays(length, *heads)
    plan, out = attention_plan(arrays, VARIANTS[variant])
    finished = plan.finish(out)
    options = {"max_num_tokens": length, "max_num_logits": length, "kv_dtype": kv_dtype, "isa": isa}
    whole = forward(plan.bind(finished, **options), [length])
    table = np.random.default_rng(2).permutation(40)[None, :10].astype(np.int32)
    for chunk, num_threads in ((1, 1), (7, 2), (64, 2), (100, 3)):
        executor = plan.bind(finished, num_threads=num_threads, **options)
        for start, stop in pieces(length, chunk):
            part = forward(executor, [stop - start], [start], np.arange(start, stop), table)
            assert np.array_equal(part, whole[start:stop]), (chunk, start)


@pytest.mark.parametrize("kv_dtype", ["f32", "bf16", "i8"])
def test_a_sequence_has_the_same_bits_alone_and_in_a_batch(kv_dtype: str) -> None:
    lengths = [5, 70, 33, 100]
    arrays = make_arrays(sum(lengths), 6, 2, 32, 32)
    plan, out = attention_plan(arrays, {})
    finished = plan.finish(out)
    options = {"max_num_tokens": sum(lengths), "max_num_logits": sum(lengths), "kv_dtype": kv_dtype}
    batch = forward(plan.bind(finished, num_threads=2, **options), lengths)
    start = 0
    for length in lengths:
        alone = forward(plan.bind(finished, **options), [length], tokens=np.arange(start, start + length))
        assert np.array_equal(alone, batch[start : start + length])
        start += length


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_dtype", ["f32", "bf16", "i8"])
def test_what_was_in_a_block_before_never_reaches_a_result(kv_dtype: str, isa: str) -> None:
    arrays = make_arrays(150, 4, 2, 32, 24)
    poisoned = {name: np.concatenate([x, np.full_like(x[:64], np.nan)]) for name, x in arrays.items()}
    plan, out = attention_plan(poisoned, {"window": 40})
    plan.max_num_tokens = 256
    finished = plan.finish(out)
    fresh = forward(plan.bind(finished, isa=isa, kv_dtype=kv_dtype), [70])
    executor = plan.bind(finished, isa=isa, kv_dtype=kv_dtype)
    table = np.arange(8, dtype=np.int32)[None]
    for _ in range(2):
        forward(executor, [64], [0], np.arange(150, 214), table)  # leaves NaN in four blocks
        forward(executor, [64], [64], np.arange(150, 214), table)
    again = forward(executor, [70], [0], np.arange(70), table)
    assert np.array_equal(again, fresh) and np.isfinite(again).all()


def test_decoding_reads_what_another_block_table_shares() -> None:
    arrays = make_arrays(100, 4, 2, 16, 16)
    plan, out = attention_plan(arrays, {})
    plan.max_num_tokens = 128
    finished = plan.finish(out)
    executor = plan.bind(finished, num_threads=2)
    whole = forward(executor, [80], tables=np.arange(8, dtype=np.int32)[None])
    executor.copy_block(4, 20)  # positions 64 … 79
    tables = np.array([[0, 1, 2, 3, 20, 21], [0, 1, 2, 3, 4, 30]], np.int32)
    out = forward(executor, [1, 1], [79, 79], np.array([79, 79]), tables)
    assert np.array_equal(out[0], whole[79]) and np.array_equal(out[1], whole[79])
