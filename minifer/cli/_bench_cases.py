"""What `minifer bench` is to measure: models named one by one, a folder of them, or a list in a file."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from minifer.errors import InputError, MiniferError
from minifer.tools.bench import Case

KEYS = {"name", "model", "shapes", "dims", "set"}


def cases(arguments: argparse.Namespace, say: Callable[[str], None]) -> tuple[list[Case], list[str]]:
    """The cases in order, and what could not be prepared among those of a folder or a list (`say` is told too).
    A model named on the command line must be there: its errors are raised."""
    found = [Case(model, feeds(model, arguments, arguments.seed)) for model in arguments.models]
    problems = []
    for name, model, options in (*_of_folder(arguments), *_of_list(arguments)):
        if arguments.only and not re.search(arguments.only, name):
            continue
        try:
            if not Path(model).is_file():
                raise InputError(f"there is no file '{model}'")
            found.append(Case(model, feeds(model, options, arguments.seed), name))
        except (MiniferError, OSError) as error:
            problems.append(f"{name} is left out: {error}")
            say(problems[-1])
    if not found:
        raise InputError("there is nothing to measure: name a model, or give --nets or --spec")
    return found, problems


def feeds(model: str, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Random inputs for a model, the same for the same seed."""
    from minifer.cli._feeds import made_feeds
    from minifer.session import load

    with load(model, optimize=False, executor="reference") as session:
        return made_feeds(session, options, (), seed)


def _of_folder(arguments: argparse.Namespace) -> Iterator[tuple[str, str, argparse.Namespace]]:
    for folder in arguments.nets:
        if not Path(folder).is_dir():
            raise InputError(f"--nets takes a folder, and '{folder}' is none")
        for path in sorted(Path(folder).glob("*.onnx")):
            yield path.stem, str(path), argparse.Namespace(shape=[], dim=[], values=[])


def _of_list(arguments: argparse.Namespace) -> Iterator[tuple[str, str, argparse.Namespace]]:
    for spec in arguments.spec:
        folders = [*map(Path, arguments.folder), Path(spec).parent]
        for entry in read_list(spec):
            places = [folder / entry["model"] for folder in folders]
            model = next((place for place in places if place.is_file()), places[0])
            yield (
                entry.get("name") or model.stem,
                str(model),
                argparse.Namespace(
                    shape=[f"{name}={','.join(map(str, shape))}" for name, shape in entry.get("shapes", {}).items()],
                    dim=[f"{name}={size}" for name, size in entry.get("dims", {}).items()],
                    values=[f"{name}={value}" for name, value in entry.get("set", {}).items()],
                ),
            )


def read_list(path: str) -> Sequence[dict[str, Any]]:
    """The entries of a list of models (see docs/command-line.md). Raises InputError where it is none."""
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"'{path}' is no JSON: {error}") from error
    if not isinstance(entries, list):
        raise InputError(f"'{path}' must hold a list of models")
    for i, entry in enumerate(entries):
        where = f"entry {i} of '{path}'"
        if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
            raise InputError(f'{where} must be an object with a key "model"')
        if entry.keys() - KEYS:
            raise InputError(f"{where} has the key '{min(entry.keys() - KEYS)}'; known are {', '.join(sorted(KEYS))}")
        for key in ("shapes", "dims", "set"):
            if not isinstance(entry.get(key, {}), dict):
                raise InputError(f'"{key}" of {where} must be an object')
        for name, shape in entry.get("shapes", {}).items():
            if not isinstance(shape, list):
                raise InputError(f"the shape of '{name}' in {where} must be a list")
    return entries
