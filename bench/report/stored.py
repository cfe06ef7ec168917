"""A run as one JSON file, so that others can look at every sample, and two runs be compared."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from bench.model import Run

FORMAT = "nbdresize benchmark"
VERSION = 2
"""Of what a file holds: one more with each change after which files of before can't be read.

Version 1 had neither samples of figures nor the looks of a row, so nothing sound can be said of them.
"""


class Unreadable(Exception):
    """A file holds no run that this version can read; the message names the file."""


class _Stored(BaseModel):
    # Dataclasses below take this over: a file with anything unknown in it was not written by this version.
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    format: str
    version: int
    run: Run


class _Marked(BaseModel):
    """What every version's files have in common."""

    format: str
    version: int


def to_json(run: Run) -> str:
    return _Stored(format=FORMAT, version=VERSION, run=run).model_dump_json(indent=1) + "\n"


def from_json(text: str | bytes) -> Run:
    """The same run. Raises Unreadable."""
    try:
        marked = TypeAdapter(_Marked).validate_json(text)
    except ValidationError:
        raise Unreadable("this is no result of scripts/bench") from None
    if marked.format != FORMAT:
        raise Unreadable("this is no result of scripts/bench")
    if marked.version != VERSION:
        raise Unreadable(
            f"this is of version {marked.version}, and this scripts/bench reads version {VERSION}: measure it again, or"
            " use the scripts/bench that has made it"
        )
    try:
        return _Stored.model_validate_json(text).run
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Unreadable(f"this is a damaged result of scripts/bench: {place}: {first['msg']}") from None


def save(run: Run, path: Path) -> None:
    """The file is there whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(to_json(run))
    part.replace(path)


def load(path: Path) -> Run:
    """Raises Unreadable, also where there is no such file."""
    try:
        return from_json(path.read_bytes())
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from None
    except Unreadable as error:
        raise Unreadable(f"{path}: {error}") from None
