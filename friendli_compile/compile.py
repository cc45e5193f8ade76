"""The compile driver: a Hugging Face model in, an artifact out, or an error and nothing.

    source ─▶ trace ─▶ passes ─▶ plan ─▶ quantize ─▶ pack ─▶ quality gate ─▶ self-check ─▶ commit

Everything is written into a temporary folder beside the target, which gets the final name only after the self-check has passed.
The same model, options and versions give the same bytes. What the artifact holds is said by docs/artifact-format.md.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from friendli_runtime.errors import ConfigError
from friendli_runtime.loaded_model import BLOCK_SIZE, kv_layers_block_bytes
from friendli_runtime.tools.check import check_folder

from .artifact import writer
from .artifact.folder import OutputFolder
from .calibration import Calibration
from .errors import FmoError, SourceError, UnsupportedModel
from .frontend.checkpoint import Checkpoint
from .frontend.source import ModelSource, load_source
from .frontend.trace import TracedModel, trace_model
from .ir.graph import Graph, GraphError
from .lora.fuse import FusedAdapters, fuse_adapters
from .passes import run_pipeline
from .plan.model import Plan
from .plan.planner import make_plan
from .progress import Phase, Progress, debug_level
from .quality.gate import QualityOptions
from .quality.probes import Vocabulary, read_probe_file
from .quality.record import SKIPPED, for_manifest
from .quality_gate import ModelPackings, measure_quality, raised_line, summary_line
from .quantization import Quantized, assign_schemes, needs_inputs, quantize_plan, scheme_counts
from .quantize.assign import Assigned, Policy, parse_policy
from .quantize.round_weight import Rounding
from .self_check import SelfCheckResult, run_self_check
from .versions import installed_versions

DTYPES = ("fp32", "bf16")
STORAGE_DTYPE = {"fp32": "f32", "bf16": "bf16"}
TARGETS = ("cpu",)
GENERIC_FOLDER_NAMES = ("model", "checkpoint", "hf", "final", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileOptions:
    """What `fmo compile` takes."""

    model: str  # folder or hub id
    output_dir: Path
    dtype: str | None = None  # "fp32", "bf16"; None: what the checkpoint stores
    target: str = "cpu"
    max_context_len: int | None = None  # tokens; None: as long as the config allows
    name: str | None = None  # served model name; None: after the folder or hub id
    revision: str | None = None
    quantize: str | None = None  # a preset or a scheme (docs/quantization.md); None: "none"
    quantize_layers: tuple[str, ...] = ()  # PATTERN=SCHEME, later ones win
    fuse_lora: tuple[str, ...] = ()  # PEFT adapters, PATH or PATH:STRENGTH, merged before anything reads the weights
    quality: QualityOptions | None = field(default_factory=QualityOptions)  # None: what quantization costs is not measured
    self_check: bool = True
    force: bool = False  # replace an artifact that is there


@dataclass(frozen=True, slots=True)
class CompileReport:
    """What was compiled. `to_json` has times too; report.json in the artifact has none."""

    artifact: Path
    manifest: dict[str, Any]
    report: dict[str, Any]
    seconds: dict[str, float]
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "artifact": str(self.artifact),
            "seconds": self.seconds,
            "notes": self.notes,
            "manifest": self.manifest,
            "report": self.report,
        }


def compile_model(options: CompileOptions, progress: Progress | None = None) -> CompileReport:
    """Compiles a model. Raises FmoError (three parts) and leaves nothing behind when it fails."""
    progress = progress or Progress()
    _require_sense(options)
    with OutputFolder(options.output_dir, replace=options.force) as folder:
        with progress.phase("load"):
            source = load_source(options.model, revision=options.revision)
        with progress.phase("trace") as phase:
            traced = trace_model(source, max_context_len=options.max_context_len)
            phase.detail = f"{traced.architecture}, {traced.num_params / 1e6:,.1f} M parameters, {len(traced.graph.nodes)} nodes"
        return build_artifact(folder, options, source, traced, progress)


def build_artifact(
    folder: OutputFolder, options: CompileOptions, source: ModelSource, traced: TracedModel, progress: Progress
) -> CompileReport:
    """Fills the open `folder` from a traced model, checks the result and commits it."""
    _require_servable(options, traced)
    notes: list[str] = []
    fused = fuse_adapters(options.fuse_lora, traced)
    checkpoint = Checkpoint(source, traced, fused.edits)
    checkpoint.verify()
    _verify_fused(fused, checkpoint, progress)
    dtype = choose_dtype(options.dtype, checkpoint, traced, notes)
    graph, base = plan_model(traced, dtype, progress)
    policy = parse_policy(options.quantize or "none", options.quantize_layers)
    calibration = Calibration(folder.path / "calibration")
    packings = _packings(folder.path, graph, base, calibration, checkpoint, traced, dtype)
    folder.require_space(disk_bytes(graph, base, policy, dtype, packings, has_gate=options.quality is not None))
    if policy.quantizes:
        _calibrate(calibration, packings, assign_schemes(graph, base, policy), _vocabulary(source, traced), traced, progress)
        packings.policy, packings.quantized = policy, _quantize(graph, base, policy, calibration, dtype, checkpoint, progress)
    vectors, call_notes = _call_vectors(source)
    notes += [*traced.notes, *packings.quantized.notes, *_tokenizer_notes(source), *call_notes]
    for note in notes:
        progress.note(note)
    with progress.phase("pack") as phase:
        _pack(folder.path, packings.quantized.plan, checkpoint, Rounding(inputs=calibration.inputs), phase)
        writer.copy_tokenizer(folder.path, source.tokenizer_files)
        writer.write_call_vectors(folder.path, vectors)
    head = _manifest_head(options, source, traced, dtype)
    if fused.adapters:
        head["provenance"]["fused_adapters"] = fused.provenance()
    quality: dict[str, Any] = {}
    if policy.quantizes:
        quality = _measure_quality(options, packings, source, traced, notes, progress)
        policy = packings.policy
        head["model"]["quantization"] = _quantization_facts(policy, packings.quantized)
        head["quality"] = for_manifest(quality)
    packings.discard()
    calibration.discard()
    plan = packings.quantized.plan

    def check(phase: Phase) -> SelfCheckResult:
        report_done = lambda what, done: phase.update(done, what)  # noqa: E731
        return run_self_check(folder.path, source, traced, checkpoint, dtype=dtype, plan=plan, policy=policy, progress=report_done)

    head["self_check"] = _self_check(options, check, progress)
    report = make_report(plan, notes) | {"self_check": head["self_check"]} | ({"quality": quality} if quality else {})
    with progress.phase("write"):
        writer.write_report(folder.path, report)
        writer.write_manifest(folder.path, head)
        folder.commit()
    return CompileReport(folder.target, head, report, dict(progress.seconds), notes)


def plan_model(traced: TracedModel, dtype: str, progress: Progress) -> tuple[Graph, Plan]:
    """Passes and planning, without quantization: the graph after all passes, and its plan; `dtype` is fp32 or bf16."""
    with progress.phase("passes") as phase:
        graph = _run_passes(traced)
        phase.detail = f"{len(graph.nodes)} nodes"
    with progress.phase("plan") as phase:
        plan = make_plan(graph, storage_dtype=STORAGE_DTYPE[dtype], max_context_len=traced.max_context_len, vocab_size=traced.vocab_size)
        phase.detail = f"{len(plan.calls)} calls, {sum(w.num_bytes for w in plan.weights) / 1e6:,.1f} MB of weights"
    if debug_level() >= 2:
        _print_calls(plan)
    return graph, plan


def disk_bytes(graph: Graph, base: Plan, policy: Policy, dtype: str, packings: ModelPackings, *, has_gate: bool) -> int:
    """What compiling will write at most at one time: the artifact and, beside it, the reference that calibration and the gate run."""
    quantized = quantize_plan(graph, base, policy, STORAGE_DTYPE[dtype], read=None)
    num_bytes = sum(spec.num_bytes for spec in quantized.plan.weights)
    if policy.quantizes and (has_gate or any(map(needs_inputs, quantized.schemes.values()))):
        num_bytes += packings.reference_bytes()
    return num_bytes


def _verify_fused(fused: FusedAdapters, checkpoint: Checkpoint, progress: Progress) -> None:
    """Every merged layer against PEFT's formula."""
    if fused.adapters:
        with progress.phase("fuse") as phase:
            error = fused.verify(checkpoint.read_unedited, phase.update)
            names = ", ".join(adapter.name for adapter in fused.adapters)
            phase.detail = f"{len(fused.merges)} layers changed by {names}; largest relative error {error:.2g}"


