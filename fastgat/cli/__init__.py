"""The command line: one file a command; options and printing only."""

import contextlib
import importlib
import importlib.metadata
import io
import os
import signal
import sys
from typing import Any

import click

from fastgat.errors import ConfigError, FastgatError, RankError, is_out_of_memory
from fastgat.options import suggestion
from fastgat.processes import ctrl_c, launched

COMMANDS = {
    "train": "Train a classifier.",
    "profile": "Time a training step: the textbook against fastgat.",
    "evaluate": "Measure a trained classifier: clean accuracy, attacks, a report card.",
    "export": "Export a trained classifier: safetensors, torch-export or ONNX.",
    "search": "Choose hyperparameters by validation accuracy.",
    "reproduce": "Run the paper's experiments and compare with its figures.",
    "data": "Find, fetch and verify data sets.",
    "recipes": "List published training recipes.",
    "info": "Show versions, devices, data sets and methods.",
}

LONGEST = 2000  # characters of an error message


class LazyGroup(click.Group):
    """Imports a command's module when that command is called: torch takes seconds, `--help` should not."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        # Ctrl-C ends the process at once: within an import, the exception that it raises comes out as any other.
        at_once = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with ctrl_c(signal.SIG_DFL) if at_once else contextlib.nullcontext():
            return getattr(importlib.import_module(f"fastgat.cli.{name}"), name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"no such command {args[0]!r}{suggestion(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(importlib.metadata.version("fastgat-trainer"), prog_name="fastgat")
def cli() -> None:
    """Generative adversarial training of image classifiers (Lee, Han and Lee 2017), fast."""


def main() -> None:
    """The `fastgat` command. Errors that a user can cause end in one line and the error's exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # paths that are not UTF-8 go out as the bytes that they are
            stream.reconfigure(errors="surrogateescape" if stream.encoding == "utf-8" else "backslashreplace")
    try:
        sys.exit(cli(prog_name="fastgat", standalone_mode=False))
    except FastgatError as error:
        _fail(str(error), error.exit_code, lost=isinstance(error, RankError) and error.lost)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.UsageError as error:
        _fail(error.format_message(), 2, error.ctx)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 1)
    except BrokenPipeError:
        # The reader of a pipe has gone, as `| head` does; the interpreter must not try to write there once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename or 'output'}: {error.strerror or error}", 1)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        _fail("out of memory: try a smaller --batch-size or network", 1)


def _one_of_several() -> bool:
    try:
        return launched()
    except ConfigError:  # which may be the error to tell
        return False


def _fail(message: str, exit_code: int, ctx: click.Context | None = None, *, lost: bool = False) -> None:
    message = " ".join(message.split())
    if len(message) > LONGEST:
        message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
    printable = (c if c.isprintable() or "\udc80" <= c <= "\udcff" else ascii(c)[1:-1] for c in message)
    line = "".join(printable)
    hint = f" (try `{ctx.command_path} --help`)" if ctx is not None else ""
    if _one_of_several():
        from fastgat.engine.ranks import claim_error_line  # imports torch

        told = claim_error_line(line, lost=lost)
        if told is not None:
            click.echo(f"fastgat: error: {told}{hint}", err=True)
        sys.stdout.flush()
        os._exit(exit_code)  # what is under way to other ranks must not be waited for
    click.echo(f"fastgat: error: {line}{hint}", err=True)
    sys.exit(exit_code)
