"""Traces transformers' own model code into a graph, with no weight in memory.

    config ─▶ skeleton (fake parameters, real buffers) ─▶ captured ─▶ torch.export ─▶ importer ─▶ lint ─▶ TracedModel

The traced function takes one packed batch: `input_ids [1, num_tokens]`, `position_ids [1, num_tokens]`, num_tokens dynamic, float32 on
the CPU device (ADR 1), no cache: the keys and values that reach attention are what a server has to keep. Whatever fails is an
UnsupportedModel that names the module, the op and the line of the model's code.
"""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..errors import UnsupportedModel
from ..ir.graph import Graph
from .blame import blame, watch_lengths
from .context_len import choose_context_len
from .importer import import_program
from .interfaces import capture
from .legacy_attention import replace_legacy_attention
from .lint import check_token_local
from .quiet import quiet
from .rope_tables import freeze_rope_tables
from .source import ModelSource

EXAMPLE_NUM_TOKENS = 24  # any size above 1: the dim is dynamic, and the exporter refuses code that depends on the example
MAX_NUM_TOKENS = 1 << 20
BIG_TENSOR = 1 << 24  # elements; larger zeros/ones made by a constructor are parameters, never buffers with values


@dataclass
class TracedModel:
    """A model as a graph (as traced: torch's dims and order) and what else the compiler must know of it."""

    graph: Graph
    config: PreTrainedConfig
    architecture: str  # class name, e.g. LlamaForCausalLM
    num_params: int
    max_context_len: int
    param_shapes: dict[str, tuple[int, ...]]  # every parameter that the graph reads
    notes: list[str]  # what the user should know
    skeleton: PreTrainedModel  # no weights; the checkpoint reader asks it for names, ties and conversions
    tied: dict[str, str] = field(default_factory=dict)  # other name → the name that the graph uses
    trace_seconds: float = 0.0
    is_embedder: bool = False  # the output is the last hidden state, not logits

    @property
    def vocab_size(self) -> int:
        """Token ids that the model takes."""
        return int(self.config.get_text_config().vocab_size if self.is_embedder else self.graph.outputs[0].dims[-1])


def trace_model(
    source_or_config: ModelSource | PreTrainedConfig, *, max_context_len: int | None = None, is_embedder: bool = False
) -> TracedModel:
    """Traces a model. `max_context_len` None: as long as the config allows. `is_embedder`: without the head that gives logits; a source
    says so itself.

    Raises UnsupportedModel (module, op, source line, why) for what cannot be compiled."""
    with quiet():
        return _trace(source_or_config, max_context_len, is_embedder)


def _trace(source_or_config: ModelSource | PreTrainedConfig, max_context_len: int | None, is_embedder: bool) -> TracedModel:
    started = time.perf_counter()
    if isinstance(source_or_config, ModelSource):
        is_embedder = source_or_config.embedding is not None
        source_or_config = source_or_config.config
    config = copy.deepcopy(source_or_config)
    _refuse_quantized(config)
    skeleton = build_skeleton(config, is_embedder=is_embedder)
    rope_limit, notes = freeze_rope_tables(skeleton, max_context_len)
    capture(skeleton)
    replace_legacy_attention(skeleton)
    readable = _readable_names(skeleton)
    exported = _export(skeleton)
    graph = import_program(exported, readable)
    check_token_local(graph)
    context_len, more_notes = choose_context_len(config, graph, max_context_len, rope_limit)
    return TracedModel(
        graph=graph,
        config=config,
        architecture=type(skeleton).__name__,
        num_params=sum(param.numel() for param in skeleton.parameters()),
        max_context_len=context_len,
        param_shapes={param.name: tuple(int(dim) for dim in param.dims) for param in graph.params},
        notes=notes + more_notes,
        skeleton=skeleton,
        tied={alias: name for alias, name in readable.items() if alias != name},
        trace_seconds=time.perf_counter() - started,
        is_embedder=is_embedder,
    )


def auto_class(is_embedder: bool) -> Any:
    """The class that makes the model: with its language head, or without."""
    return AutoModel if is_embedder else AutoModelForCausalLM


def output_of(output: Any) -> torch.Tensor | None:
    """What a forward gives: logits `[1, num_tokens, vocab_size]`, or the last hidden state of a model without that head."""
    logits = getattr(output, "logits", None)
    return logits if logits is not None else getattr(output, "last_hidden_state", None)


