"""`fmo run` and `fmo chat` as processes on the scripted model."""

import signal
import subprocess
from pathlib import Path

from models.scripted import script_tag
from server.served import FMO, scripted_artifact


def fmo(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*FMO, *arguments], input=stdin, capture_output=True, text=True, timeout=120)


def test_run_writes_the_answer_to_stdout_and_figures_to_stderr() -> None:
    result = fmo("run", str(scripted_artifact()), script_tag("héllo 🙂") + "<|go|>")
    assert (result.returncode, result.stdout) == (0, "héllo 🙂\n")
    assert "tokens/s" in result.stderr


def test_run_reads_a_prompt_from_stdin_and_goes_through_the_chat_template() -> None:
    result = fmo("run", str(scripted_artifact()), "-", "--chat", stdin=script_tag("from stdin"))
    assert result.stdout == "from stdin\n"


def test_a_prompt_that_does_not_fit_is_an_error_of_the_user() -> None:
    result = fmo("run", str(scripted_artifact()), "x" * 10_000)
    assert result.returncode == 1 and "tokens" in result.stderr and "Traceback" not in result.stderr


def test_chat_answers_line_by_line_and_remembers() -> None:
    lines = [script_tag("first"), script_tag("second"), "/clear", script_tag("third"), "/exit", script_tag("never")]
    result = fmo("chat", str(scripted_artifact()), stdin="\n".join(lines))
    assert (result.returncode, result.stdout.split("\n")) == (0, ["first", "second", "third", ""])


def test_ctrl_c_stops_the_answer_and_not_the_conversation() -> None:
    chat = subprocess.Popen([*FMO, "chat", str(scripted_artifact())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert chat.stdin is not None and chat.stdout is not None
    chat.stdin.write(script_tag("long answer " * 250).encode() + b"\n")
    chat.stdin.flush()
    assert chat.stdout.read(5) == b"long "
    chat.send_signal(signal.SIGINT)
    output, errors = chat.communicate(script_tag("after").encode() + b"\n/exit\n", timeout=60)
    assert chat.returncode == 0 and output.endswith(b"after\n") and b"[stopped]" in errors


def test_help_of_the_serving_verbs_shows_two_examples() -> None:
    for verb in ("serve", "run", "chat"):
        result = fmo(verb, "--help")
        assert result.returncode == 0 and result.stdout.count(f"fmo {verb} build/") >= 2


def test_reasoning_is_set_apart_from_answers(tmp_path: Path) -> None:
    template = "{{ bos_token }}{{ messages[-1].content }}<|go|>{# <think> #}"
    (tmp_path / "template.jinja").write_text(template)
    options = ("--chat-template", str(tmp_path / "template.jinja"))
    lines = [script_tag("<think>first thought</think>\n\nfirst"), "/exit"]
    for result in (
        fmo("chat", str(scripted_artifact()), *options, stdin="\n".join(lines).replace("\n\n", "")),
        fmo("run", str(scripted_artifact()), "--chat", lines[0], *options),
    ):
        assert (result.returncode, result.stdout) == (0, "first\n") and "first thought" in result.stderr
