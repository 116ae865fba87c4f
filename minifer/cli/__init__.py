"""The `minifer` command. One file of this package is one sub-command: a module without a leading underscore.

Such a module has a docstring (its first line is the help text), `add_arguments(parser)` and `run(arguments)`, which
returns the exit status. It imports what it needs inside `run`, so that `minifer --help` is quick.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
import warnings
from collections.abc import Sequence

from minifer.errors import MiniferError


def command_names() -> list[str]:
    """The sub-commands: the public modules of this package."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def make_parser() -> argparse.ArgumentParser:
    """The parser with all sub-commands."""
    from minifer import __version__

    parser = argparse.ArgumentParser(prog="minifer", description="Run and examine ONNX models.")
    parser.add_argument("--version", action="version", version=f"minifer {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in command_names():
        module = importlib.import_module(f"minifer.cli.{name}")
        text = (module.__doc__ or "").strip()
        command = commands.add_parser(
            name, help=text.splitlines()[0], description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0, 2 where something was wrong with the input, 130 on Ctrl-C.

    An error is one message on stderr. With the environment variable MINIFER_DEBUG set it is a full traceback.
    """
    options = make_parser().parse_args(arguments)
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")  # Pillow's; we refuse such images
    try:
        return options.run(options)
    except BrokenPipeError:  # the reader of our output has gone, as in `minifer info model | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (MiniferError, OSError) as error:
        return fail(error)
    except KeyboardInterrupt:
        return 130


def fail(error: Exception) -> int:
    """Print an error as a message (or raise it, with MINIFER_DEBUG set); returns exit status 2."""
    if os.environ.get("MINIFER_DEBUG", "0") not in ("", "0"):
        raise error
    print(f"minifer: {error}", file=sys.stderr)
    return 2