def _calibrate(
    calibration: Calibration, packings: ModelPackings, assigned: Assigned, vocabulary: Vocabulary, traced: TracedModel, progress: Progress
) -> None:
    """Collects what the layers multiply, of those weights whose rounding gains from it."""
    names = [name for name, scheme in assigned.schemes.items() if needs_inputs(scheme)]
    if names:
        with progress.phase("calibrate") as phase:
            reference = packings.reference()
            count = calibration.collect(reference, names, vocabulary, traced.max_context_len, traced.num_params, phase.update)
            phase.detail = f"{len(names)} weights, {count} tokens that the model drew"


def _quantize(
    graph: Graph, base: Plan, policy: Policy, calibration: Calibration, dtype: str, checkpoint: Checkpoint, progress: Progress
) -> Quantized:
    with progress.phase("quantize") as phase:
        quantized = quantize_plan(graph, base, policy, STORAGE_DTYPE[dtype], checkpoint.read, calibration.errors, phase.update)
        counts = ", ".join(f"{count} {scheme}" for scheme, count in scheme_counts(quantized.schemes).items())
        phase.detail = f"{counts}; {sum(w.num_bytes for w in quantized.plan.weights) / 1e6:,.1f} MB of weights"
    return quantized


def _packings(
    folder: Path, graph: Graph, base: Plan, calibration: Calibration, checkpoint: Checkpoint, traced: TracedModel, dtype: str
) -> ModelPackings:
    """What calibration and the quality gate may pack, in the same way as the artifact is; nothing is quantized yet."""

    def quantize(other: Policy, storage_dtype: str) -> Quantized:
        plain = make_plan(graph, storage_dtype=storage_dtype, max_context_len=traced.max_context_len, vocab_size=traced.vocab_size)
        return quantize_plan(graph, plain, other, storage_dtype, checkpoint.read, calibration.errors)

    def write(target: Path, plan: Plan) -> None:
        writer.write_plan(target, plan)
        writer.write_weights(target, plan, checkpoint.read, rounding=Rounding(inputs=calibration.inputs))

    source_dtype = choose_dtype(None, checkpoint, traced, [])
    dtypes = {"dtype": STORAGE_DTYPE[dtype], "source_dtype": STORAGE_DTYPE[source_dtype]}
    return ModelPackings(folder, Policy(), Quantized(base), quantize=quantize, write=write, **dtypes)


