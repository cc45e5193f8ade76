"""The command `fmo`: a table of verbs, each in a file of its own that is imported only when it is used.

So `fmo serve` never imports torch, and `fmo --help` imports nothing. Answers go to stdout, progress and errors to stderr.
Exit codes: 0 ok, 1 the user can mend it, 2 usage, 3 a bug of ours, 130 interrupted.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import os
import re
import sys
import traceback
from dataclasses import dataclass

import click
from friendli_runtime.errors import FmoError

EXIT_USER, EXIT_USAGE, EXIT_BUG, EXIT_INTERRUPTED = 1, 2, 3, 130


@dataclass(frozen=True, slots=True)
class Verb:
    """A click command `attribute` in `module`; `summary` is its line in `fmo --help`."""

    module: str
    attribute: str
    summary: str


VERBS: dict[str, Verb] = {
    "compile": Verb("compile", "compile_", "Compile a Hugging Face model into an artifact."),
    "check": Verb("check", "check", "Say whether a model can be compiled, and how much memory it needs."),
    "serve": Verb("serve", "serve", "Serve an artifact over an OpenAI-compatible API."),
    "run": Verb("run", "run", "Answer one prompt in the terminal."),
    "chat": Verb("chat", "chat", "Chat with a model in the terminal."),
    "check-template": Verb("check_template", "check_template", "Show how a model writes tool calls and reasoning, and test it."),
    "explain": Verb("explain", "explain", "Show what an artifact holds: memory, kernels, self-check."),
    "bench": Verb("bench", "bench", "Measure an artifact beside the limits of this machine."),
    "doctor": Verb("doctor", "doctor", "Show what this machine can do, and what is missing."),
    "version": Verb("version", "version", "Print the versions of fmo and what it builds on."),
}


class LazyGroup(click.Group):
    """Looks verbs up in VERBS and imports only the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        command = getattr(importlib.import_module(f"{__name__}.{verb.module}"), verb.attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], VERBS, 1)
            raise click.UsageError(f"there is no verb '{args[0]}'." + (f" Did you mean '{close[0]}'?" if close else ""), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n  fmo compile examples/stdlib-coder/model --output-dir build/stdlib-coder\n  fmo serve build/stdlib-coder",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=lambda *given: _print_version(*given), help="Print the version."
)
def fmo() -> None:
    """Ahead-of-time compiler and slim runtime for large language models."""


def _print_version(ctx: click.Context, _option: click.Parameter, is_wanted: bool) -> None:
    if is_wanted:
        from ..versions import installed_versions

        click.echo(f"fmo {installed_versions()['fmo'] or 'not installed'}")
        ctx.exit()


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_cli(sys.argv[1:]))


def run_cli(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code; errors are printed, never raised."""
    try:
        result = fmo.main(arguments, prog_name="fmo", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.UsageError as error:
        error.show()
        return EXIT_USAGE
    except click.ClickException as error:
        error.show()
        return EXIT_USER
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has gone: not our mistake, and nothing to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return report(error)


def _extra_with(package: str) -> str:
    """Which extra of ours brings `package`."""
    for requirement in importlib.metadata.requires("fmo") or ():
        if found := re.fullmatch(rf"{re.escape(package)}\b.*extra == [\"'](\w+)[\"'].*", requirement, re.IGNORECASE):
            return found[1]
    return "serve"


def report(error: Exception) -> int:
    """Prints what the user has to know of an exception; returns the exit code."""
    if isinstance(error, FmoError):
        click.echo(f"error: {error}", err=True)
        if os.environ.get("FMO_DEBUG"):
            traceback.print_exception(error)
        return error.exit_code
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("friendli"):
        extra = _extra_with(error.name.split(".")[0])
        click.echo(f"error: this verb needs the package '{error.name}'\n  try: pip install 'fmo[{extra}]'", err=True)
        return EXIT_USER
    traceback.print_exception(error)
    click.echo(
        f"error: {type(error).__name__}: {error}\n  where: inside fmo; this is a bug\n  try: report it with the lines above", err=True
    )
    return EXIT_BUG
