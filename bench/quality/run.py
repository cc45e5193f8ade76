"""What quantization costs the embedded model, on held-out text: appends a line per scheme to bench/results/<device>/quality.jsonl.

    python bench/quality/run.py [--schemes 8bit 4bit 4bit+plain int8 fp8] [--tokens 16000] [--model FOLDER --text FILE]

Each scheme is packed as `fmo compile --quantize` packs it and compared with the unquantized model in the C++ executor, token by token:
KL divergence, perplexity, most likely token, with 95 % intervals. `+plain` after a scheme: plain rounding to nearest, without the search
for scales; `+kv8`: with an int8 KV cache. The text is the files of the standard library that the model was not trained on (of this
interpreter; the line has a hash of them), cut into windows as long as the context.
"""

import argparse
import contextlib
import hashlib
import io
import json
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from friendli_runtime.tokenizer.tokenizer import Tokenizer
from machine import ROOT, commit, cpu_name, results_dir

from friendli_compile.artifact import writer
from friendli_compile.artifact.folder import OutputFolder
from friendli_compile.compile import STORAGE_DTYPE, CompileOptions, build_artifact, choose_dtype
from friendli_compile.frontend.checkpoint import Checkpoint
from friendli_compile.frontend.source import load_source
from friendli_compile.frontend.trace import trace_model
from friendli_compile.passes import run_pipeline
from friendli_compile.plan.planner import make_plan
from friendli_compile.progress import Progress
from friendli_compile.quality.compare import Reference, compare
from friendli_compile.quality.packed_run import Runnable
from friendli_compile.quality.probes import ProbeSet
from friendli_compile.quality.record import rounded
from friendli_compile.quantization import quantize_plan
from friendli_compile.quantize.assign import parse_policy
from friendli_compile.quantize.round_weight import Rounding

EXAMPLE = ROOT / "examples" / "stdlib-coder"
SCHEMES = ("none+kv8", "8bit", "int8", "fp8", "4bit", "4bit+plain", "4bit+kv8")


class Model:
    """A traced checkpoint that can be packed in any scheme."""

    def __init__(self, folder: Path) -> None:
        self.source = load_source(str(folder))
        self.traced = trace_model(self.source)

    def pack(self, scheme: str, folder: Path) -> Runnable:
        """`scheme`: what --quantize takes, and the suffixes of the header."""
        name, *suffixes = scheme.split("+")
        if "plain" in suffixes:
            self._pack_plainly(name, folder)
        else:
            options = CompileOptions(model=str(self.source.folder), output_dir=folder, quantize=name, quality=None, self_check=False)
            with OutputFolder(folder, replace=False) as output, contextlib.redirect_stderr(io.StringIO()):
                build_artifact(output, options, self.source, self.traced, Progress())
        packed = Runnable.open(folder)
        return Runnable({**packed.plan, "kv_dtype": "i8"}, packed.weights) if "kv8" in suffixes else packed

    def _pack_plainly(self, name: str, folder: Path) -> None:
        """Every weight rounded to the nearest code of a scale that holds the largest."""
        checkpoint = Checkpoint(self.source, self.traced)
        graph, dtype = run_pipeline(self.traced.graph), STORAGE_DTYPE[choose_dtype(None, checkpoint, self.traced, [])]
        base = make_plan(graph, storage_dtype=dtype, max_context_len=self.traced.max_context_len)
        plan = quantize_plan(graph, base, parse_policy(name), dtype, checkpoint.read).plan
        folder.mkdir()
        writer.write_plan(folder, plan)
        writer.write_weights(folder, plan, checkpoint.read, rounding=Rounding(search=False))


def held_out_text() -> str:
    """The files of the standard library that the embedded model did not see."""
    sys.path.insert(0, str(EXAMPLE))
    from corpus import read_stdlib

    names = set(json.loads((EXAMPLE / "model" / "report.json").read_text())["corpus"]["held_out_files"])
    found = {file.path: file.text for file in read_stdlib()}
    if missing := sorted(names - set(found)):
        sys.exit(
            f"this Python {platform.python_version()} lacks the held-out files {missing}: use the version that model/report.json names"
        )
    return "".join(found[name] for name in sorted(names))


def windows(tokens: list[int], length: int, num_tokens: int) -> ProbeSet:
    """`num_tokens` in windows, spread evenly over the text."""
    cut = [np.array(tokens[start : start + length + 1], np.int32) for start in range(0, len(tokens) - length, length)]
    picks = np.unique(np.linspace(0, len(cut) - 1, min(len(cut), max(1, num_tokens // length))).round().astype(int))
    return ProbeSet(tuple(cut[pick][:length] for pick in picks), ("held-out",) * len(picks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), metavar="SCHEME")
    parser.add_argument("--tokens", type=int, default=16_000)
    parser.add_argument("--model", type=Path, default=EXAMPLE / "model")
    parser.add_argument("--text", type=Path, help="Default: the held-out files of the embedded model.")
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8") if args.text else held_out_text()
    model = Model(args.model)
    probes = windows(Tokenizer.load(args.model).encode(text, add_special_tokens=False), model.traced.max_context_len, args.tokens)
    facts = {
        "model": args.model.parent.name,
        "commit": commit(),
        "cpu": cpu_name(),
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    with tempfile.TemporaryDirectory() as folder:
        reference = Reference(model.pack("none", Path(folder) / "reference"), probes.sequences)
        for number, scheme in enumerate(args.schemes):
            packed = model.pack(scheme, Path(folder) / str(number))
            figures = compare(reference, packed, probes).overall
            num_bytes = sum(size for name, (_, _, size) in packed.weights.items() if not name.startswith("pad."))
            line = {"scheme": scheme, "weight_bytes": num_bytes, **facts, **rounded(figures.to_json())}
            with (results_dir() / "quality.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(table_row(line), flush=True)


def table_row(line: dict[str, object]) -> str:
    """A row of the table of docs/quantization.md."""
    kl, drift, top1 = (line[key] for key in ("mean_kl", "ppl_drift_percent", "top1_agreement"))
    cells = [
        str(line["scheme"]),
        f"{line['weight_bytes'] / 1e6:.2f} MB",  # type: ignore[operator]
        f"{kl['value']:.2g} ({kl['low']:.2g} … {kl['high']:.2g})",  # type: ignore[index]
        f"{drift['value']:+.2f} % ({drift['low']:+.2f} … {drift['high']:+.2f})",  # type: ignore[index]
        f"{100 * top1['value']:.1f} % ({100 * top1['low']:.1f} … {100 * top1['high']:.1f})",  # type: ignore[index]
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