def _measure_quality(
    options: CompileOptions, packings: ModelPackings, source: ModelSource, traced: TracedModel, notes: list[str], progress: Progress
) -> dict[str, Any]:
    """What the report records; raises QualityGateFailed over the budget. With --auto-mixed the artifact may have been packed again."""
    if options.quality is None:
        progress.warn("--no-quality: nobody has measured what quantization costs this model")
        return dict(SKIPPED)
    with progress.phase("quality") as phase:
        record = measure_quality(
            packings,
            options.quality,
            tokenizer_file=next((path for path in source.tokenizer_files if path.name == "tokenizer.json"), None),
            vocabulary=_vocabulary(source, traced),
            max_context_len=traced.max_context_len,
            num_params=traced.num_params,
            progress=lambda what, done: phase.update(done, what),
        )
        phase.detail = summary_line(record)
    for warning in record["warnings"]:
        progress.warn(f"quantization changes this model a lot: {warning}; fmo explain --quality names the layers")
    if record["raised"]:
        notes.append(f"--auto-mixed raised {raised_line(record)}")
        progress.note(notes[-1])
    return record


def _vocabulary(source: ModelSource, traced: TracedModel) -> Vocabulary:
    vocab_size = min(traced.vocab_size, int(traced.config.get_text_config().vocab_size))
    special = special_token_ids(source, vocab_size)
    named = [special["bos_token_id"], special["pad_token_id"], *special["eos_token_ids"]]
    return Vocabulary(vocab_size, special["bos_token_id"], frozenset(token for token in named if token is not None))


def _require_sense(options: CompileOptions) -> None:
    """Raises FmoError for options that contradict each other, before anything is read."""
    policy = parse_policy(options.quantize or "none", options.quantize_layers)
    quality = options.quality
    if quality is None:
        return
    if not policy.quantizes and quality != QualityOptions():
        what = "a quality budget or probe was given, but nothing is quantized"
        raise FmoError(what, hint="add --quantize, e.g. --quantize 4bit, or leave --max-kl, --min-top1, --probe… away")
    if quality.auto_mixed and not quality.budget.is_given:
        raise FmoError("--auto-mixed has no budget to meet", hint="add --max-kl, --max-ppl-drift or --min-top1")
    if quality.probe is not None:
        read_probe_file(quality.probe)


def _require_servable(options: CompileOptions, traced: TracedModel) -> None:
    """What a model of embeddings cannot have: the quality gate compares next tokens, of which it has none; adapters name other modules."""
    asked = (
        "--quantize" if (options.quantize or "none") != "none" or options.quantize_layers else "--fuse-lora" if options.fuse_lora else ""
    )
    if traced.is_embedder and asked:
        raise FmoError(f"{asked} is for models that write text; '{options.model}' gives embeddings", hint=f"leave {asked} away")