def build_skeleton(config: PreTrainedConfig, *, is_embedder: bool = False) -> PreTrainedModel:
    """The model of `config` in float32: parameters are fake tensors that take no memory, buffers have their values."""
    try:
        with _ParametersOnMeta(), _register_parameters_on_meta():
            model = auto_class(is_embedder).from_config(config, dtype=torch.float32, attn_implementation="eager")
    except UnsupportedModel:
        raise
    except Exception as error:  # transformers and torch raise whatever their code meets
        raise blame(error, None, "transformers cannot build a model of this kind from this config") from error
    model.eval()
    model.requires_grad_(False)
    _make_fake(model)
    return model


class _ParametersOnMeta(TorchFunctionMode):
    """Uninitialised and big constant tensors of constructors take no memory; small ones (buffers) keep their values."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn) and kwargs.get("device") is None:
            shape = kwargs.get("size", args[0] if args and not isinstance(args[0], int) else args)
            if func is torch.empty or torch.Size(shape).numel() > BIG_TENSOR:
                kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


@contextmanager
def _register_parameters_on_meta() -> Iterator[None]:
    """Every parameter moves to the meta device as soon as a module gets it, so that initialising it costs nothing."""
    original = torch.nn.Module.register_parameter

    def register(module: torch.nn.Module, name: str, param: torch.nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = torch.nn.Parameter(param.data.to("meta"), requires_grad=False)
        original(module, name, param)

    torch.nn.Module.register_parameter = register  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = original  # type: ignore[method-assign]


def _make_fake(model: PreTrainedModel) -> None:
    """Parameters, buffers that come from the checkpoint and buffers without a value become fake CPU tensors; ties are kept."""
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    stored = set(model.state_dict())
    fakes: dict[int, tuple[torch.Tensor, torch.nn.Parameter]] = {}  # id → (the original, kept so that the id stays its own; its fake)

    def fake(tensor: torch.Tensor) -> torch.nn.Parameter:
        if id(tensor) not in fakes:
            with mode:
                fakes[id(tensor)] = (tensor, torch.nn.Parameter(torch.empty(tensor.shape, dtype=tensor.dtype), requires_grad=False))
        return fakes[id(tensor)][1]

    for path, module in model.named_modules():
        module._parameters.update({name: fake(param) for name, param in module._parameters.items() if param is not None})
        for name, buffer in module._buffers.items():
            full_name = f"{path}.{name}" if path else name
            if buffer is not None and (full_name in stored or buffer.device.type == "meta"):
                module._buffers[name] = fake(buffer).data


def _readable_names(model: PreTrainedModel) -> dict[str, str]:
    """Name of everything that a checkpoint gives → the first name of the same tensor (tied weights share one)."""
    first: dict[int, str] = {}
    stored = set(model.state_dict())
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in named if name in stored and tensor.is_floating_point()}


class _PackedForward(torch.nn.Module):
    """The function that is traced: token ids and positions of a packed batch → logits, or the last hidden state."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        positions = {"position_ids": position_ids} if self.takes_positions else {}
        output = self.model(input_ids=input_ids, use_cache=False, **positions)
        rows = output_of(output)
        if rows is None:
            raise UnsupportedModel(f"{type(self.model).__name__} returns neither logits nor hidden states", op="forward")
        return rows


def _export(model: PreTrainedModel) -> torch.export.ExportedProgram:
    """The exported program of a skeleton; parameters appear in it as `model.<name>`."""
    with next(model.parameters()).fake_mode:  # type: ignore[attr-defined]
        ids = torch.zeros(1, EXAMPLE_NUM_TOKENS, dtype=torch.int64)
        positions = torch.zeros(1, EXAMPLE_NUM_TOKENS, dtype=torch.int64)
    num_tokens = torch.export.Dim("num_tokens", min=2, max=MAX_NUM_TOKENS)
    dynamic = ({1: num_tokens}, {1: num_tokens})
    with watch_lengths(model) as fixed:
        try:
            with torch.no_grad():
                return torch.export.export(_PackedForward(model), (ids, positions), dynamic_shapes=dynamic, strict=False)
        except Exception as error:  # whatever the model's code or the exporter meets
            refusal = blame(error, model, "the model's code cannot be traced for a packed batch of any length")
            if refusal.source_line or not fixed:
                raise refusal from error
            why = "this module works for some numbers of tokens only, not for a packed batch of any length"
            raise UnsupportedModel(why, module=fixed[0][0], op=refusal.op, source_line=fixed[0][1]) from error


def _refuse_quantized(config: PreTrainedConfig) -> None:
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        settings = quantization if isinstance(quantization, dict) else quantization.to_dict()
        method = settings.get("quant_method", "an unknown method")
        raise UnsupportedModel(
            f"the checkpoint is already quantized with {method}; only bf16, fp16 and fp32 weights are read",
            op="quantization_config", source_line="config.json", hint="use the unquantized checkpoint of the same model",
        )  # fmt: skip
