"""The executor refuses what does not fit together, with what, where and what to do, and stays usable after a bad batch."""

import copy
from typing import Any

import numpy as np
import pytest
from friendli_runtime._core import Executor

from .tiny_plan import TinyPlan, forward


def small_plan() -> tuple[TinyPlan, dict[str, Any]]:
    """embedding → linear → attention → logits, 8 tokens of vocabulary."""
    rng = np.random.default_rng(0)
    plan = TinyPlan(kv_layers=[(1, 8, 8)], vocab_size=8)
    x = plan.per_token(rng.standard_normal((8, 8)))
    hidden = plan.buffer(["num_tokens", 24])
    plan.call("nn.linear", [x, plan.weight(rng.standard_normal((24, 8)).astype(np.float32), "bf16", "panel16"), None], [hidden])
    q, k, v = ({**hidden, "dims": ["num_tokens", 1, 8], "strides": [32, 8, 1], "offset": o} for o in (0, 8, 16))
    out = plan.buffer(["num_tokens", 1, 8])
    plan.call("attn.paged", [q, k, v, None, None], [out], {"scale": 1.0, "kv_layer": 0})
    return plan, plan.finish(out)


def set_at(plan: dict[str, Any], path: list[Any], value: Any) -> None:
    for key in path[:-1]:
        plan = plan[key]
    plan[path[-1]] = value


LINEAR, ATTENTION = 1, 2
MUTATIONS: dict[str, tuple[list[Any], Any]] = {
    "a buffer beyond the arena": (["buffers", 0, "offset"], 1 << 20),
    "a buffer that is not aligned": (["buffers", 0, "offset"], 4),
    "a size that overflows": (["buffers", 0, "row_bytes"], 1 << 62),
    "a negative offset": (["buffers", 0, "offset"], -64),
    "an arena that overflows": (["arenas", "num_tokens"], 1 << 61),
    "a view beyond its buffer": (["calls", LINEAR, "inputs", 0, "offset"], 1 << 30),
    "a view with a stride that overflows": (["calls", LINEAR, "inputs", 0, "strides"], [1 << 61, 1]),
    "a view with a negative stride": (["calls", LINEAR, "inputs", 0, "strides"], [-16, 1]),
    "a buffer that is not there": (["calls", LINEAR, "inputs", 0, "id"], 99),
    "a weight that is not there": (["calls", LINEAR, "inputs", 1, "id"], "nothing"),
    "an unknown op": (["calls", LINEAR, "op"], "nn.liner"),
    "an unknown dtype": (["calls", LINEAR, "inputs", 0, "dtype"], "f64"),
    "an unknown attribute": (["calls", LINEAR, "attrs"], {"alpha": 1.0}),
    "an attribute of the wrong kind": (["calls", ATTENTION, "attrs", "scale"], "big"),
    "a missing attribute": (["calls", ATTENTION, "attrs"], {"kv_layer": 0}),
    "a KV layer that is not there": (["calls", ATTENTION, "attrs", "kv_layer"], 3),
    "a head dim that differs from the cache": (["kv_layers", 0, "k_head_dim"], 16),
    "a KV layer without heads": (["kv_layers", 0, "num_kv_heads"], 0),
    "a KV layer that overflows": (["kv_layers", 0, "k_head_dim"], 1 << 60),
    "an input that is missing": (["calls", LINEAR, "inputs", 0], None),
    "a weight whose dims do not fit its bytes": (["weights", "w1", "dims"], [48, 8]),
    "a weight whose dims overflow": (["weights", "w1", "dims"], [1 << 40, 1 << 40]),
    "a product that does not fit": (["calls", LINEAR, "outputs", 0, "dims"], ["num_tokens", 25]),
    "an output that broadcasts": (["calls", LINEAR, "outputs", 0, "strides"], [0, 1]),
    "logits of another width": (["vocab_size"], 9),
    "a newer schema": (["schema_version"], 2),
    "a missing key": (["calls", LINEAR], {"op": "nn.linear"}),
    "too many dims": (["calls", LINEAR, "inputs", 0, "dims"], [1] * 9),
    "a string as a number": (["vocab_size"], "8"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_malformed_plan_is_an_error_that_says_where(mutation: str) -> None:
    builder, plan = small_plan()
    path, value = MUTATIONS[mutation]
    broken = copy.deepcopy(plan)
    set_at(broken, path, value)
    with pytest.raises(RuntimeError, match=r"(?s).+\nwhere: .+\ntry: .+"):
        builder.bind(broken)
    builder.bind(plan)


def test_random_damage_is_refused_or_harmless() -> None:
    builder, plan = small_plan()
    rng = np.random.default_rng(0)
    values = [0, -1, 1, 3, 1 << 31, 1 << 62, "num_tokens", None, [], {}, 7.5, True]
    for _ in range(300):
        broken = copy.deepcopy(plan)
        path, node = [], broken
        while isinstance(node, dict | list) and node and (not path or rng.random() < 0.85):
            key = rng.choice(list(node)) if isinstance(node, dict) else int(rng.integers(len(node)))
            path, node = [*path, key], node[key]
        set_at(broken, path, values[rng.integers(len(values))])
        try:
            executor = builder.bind(broken, num_threads=2)
            forward(executor, [5, 3])
        except RuntimeError as error:
            assert "\nwhere: " in str(error) or "bad_alloc" in str(error), str(error)
        except (MemoryError, IndexError):
            pass


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_threads", -1),
        ("max_num_tokens", 0),
        ("max_num_logits", 1 << 40),
        ("num_blocks", 0),
        ("kv_dtype", "f16"),
        ("kv_dtype", "float"),
        ("isa", "sse9"),
    ],
)
def test_an_option_out_of_range_is_refused(name: str, value: Any) -> None:
    builder, plan = small_plan()
    with pytest.raises(RuntimeError, match="where: "):
        builder.bind(plan, **{name: value})


