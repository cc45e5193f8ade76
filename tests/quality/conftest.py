"""One torch thread, as in the tests of the self-check; a tiny model packed in fp32 and bf16 stands for a reference and its quantization."""

import pytest
from self_check.compiled import Compiled, compile_tiny
from self_check.conftest import one_torch_thread  # noqa: F401  (a fixture that is used by being here)

from friendli_compile.quality.packed_run import Runnable
from friendli_compile.quality.probes import ProbeSet, sampled_probes


@pytest.fixture(scope="package")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return compile_tiny("llama", tmp_path_factory.mktemp("fp32"), "fp32")


@pytest.fixture(scope="package")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return compile_tiny("llama", tmp_path_factory.mktemp("bf16"), "bf16")


@pytest.fixture(scope="package")
def reference(fp32: Compiled) -> Runnable:
    return Runnable.open(fp32.artifact_dir)


@pytest.fixture(scope="package")
def rounded(bf16: Compiled) -> Runnable:
    return Runnable.open(bf16.artifact_dir)


@pytest.fixture(scope="package")
def probes(reference: Runnable) -> ProbeSet:
    return sampled_probes(reference, [1], max_context_len=512, num_tokens=640, sample_len=65)
