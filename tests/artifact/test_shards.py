"""Weight files: aligned, split, readable by the safetensors library, and the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from friendli_runtime.weight_files import locate_weights
from safetensors import safe_open

from friendli_compile.artifact.layouts import pack
from friendli_compile.artifact.shards import plan_shards, write_shard

from .tiny import tiny_plan, write_tiny_artifact


def write_all(folder: Path, max_shard_bytes: int) -> list[Path]:
    plan, params = tiny_plan("f32")
    shards = plan_shards(plan.weights, max_shard_bytes)
    for shard in shards:
        write_shard(folder / shard.file_name, shard, lambda spec: [pack(spec.expression.evaluate(params.__getitem__), spec)])
    return [folder / shard.file_name for shard in shards]


def test_every_weight_starts_at_a_multiple_of_64_bytes_and_holds_its_data(tmp_path: Path) -> None:
    plan, params = tiny_plan("f32")
    located = locate_weights(write_all(tmp_path, 10_000))
    assert set(located) == {spec.name for spec in plan.weights}
    for spec in plan.weights:
        place = located[spec.name]
        assert place.offset % 64 == 0 and place.num_bytes == spec.num_bytes
        data = np.fromfile(place.path, np.uint8, place.num_bytes, offset=place.offset)
        np.testing.assert_array_equal(data, pack(spec.expression.evaluate(params.__getitem__), spec).view(np.uint8).reshape(-1))


def test_the_safetensors_library_reads_the_files(tmp_path: Path) -> None:
    plan, params = tiny_plan("f32")
    (path,) = write_all(tmp_path, 1 << 30)
    with safe_open(path, "np") as file:
        for spec in plan.weights:
            np.testing.assert_array_equal(file.get_tensor(spec.name), pack(spec.expression.evaluate(params.__getitem__), spec))


def test_files_are_split_at_the_limit_and_a_larger_tensor_has_its_own(tmp_path: Path) -> None:
    paths = write_all(tmp_path, 4000)
    assert len(paths) > 2 and [path.name for path in paths][:2] == ["weights-00001.safetensors", "weights-00002.safetensors"]
    plan, _ = tiny_plan("f32")
    shards = plan_shards(plan.weights, 4000)
    assert [spec for shard in shards for spec in shard.specs] == list(plan.weights)
    assert all(len(shard.specs) == 1 or sum(s.num_bytes for s in shard.specs) <= 4000 for shard in shards)


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write_tiny_artifact(tmp_path / name) for name in ("a", "b"))
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(names) == 5
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
