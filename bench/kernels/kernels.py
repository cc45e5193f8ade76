"""Measures each hot CPU kernel beside the limits of the machine, in the same process; a JSON line for each.

    python bench/kernels/kernels.py [--threads N] [--rounds 5] [--only linear]

Every kernel runs in a small plan with random weights larger than the caches. Times are those of the executor's own profile: the median over
interleaved rounds of the time of one call, barrier included. `share_of_limit` is against what binds: the measured read bandwidth (few
rows), the measured peak of f32 multiply-adds or that of byte products (many rows). Ratios of one run can be compared; absolute figures
of different minutes cannot.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from friendli_runtime import _core

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from machine import Busy, commit, cpu_name, record

COPIES = {"linear": 8, "attention": 8}  # calls per step: different weights or cache layers, so that nothing stays in a cache
VOCAB_SIZE = 64
ALIGNMENT = 64  # bytes: of every tensor in a file
STREAMED_BYTES = 64 << 20  # of the weights of a step with few rows: more than the caches hold
UNITS = {"read_bandwidth_gb_s": "gb_s", "fma_gflop_s": "gflop_s", "byte_gop_s": "gop_s"}
QUANTIZED = [
    ("i4", "i8", 32),
    ("i4", "i8", 128),
    ("u4", "i8", 32),
    ("i7", "i8", 128),
    ("i7", "i8", 0),
    ("i8", "i7", 128),
    ("i7", "i7", 128),
]
QUANTIZED += [("i4", "f32", 32), ("i8", "f32", 128)]
View = dict[str, Any]


@dataclass
class Case:
    """One kernel at one size. `work`: by limit, the bytes or operations of one call; the limit that takes longest binds."""

    kernel: str
    shape: str
    op: str
    plan: dict[str, Any]
    weights: dict[str, tuple[str, int, int]]
    num_rows: int
    context_len: int
    work: dict[str, float]  # by name in measure_limits()
    kv_dtype: str = "bf16"
    seconds: list[float] = field(default_factory=list)

    def binding_limit(self, limits: dict[str, float]) -> str:
        return max(self.work, key=lambda name: self.work[name] / limits[name])


class PlanWriter:
    """A plan with dense row buffers and random packed weights in one file."""

    def __init__(self, folder: Path, name: str) -> None:
        self.file = (folder / f"{name}.bin").open("wb")
        self.weights: dict[str, tuple[str, int, int]] = {}
        self.specs: dict[str, dict[str, Any]] = {}
        self.buffers: list[dict[str, Any]] = []
        self.calls: list[dict[str, Any]] = []
        self.row_bytes = {"num_tokens": 0, "num_logits": 0}
        self.rng = np.random.default_rng(0)

    def rows(self, width: int, rows: str = "num_tokens") -> View:
        num_bytes = -(-width * 4 // 64) * 64
        self.buffers.append({"arena": rows, "offset": self.row_bytes[rows], "row_bytes": num_bytes})
        self.row_bytes[rows] += num_bytes
        view_id = len(self.buffers) - 1
        return {"space": "buffer", "id": view_id, "dtype": "f32", "dims": [rows, width], "strides": [num_bytes // 4, 1], "offset": 0}

    def weight(self, dims: list[int], dtype: str, layout: str) -> View:
        name, count = f"w{len(self.weights)}", int(np.prod(dims))
        values = (self.rng.standard_normal(count, np.float32) * 0.05).view(np.uint32)
        data = values.tobytes() if dtype == "f32" else (values >> 16).astype(np.uint16).tobytes()
        self.put(name, data)
        self.specs[name] = {"dtype": dtype, "layout": layout, "dims": dims}
        return {"space": "weight", "id": name, "dtype": dtype, "dims": dims}

    def put(self, name: str, data: bytes) -> None:
        self.file.write(bytes(-self.file.tell() % ALIGNMENT))
        self.weights[name] = (self.file.name, self.file.tell(), len(data))
        self.file.write(data)

    def quant_weight(self, dims: list[int], dtype: str, group: int) -> View:
        """Random codes with f16 scales, in the layout block8; dims are whole blocks."""
        name, count = f"w{len(self.weights)}", int(np.prod(dims))
        num_bytes, codes = (count // 2, (0, 256)) if dtype in ("i4", "u4") else (count, {"i7": (32, 97), "i8": (0, 256)}[dtype])
        self.put(name, self.rng.integers(*codes, num_bytes, np.uint8).tobytes())
        self.put(name + ".scales", np.full(count // group, 0.01, np.float16).tobytes())
        if dtype == "u4":
            self.put(name + ".zeros", self.rng.integers(0, 16, count // group, np.uint8).tobytes())
        self.specs[name] = {"dtype": dtype, "layout": "block8", "dims": dims, "group": group, "scale_dtype": "f16"}
        if dtype == "i7":
            self.specs[name]["lane_sum"] = 512  # 16 codes of 32 at most
        return {"space": "weight", "id": name, "dtype": dtype, "dims": dims}

    def call(self, op: str, inputs: list[View | None], output: View, attrs: dict[str, Any] | None = None) -> View:
        self.calls.append({"op": op, "inputs": inputs, "outputs": [output], "attrs": attrs or {}, "layer": None, "source": "bench"})
        return output

    def embedded(self, width: int) -> View:
        ids = {"space": "input", "id": "input_ids", "dtype": "i32", "dims": ["num_tokens"], "strides": [1], "offset": 0}
        return self.call("nn.embedding", [self.weight([VOCAB_SIZE, width], "f32", "row_major"), ids], self.rows(width))

    def finish(self, kv_layers: list[dict[str, int]]) -> dict[str, Any]:
        self.file.close()
        logits = self.rows(VOCAB_SIZE, "num_logits")
        return {
            "schema_version": 1, "vocab_size": VOCAB_SIZE, "max_context_len": 1 << 20, "kv_layers": kv_layers, "kv_dtype": "bf16",
            "arenas": self.row_bytes | {"fixed": 0}, "buffers": self.buffers, "weights": self.specs, "calls": self.calls, "logits": logits,
        }  # fmt: skip


def linear_case(dtype: str, num_rows: int, N: int, K: int, folder: Path) -> Case:
    writer = PlanWriter(folder, f"linear-{dtype}-{num_rows}-{N}-{K}")
    x, y = writer.embedded(K), writer.rows(N)
    for _ in range(COPIES["linear"]):
        writer.call("nn.linear", [x, writer.weight([N, K], dtype, "panel16"), None], y)
    work = {"read_bandwidth_gb_s": N * K * (4.0 if dtype == "f32" else 2.0), "fma_gflop_s": 2.0 * N * K * num_rows}
    return Case(f"linear.{dtype}", f"{num_rows}x{N}x{K}", "nn.linear", writer.finish([]), writer.weights, num_rows, 0, work)


def qlinear_case(dtype: str, act_dtype: str, group: int, num_rows: int, N: int, K: int, folder: Path) -> Case:
    """group 0: one scale per row of the weight, activations in groups of 128."""
    group, act_group = (K, 128) if group == 0 else (group, group)
    name = f"{dtype}x{act_dtype}.{'channel' if group == K else f'g{group}'}"
    writer = PlanWriter(folder, f"qlinear-{name}-{num_rows}-{N}-{K}")
    x, y = writer.embedded(K), writer.rows(N)
    per_group = 3.0 if dtype == "u4" else 2.0
    num_bytes = N * K * (0.5 if dtype in ("i4", "u4") else 1.0) + N * (K // group) * per_group
    for _ in range(max(4, int(STREAMED_BYTES / num_bytes)) if num_rows <= 16 else 4):
        inputs = [x, writer.quant_weight([N, K], dtype, group), None]
        writer.call("nn.linear", inputs, y, {"act_dtype": act_dtype, "act_group": act_group})
    work = {"read_bandwidth_gb_s": num_bytes, "fma_gflop_s" if act_dtype == "f32" else "byte_gop_s": 2.0 * N * K * num_rows}
    return Case(f"linear.{name}", f"{num_rows}x{N}x{K}", "nn.linear", writer.finish([]), writer.weights, num_rows, 0, work)


def attention_case(kv_dtype: str, num_rows: int, context_len: int, heads: tuple[int, int, int], folder: Path) -> Case:
    num_q_heads, num_kv_heads, head_dim = heads
    writer = PlanWriter(folder, f"attention-{kv_dtype}-{num_rows}-{context_len}-{num_kv_heads}")
    x = writer.embedded((num_q_heads + 2 * num_kv_heads) * head_dim)
    y = writer.rows(num_q_heads * head_dim)

    def part(view: View, first: int, count: int) -> View:
        return {**view, "dims": ["num_tokens", count, head_dim], "strides": [view["strides"][0], head_dim, 1], "offset": first * head_dim}

    q, k, v = part(x, 0, num_q_heads), part(x, num_q_heads, num_kv_heads), part(x, num_q_heads + num_kv_heads, num_kv_heads)
    for layer in range(COPIES["attention"]):
        writer.call("attn.paged", [q, k, v, None, None], part(y, 0, num_q_heads), {"scale": head_dim**-0.5, "kv_layer": layer})
    kv_layers = [{"num_kv_heads": num_kv_heads, "k_head_dim": head_dim, "v_head_dim": head_dim}] * COPIES["attention"]
    num_pairs = num_rows * context_len + num_rows * (num_rows + 1) / 2  # query-key pairs of one head
    head_bytes = head_dim + 4.0 if kv_dtype == "i8" else 2.0 * head_dim  # of the key or the value of one token
    cache_bytes = (context_len + num_rows) * 2 * num_kv_heads * head_bytes
    work = {"read_bandwidth_gb_s": cache_bytes, "fma_gflop_s": num_pairs * num_q_heads * 4.0 * head_dim}
    shape = f"{num_rows}q after {context_len}, {num_q_heads}/{num_kv_heads} heads of {head_dim}"
    plan = writer.finish(kv_layers)
    return Case(f"attention.{kv_dtype}", shape, "attn.paged", plan, writer.weights, num_rows, context_len, work, kv_dtype)


def cases() -> Iterator[tuple[str, Callable[[Path], Case]]]:
    """The name of each case, and what writes its weights into a folder."""
    for dtype in ("bf16", "f32"):
        sizes = [(num_rows, 9728, 1024) for num_rows in (1, 2, 4, 8)] + [(1, 1024, 4864)]
        sizes += [(num_rows, 2048, 1024) for num_rows in (16, 32, 128, 512)] + [(512, 1024, 4864)]
        for num_rows, N, K in sizes:
            yield f"linear.{dtype} {num_rows}x{N}x{K}", partial(linear_case, dtype, num_rows, N, K)
    for dtype, act_dtype, group in QUANTIZED:
        sizes = [(num_rows, 9728, 1024) for num_rows in (1, 2, 4, 8, 16)] + [(1, 1024, 4864)]
        sizes += [(num_rows, 2048, 1024) for num_rows in (32, 128, 512)]
        for num_rows, N, K in sizes:
            name = f"linear.{dtype}x{act_dtype}.{f'g{group}' if group else 'channel'} {num_rows}x{N}x{K}"
            yield name, partial(qlinear_case, dtype, act_dtype, group, num_rows, N, K)
    for kv_dtype, heads in (("bf16", (16, 8, 64)), ("bf16", (16, 16, 64)), ("bf16", (8, 2, 128)), ("i8", (16, 8, 64))):
        for num_rows, context_len in ((512, 0), (1, 2048)):
            name = f"attention.{kv_dtype} {num_rows} after {context_len}"
            yield name, partial(attention_case, kv_dtype, num_rows, context_len, heads)


def run_case(case: Case, num_threads: int) -> None:
    """One warm-up and one measured step; appends the time of one call."""
    num_blocks = -(-(case.num_rows + case.context_len) // 16)
    executor = _core.Executor(
        case.plan, case.weights, num_threads=num_threads, max_num_tokens=case.num_rows, num_blocks=num_blocks, kv_dtype=case.kv_dtype
    )
    positions = np.arange(case.context_len, case.context_len + case.num_rows, dtype=np.int32)
    arrays = (
        positions % VOCAB_SIZE, positions, np.array([0, case.num_rows], np.int32), np.array([case.context_len], np.int32),
        np.arange(num_blocks, dtype=np.int32)[None], np.array([0], np.int32),
    )  # fmt: skip
    executor.forward(*arrays)
    executor.profile(True)
    executor.forward(*arrays)
    times = [call["total_ns"] * 1e-9 for call in executor.calls() if call["op"] == case.op]
    case.seconds.append(sum(times) / len(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as this process may use")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="only kernels whose name and shape contain this")
    arguments = parser.parse_args()
    limits: dict[str, list[float]] = {}
    busy = Busy()
    with tempfile.TemporaryDirectory() as folder:
        chosen = [make(Path(folder)) for name, make in cases() if arguments.only in name]
        for _ in range(arguments.rounds):
            for name, value in _core.measure_limits(arguments.threads).items():
                limits.setdefault(name, []).append(value)
            for case in chosen:
                run_case(case, arguments.threads)
    best = {name: max(values) for name, values in limits.items()}
    threads = arguments.threads or _core.usable_threads()
    run = {
        "commit": commit(),
        "cpu": cpu_name(),
        "isa": _core.detect_isa(),
        "threads": threads,
        "rounds": arguments.rounds,
        **busy.of_others(),
    }
    for case in chosen:
        limit = case.binding_limit(best)
        median, fastest = (case.work[limit] / seconds * 1e-9 for seconds in (statistics.median(case.seconds), min(case.seconds)))
        share = {"share_of_limit": round(median / best[limit], 3), "best_share": round(fastest / best[limit], 3)}
        measured = {UNITS[limit]: round(median, 1), "limit": limit, limit: round(best[limit], 1), **share}
        record("kernels.jsonl", {"kernel": case.kernel, "shape": case.shape, **measured, **run}, indent=None)


if __name__ == "__main__":
    main()