def _quantization_facts(policy: Policy, quantized: Quantized) -> dict[str, Any]:
    """What the manifest says of a quantized model: what was asked for, and how many weights have which scheme."""
    overrides = [f"{pattern}={scheme}" for pattern, scheme in policy.overrides]
    return {"asked": policy.text, "layers": overrides, "schemes": scheme_counts(quantized.schemes)}


def _run_passes(traced: TracedModel) -> Graph:
    try:
        return run_pipeline(traced.graph)
    except GraphError as error:
        raise UnsupportedModel(error.what, source_line=error.where, hint=error.try_) from error


def choose_dtype(wanted: str | None, checkpoint: Checkpoint, traced: TracedModel, notes: list[str]) -> str:
    """`wanted`, or what most parameters of the checkpoint are stored as; half precision becomes fp32, which holds it exactly."""
    if wanted is not None:
        if wanted not in DTYPES:
            raise FmoError(f"unknown dtype '{wanted}'", hint=f"choose one of {', '.join(DTYPES)}")
        return wanted
    elements = Counter[str]()
    for name, shape in traced.param_shapes.items():
        elements[checkpoint.source_dtype(name)] += int(np.prod(shape))
    stored = elements.most_common(1)[0][0] if elements else "f32"
    if stored == "f16":
        notes.append("the checkpoint is fp16; it is compiled as fp32, which holds it exactly (--dtype bf16 halves the size and rounds)")
    return "bf16" if stored == "bf16" else "fp32"


def make_report(plan: Plan, notes: list[str]) -> dict[str, Any]:
    """report.json: memory and kernels, as far as the compiler knows them. Free of times, so that artifacts are reproducible."""
    per_op: dict[str, dict[str, int]] = {}
    weight_bytes = {spec.name: spec.num_bytes for spec in plan.weights}
    for call in plan.calls:
        entry = per_op.setdefault(call.op, {"calls": 0, "weight_bytes": 0})
        entry["calls"] += 1
        entry["weight_bytes"] += sum(weight_bytes[str(v.id)] for v in call.inputs if v is not None and v.space == "weight")
    by_dtype = Counter[str]()
    for spec in plan.weights:
        by_dtype[f"{spec.dtype} {spec.layout}"] += spec.num_bytes
    return {
        "memory": {
            "weight_bytes": sum(weight_bytes.values()),
            "weight_bytes_by_layout": dict(sorted(by_dtype.items())),
            "kv_bytes_per_token": kv_bytes_per_token(plan, plan.kv_dtype),
            "activation_bytes_per_token": plan.arenas["num_tokens"],
            "activation_bytes_per_logit_row": plan.arenas["num_logits"],
        },
        "ops": dict(sorted(per_op.items())),
        "notes": notes,
    }


def kv_bytes_per_token(plan: Plan, kv_dtype: str) -> int:
    """Bytes that one token takes in the KV cache over all layers, with padding and scales; `kv_dtype`: f32, bf16 or i8."""
    layers = [asdict(layer) for layer in plan.kv_layers]
    return kv_layers_block_bytes(layers, kv_dtype) // BLOCK_SIZE


def _pack(folder: Path, plan: Plan, checkpoint: Checkpoint, rounding: Rounding, phase: Phase) -> None:
    total = max(1, sum(spec.num_bytes for spec in plan.weights))
    writer.write_plan(folder, plan)
    on_bytes = lambda done: phase.update(done / total, f"{done / 1e6:,.0f} MB")  # noqa: E731
    num_bytes = writer.write_weights(folder, plan, checkpoint.read, on_bytes, rounding)
    phase.detail = f"{num_bytes / 1e6:,.1f} MB"


def _self_check(options: CompileOptions, check: Callable[[Phase], SelfCheckResult], progress: Progress) -> dict[str, Any]:
    """What the manifest records; raises SelfCheckFailed on disagreement."""
    if not options.self_check:
        progress.warn("--no-self-check: nobody has compared this artifact with transformers; its numbers may be wrong")
        return {"status": "skipped"}
    with progress.phase("self-check") as phase:
        result = check(phase)
        phase.detail = f"max abs error {result.max_abs_error:.2g} (tolerance {result.tolerance:.2g}) over {result.num_probe_tokens} tokens"
    return {key: value for key, value in result.to_json().items() if key != "seconds"}