def arrays(**changes: Any) -> dict[str, np.ndarray]:
    good: dict[str, Any] = {
        "input_ids": [1, 2, 3],
        "position_ids": [0, 1, 0],
        "cu_seqlens": [0, 2, 3],
        "context_lens": [0, 0],
        "block_tables": [[0], [1]],
        "logit_rows": [2],
    }
    return {name: np.array(value, np.int32) for name, value in (good | changes).items()}


@pytest.mark.parametrize(
    "changes",
    [
        {"input_ids": [1, 2, 8]},
        {"input_ids": [1, -2, 3]},
        {"position_ids": [0, -1, 0]},
        {"cu_seqlens": [0, 2, 4]},
        {"cu_seqlens": [0, 3, 3]},
        {"cu_seqlens": [1, 2, 3]},
        {"context_lens": [-1, 0]},
        {"context_lens": [15, 0]},
        {"context_lens": [2**31 - 1, 0]},
        {"block_tables": [[0], [64]]},
        {"block_tables": [[0], [-1]]},
        {"logit_rows": [3]},
        {"logit_rows": [-1]},
        {"position_ids": [0, 1]},
        {"cu_seqlens": [0, 3]},
        {"input_ids": [], "position_ids": [], "cu_seqlens": [0], "context_lens": [], "block_tables": np.zeros((0, 1)), "logit_rows": []},
    ],
    ids=str,
)
def test_a_bad_batch_is_refused_and_the_next_one_runs(changes: dict[str, Any]) -> None:
    builder, plan = small_plan()
    executor = builder.bind(plan)
    expected = executor.forward(**arrays())
    with pytest.raises(RuntimeError, match="where: "):
        executor.forward(**arrays(**changes))
    assert np.array_equal(executor.forward(**arrays()), expected)


def test_an_index_that_the_plan_computes_out_of_range_fails_the_step() -> None:
    plan = TinyPlan()
    y = plan.buffer(["num_tokens", 4])
    ids = plan.per_token(np.array([[0], [7]], np.float32), "i32")
    table = plan.weight(np.ones((5, 4), np.float32))
    plan.call("nn.embedding", [table, {**ids, "dims": ["num_tokens"], "strides": ids["strides"][:1]}], [y])
    executor = plan.bind(plan.finish(y), num_threads=2)
    with pytest.raises(RuntimeError, match=r"an index is 7, expected 0 to 4\nwhere: nn.embedding of test"):
        forward(executor, [2])
    assert (forward(executor, [1])[:, :4] == 1).all()


def test_a_step_may_ask_for_no_logits_or_for_rows_in_any_order() -> None:
    builder, plan = small_plan()
    executor = builder.bind(plan, num_threads=2)
    every = executor.forward(**arrays(logit_rows=[0, 1, 2]))
    assert executor.forward(**arrays(logit_rows=np.zeros(0))).shape == (0, 8)
    assert np.array_equal(executor.forward(**arrays(logit_rows=[2, 0, 0])), every[[2, 0, 0]])


def test_a_truncated_weight_file_is_refused(tmp_path: Any) -> None:
    builder, plan = small_plan()
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(64))
    weights = {name: (str(path), 0, array.nbytes) for name, array in builder.arrays.items()}
    with pytest.raises(RuntimeError, match="truncated"):
        Executor(plan, weights)
    with pytest.raises(RuntimeError, match="cannot open"):
        Executor(plan, {name: (str(tmp_path / "nowhere"), 0, array.nbytes) for name, array in builder.arrays.items()})


def test_the_executor_says_what_it_uses_and_measures_when_asked() -> None:
    builder, plan = small_plan()
    executor = builder.bind(plan, kv_dtype="bf16", isa="scalar", num_blocks=3, num_threads=2)
    assert (executor.isa, executor.num_threads, executor.num_blocks, executor.block_size) == ("scalar", 2, 3, 16)
    assert executor.kv_bytes_per_block == 2 * 16 * 8 * 2
    assert executor.memory()["kv_bytes"] >= 3 * executor.kv_bytes_per_block
    calls = executor.calls()
    assert [c["op"] for c in calls[:3]] == ["nn.embedding", "nn.linear", "attn.paged"]
    assert calls[1]["kernel"] == "linear.cpu.scalar.bf16" and calls[1]["weight_bytes"] == 32 * 8 * 2
    assert {c["kernel"] for c in calls} <= set(Executor.kernel_names())
    assert all(c["num_runs"] == 0 for c in calls)
    executor.profile(True)
    forward(executor, [3])
    assert all(c["num_runs"] == 1 and c["total_ns"] > 0 for c in executor.calls())


def test_many_more_threads_than_cores_or_work_give_the_same_result() -> None:
    builder, plan = small_plan()
    expected = forward(builder.bind(plan), [5])
    assert np.array_equal(forward(builder.bind(plan, num_threads=9), [5]), expected)
