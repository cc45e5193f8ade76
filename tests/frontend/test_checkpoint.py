"""The checkpoint reader: every parameter as transformers would load it, and clear errors for damaged or foreign files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from friendli_compile.errors import CheckpointError, InternalError
from friendli_compile.frontend.checkpoint import Checkpoint
from friendli_compile.frontend.source import load_source
from frontend.architectures import tiny_model, traced

# names converted (experts stacked), split router biases, tied embeddings, transposed expert weights
CONVERTED = ["mixtral", "deepseek_v3", "llama3", "gpt_oss"]


def opened(folder: Path, name: str) -> Checkpoint:
    """The reader of a checkpoint of the tiny model `name`."""
    return Checkpoint(load_source(str(folder)), traced(name))


@pytest.mark.parametrize("name", CONVERTED)
def test_every_parameter_is_what_transformers_has_after_loading(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    checkpoint = opened(tmp_path, name)
    checkpoint.verify()
    state = model.state_dict()
    for param_name, shape in checkpoint._traced.param_shapes.items():
        array = checkpoint.read(param_name)
        assert array.dtype == np.float32 and array.shape == shape
        np.testing.assert_array_equal(array, state[param_name].numpy(), err_msg=param_name)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 and checkpoint.unused_tensors == []


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Checkpoint]:
    """A tiny checkpoint with untied embeddings, and its reader."""
    folder = tmp_path_factory.mktemp("llama")
    tiny_model("llama").save_pretrained(folder)
    return folder, opened(folder, "llama")


@pytest.fixture
def damaged(llama: tuple[Path, Checkpoint], tmp_path: Path) -> Callable[[Callable[[Path], None]], Checkpoint]:
    """Copies the checkpoint, damages it, and opens it for the same traced model."""
    folder, intact = llama

    def make(damage: Callable[[Path], None]) -> Checkpoint:
        shutil.copytree(folder, tmp_path / "copy")
        damage(tmp_path / "copy")
        return Checkpoint(load_source(str(tmp_path / "copy")), intact._traced)

    return make


def edit(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Damage that loads the tensors, changes them and saves them again."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, "bf16"), (torch.float16, "f16"), (torch.float32, "f32")])
def test_every_float_dtype_is_read_exactly_and_named(damaged, dtype: torch.dtype, expected: str) -> None:
    checkpoint = damaged(edit(lambda tensors: tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()})))
    tensors = load_file(checkpoint._folder / "model.safetensors")
    for name in ("model.norm.weight", "model.layers.1.mlp.down_proj.weight"):
        assert checkpoint.source_dtype(name) == expected
        np.testing.assert_array_equal(checkpoint.read(name), tensors[name].float().numpy())


def test_a_missing_tensor_is_named_with_its_shape(damaged) -> None:
    checkpoint = damaged(edit(lambda tensors: tensors.pop("model.layers.1.mlp.down_proj.weight")))
    with pytest.raises(CheckpointError, match=r"'model\.layers\.1\.mlp\.down_proj\.weight' is missing \(shape \[64, 96\]\)"):
        checkpoint.verify()


def test_a_wrong_shape_is_told_with_both_shapes_and_the_file_before_any_data_is_read(damaged) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    checkpoint = damaged(edit(lambda tensors: tensors.update({name: torch.zeros(95, 64)})))
    with pytest.raises(CheckpointError, match=r"has shape \[95, 64\], expected \[96, 64\]") as caught:
        checkpoint.verify()
    assert "model.safetensors" in caught.value.where and "config.json" in caught.value.hint


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.float64])
def test_a_dtype_that_is_not_read_is_refused_by_name(damaged, dtype: torch.dtype) -> None:
    name = "model.norm.weight"
    checkpoint = damaged(edit(lambda tensors: tensors.update({name: tensors[name].to(dtype)})))
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' has dtype (F8_E4M3|I8|F64), which is not read"):
        checkpoint.verify()


def test_nan_is_found_while_reading(damaged) -> None:
    checkpoint = damaged(edit(lambda tensors: tensors["model.norm.weight"][3:5].fill_(float("nan"))))
    checkpoint.verify()
    with pytest.raises(CheckpointError, match=r"'model.norm.weight' holds 2 NaN of 64 values, the first at \[3\]"):
        checkpoint.read("model.norm.weight")


def test_infinity_is_found_while_reading(damaged) -> None:
    name = "model.embed_tokens.weight"
    checkpoint = damaged(edit(lambda tensors: tensors[name][3, 5:7].fill_(-float("inf"))))
    with pytest.raises(CheckpointError, match=r"holds 2 infinite of 16384 values, the first at \[3, 5\]") as refused:
        checkpoint.read(name)
    assert "model.safetensors" in refused.value.where and "overflowed" in refused.value.hint


def test_values_whose_squares_overflow_are_read(damaged) -> None:
    checkpoint = damaged(edit(lambda tensors: tensors["model.norm.weight"].fill_(-1e30)))
    np.testing.assert_array_equal(checkpoint.read("model.norm.weight"), np.full(64, -1e30, np.float32))


def truncate(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) - 100])


def spoil_header(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[8:12] = b"xxxx"
    (folder / "model.safetensors").write_bytes(data)


def wrong_extent(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["model.norm.weight"]["shape"] = [63]
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "is truncated: .* needs 100 bytes more"),
        (spoil_header, "header of 'model.safetensors' is damaged"),
        (wrong_extent, r"shape \[63\] and dtype F32 has 256 bytes"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "is empty"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "too few for its header"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(damaged, damage: Callable[[Path], None], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        damaged(damage)
    assert "model.safetensors" in caught.value.where and "download" in caught.value.hint


def test_tied_parameters_that_the_checkpoint_stores_twice_must_be_equal(tmp_path: Path) -> None:
    tiny_model("llama3").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.embed_tokens.weight"
    save_file({**tensors, "lm_head.weight": tensors[name].clone()}, tmp_path / "model.safetensors")
    checkpoint = opened(tmp_path, "llama3")
    np.testing.assert_array_equal(checkpoint.read(name), tensors[name].numpy())
    save_file({**tensors, "lm_head.weight": tensors[name] + 1}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="are tied by the config, and the checkpoint stores different values"):
        Checkpoint(load_source(str(tmp_path)), checkpoint._traced).read(name)


def test_names_without_the_prefix_of_the_base_model_are_found(tmp_path: Path) -> None:
    """Old checkpoints on the hub were saved from the base model, with buffers that are no weights."""
    tiny_model("gpt2").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    stripped = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file({**stripped, "h.0.attn.bias": torch.ones(1, 1, 8, 8)}, tmp_path / "model.safetensors")
    checkpoint = opened(tmp_path, "gpt2")
    checkpoint.verify()
    name = "transformer.h.1.mlp.c_fc.weight"
    np.testing.assert_array_equal(checkpoint.read(name), tensors[name].numpy())
    assert checkpoint.unused_tensors == ["h.0.attn.bias"]


def test_stacked_experts_of_a_half_precision_checkpoint_are_read_exactly(tmp_path: Path) -> None:
    model = tiny_model("mixtral").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    checkpoint = opened(tmp_path, "mixtral")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert checkpoint.source_dtype(name) == "bf16"
    np.testing.assert_array_equal(checkpoint.read(name), model.state_dict()[name].float().numpy())


def test_a_tied_parameter_may_be_stored_under_its_other_name(tmp_path: Path) -> None:
    tiny_model("llama3").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    embedding = tensors.pop("model.embed_tokens.weight")
    save_file({**tensors, "lm_head.weight": embedding}, tmp_path / "model.safetensors")
    checkpoint = opened(tmp_path, "llama3")
    checkpoint.verify()
    np.testing.assert_array_equal(checkpoint.read("model.embed_tokens.weight"), embedding.numpy())


def test_tensors_that_nothing_reads_are_listed(damaged) -> None:
    checkpoint = damaged(edit(lambda tensors: tensors.update({"vision.weight": torch.zeros(2)})))
    checkpoint.verify()
    assert checkpoint.unused_tensors == ["vision.weight"]


def test_a_parameter_that_the_graph_does_not_have_is_our_own_mistake(llama: tuple[Path, Checkpoint]) -> None:
    with pytest.raises(InternalError, match="reads no parameter 'nonsense'"):
        llama[1].read("nonsense")