def _manifest_head(options: CompileOptions, source: ModelSource, traced: TracedModel, dtype: str) -> dict[str, Any]:
    config_bytes = (source.folder / "config.json").read_bytes()
    versions = installed_versions()
    return {
        "fmo_version": versions["fmo"],
        "target": {"device": options.target, "arch": "x86-64", "isa_min": "scalar"},
        "model": {
            "name": options.name or model_name(options.model),
            "architecture": traced.architecture,
            "model_type": traced.config.model_type,
            "dtype": dtype,
            "vocab_size": traced.vocab_size,
            "max_context_len": traced.max_context_len,
            "num_params": traced.num_params,
            **special_token_ids(source, traced.vocab_size),
            **_embedding_facts(source, traced),
        },
        "provenance": {
            "config_sha256": hashlib.sha256(config_bytes).hexdigest(),
            "torch": versions["torch"],
            "transformers": versions["transformers"],
        },
    }


def _embedding_facts(source: ModelSource, traced: TracedModel) -> dict[str, Any]:
    if source.embedding is None:
        return {}
    size = int(traced.graph.outputs[0].dims[-1])
    return {"embedding": {"size": size, "pooling": source.embedding.pooling, "normalized": source.embedding.is_normalized}}


def model_name(model: str) -> str:
    """The hub id as it is; of a folder its name, or its parent's where the name says nothing."""
    path = Path(model).expanduser()
    if not path.is_dir():
        return model
    path = path.resolve()
    return path.parent.name if path.name.lower() in GENERIC_FOLDER_NAMES and path.parent.name else path.name


def special_token_ids(source: ModelSource, vocab_size: int) -> dict[str, Any]:
    """bos, eos (always a list) and pad: what generation_config.json says, else config.json."""
    found: dict[str, Any] = {key: getattr(source.config, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    path = source.folder / "generation_config.json"
    if path.is_file():
        try:
            generation = json.loads(path.read_bytes())
        except ValueError as error:
            raise SourceError(
                f"'{path.name}' is not JSON: {error}", where=str(path), hint="download the file again, or remove it"
            ) from None
        found |= {key: value for key, value in generation.items() if value is not None} if isinstance(generation, dict) else {}
    bos, eos, pad = (_token_ids(found[key], vocab_size) for key in ("bos_token_id", "eos_token_id", "pad_token_id"))
    return {"bos_token_id": bos[0] if bos else None, "eos_token_ids": eos, "pad_token_id": pad[0] if pad else None}


def _token_ids(value: Any, vocab_size: int) -> list[int]:
    """The ids among `value` (a number, a list, nothing) that are in the vocabulary: configs write -1 for "none"."""
    values = value if isinstance(value, list) else [value]
    return [token for token in values if type(token) is int and 0 <= token < vocab_size]


def _tokenizer_notes(source: ModelSource) -> list[str]:
    names = {path.name for path in source.tokenizer_files}
    if "tokenizer.json" in names:
        return (
            []
            if source.embedding is not None or _has_chat_template(source, names)
            else ["the checkpoint has no chat template: completions work, chat requests are refused"]
        )
    note = "the checkpoint has no tokenizer.json: the artifact can be served with token ids, not with text"
    if names & {"tokenizer.model", "vocab.json", "vocab.txt"}:
        note += "; transformers can make one: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    return [note]


def _call_vectors(source: ModelSource) -> tuple[list[dict[str, Any]], list[str]]:
    """Tool calls as the chat template writes them, tried out; and notes on what is not read back."""
    names = {path.name for path in source.tokenizer_files}
    if source.embedding is not None or "tokenizer.json" not in names or not _has_chat_template(source, names):
        return [], []
    try:
        report = check_folder(source.folder)
    except ConfigError as error:
        return [], [f"the chat template was not tried out: {error.what}"]
    notes = [f"tool calls of the chat template are not read back ({len(report.failures)} of {report.num_vectors}): fmo check-template"]
    return report.vectors, notes if report.failures else []


def _has_chat_template(source: ModelSource, names: set[str]) -> bool:
    if names & {"chat_template.jinja", "chat_template.json"}:
        return True
    path = source.folder / "tokenizer_config.json"
    try:
        return bool(json.loads(path.read_bytes()).get("chat_template")) if path.is_file() else False
    except (ValueError, AttributeError) as error:
        raise SourceError(
            f"'{path.name}' is not a JSON object: {error}", where=str(path), hint="download the file again, or remove it"
        ) from None


def _print_calls(plan: Plan) -> None:
    for number, call in enumerate(plan.calls):
        operands = ", ".join("-" if v is None else f"{v.space}:{v.id}{list(v.dims)}{v.dtype}" for v in call.inputs)
        outputs = ", ".join(f"{v.space}:{v.id}{list(v.dims)}" for v in call.outputs)
        print(f"{number:5} {call.op:<20} {operands} -> {outputs}", file=sys.stderr)
