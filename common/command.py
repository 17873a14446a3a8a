"""The command line of every package: options from dataclasses (tyro), errors as one line."""

import dataclasses
import functools
import operator
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro


def run(program: str, commands: dict[str, tuple[type, Callable]], argv: list[str] | None = None):
    """`program NAME --options`: parse NAME's config dataclass and call its function with it.

    Wrong input (ValueError, OSError) becomes one line on stderr and exit code 2; a stop by the
    user (control-C) one line and 130. Everything else is a bug and keeps its traceback.
    """
    kinds = [Annotated[kind, tyro.conf.subcommand(name)] for name, (kind, _) in commands.items()]
    # tyro draws a subcommand per member of a union; with one member it would draw none.
    union = functools.reduce(operator.or_, kinds)
    config = tyro.cli(union, prog=f"python -m {program}", args=argv)
    call = next(call for kind, call in commands.values() if type(config) is kind)
    try:
        check_numbers(config)
        call(config)
    except (ValueError, OSError) as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(f"{program}: stopped {stop}".rstrip(), file=sys.stderr)
        sys.exit(130)


def check_numbers(config: Any) -> None:
    """ValueError for an option of the dataclass that no float32 or 64-bit integer holds, or NaN."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), field.name.replace("_", "-")
        if isinstance(value, float) and not abs(value) < 3e38:
            raise ValueError(f"--{name} must be a finite number, not {value}")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"--{name} is too large a number")


def check_out(out: Path) -> bool:
    """Before the work: can `out` be written? True for one .png file, False for a folder of them.

    Makes the folder; ValueError if it cannot hold files, or for another kind of file.
    """
    if out.suffix not in ("", ".png"):
        raise ValueError(f"out must be a .png file or a folder, not {out}")
    folder = out.parent if out.suffix else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = error.strerror
        raise ValueError(f"cannot write to {folder}: {why}; choose another out") from error
    if out.suffix and out.is_dir():
        raise ValueError(f"{out} is a folder; choose another out")
    return bool(out.suffix)
