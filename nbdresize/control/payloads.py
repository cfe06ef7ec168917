"""Documents in the shapes of RFD 154, read as requests: strictly, since a key that is overlooked may cost a disk.

Sizes in them are in mebibytes (MiB); in what comes out of here in bytes, as everywhere. Numbers may come as strings
and as floats without a fraction (RFD 154 has them coerced), nothing else as anything else.
"""

import difflib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from nbdresize.control import names
from nbdresize.control.model import DiskChanges, DiskUpdate
from nbdresize.control.size_requests import is_number, shown_number
from nbdresize.errors import InvalidArgument
from nbdresize.units import MAX_SIZE, REMAINING, SizeRequest, format_size

MOST_BYTES = 1 << 20
"""Of a document: far more than any that makes sense."""

_MIB = 1 << 20
_DIGITS = re.compile(r"[0-9]{1,40}", re.ASCII)
_VOLUME = re.compile(r"(?P<vm>.+)-(?P<disk>disk[0-9])-[0-9a-f]{8}\.raw", re.ASCII)
_LONGEST_NUMBER = 100
_SIZES = 'sizes in a document are whole numbers of MiB, such as 20480, or "remaining"'


@dataclass(frozen=True)
class Creation:
    """What a document says about a new VM, for Control.create_vm; None where it does not say."""

    disks: tuple[SizeRequest | None, ...] | None = None
    package: str | None = None
    image: str | None = None


def read_creation(document: bytes) -> Creation:
    """A new VM (RFD 154, "CreateMachine"): `{"package": …, "image": …, "disks": [{}, {"size": 20480}, …]}`.

    The first disk may say `boot` and `image_uuid` as in a payload of vmadm. Raises InvalidArgument, which names the
    place in the document.
    """
    read = _read(document, _Creation)
    disks = None if read.disks is None else tuple(disk.size for disk in read.disks)
    return Creation(disks, read.package, read.image or read.boot_image)


def read_update(document: bytes, vm: str) -> DiskChanges:
    """Changes of the disks of `vm` (RFD 154, "Resize with update_disks"): `add_disks`, `update_disks`, `remove_disks`.

    A disk is named by its slot, or by a path that ends in the VM and its slot, `/dev/zvol/rdsk/zones/VM/disk0`, or in
    the name of our volume. A path of another VM is refused. Raises InvalidArgument, which names the place in the
    document.
    """
    read = _read(document, _Update)
    changes = DiskChanges(
        add=tuple(disk.size for disk in read.add_disks),
        update=tuple(DiskUpdate(disk.named.slot, disk.size, disk.shrink) for disk in read.update_disks),
        remove=tuple(disk.slot for disk in read.remove_disks),
    )
    if changes == DiskChanges():
        raise InvalidArgument("The document changes nothing", "give add_disks, update_disks or remove_disks")
    for disk in (*(each.named for each in read.update_disks), *read.remove_disks):
        if disk.vm not in (None, vm):
            raise InvalidArgument(
                f"{names.shown(disk.text)} is a disk of VM {disk.vm}, not of {vm}", "one document changes one VM"
            )
    return changes


@dataclass(frozen=True)
class _Named:
    """A disk as a document names it; `vm` where the path tells."""

    text: str
    slot: int
    vm: str | None


class _Object(dict[str, Any]):
    """An object of a document; `repeated` is a key that stands in it twice."""

    repeated: str | None = None


def _size(value: Any) -> SizeRequest:
    if value == "remaining":
        return REMAINING
    written = isinstance(value, str) and _DIGITS.fullmatch(value)
    number = int(value) if written or (isinstance(value, float) and value.is_integer()) else value
    if not is_number(number) or number <= 0:
        raise ValueError(f"{_shown(value)} is no size", _SIZES)
    if number > MAX_SIZE // _MIB:
        raise ValueError(f"{shown_number(number)} MiB is more than the largest disk, {format_size(MAX_SIZE)}", _SIZES)
    return SizeRequest(exact=number * _MIB)


def _disk(value: object) -> _Named:
    """A disk by its slot or by a path, whose last part is its slot or the name of our volume."""
    if not isinstance(value, str):
        raise ValueError(f"{_shown(value)} names no disk", "give a string such as disk1, or a path that ends in it")
    *directories, last = value.split("/")
    ours = _VOLUME.fullmatch(last)
    vm = None
    if ours:
        vm = ours["vm"]
    elif directories:
        vm = directories[-1] or None
    try:
        return _Named(value, names.disk_slot(ours["disk"] if ours else last), vm)
    except InvalidArgument as error:
        raise ValueError(error.problem, error.way_out) from error


_Size = Annotated[SizeRequest, PlainValidator(_size)]
_Disk = Annotated[_Named, PlainValidator(_disk)]


class _Strict(BaseModel):
    """An object with these keys and no others, each once."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    command: ClassVar[str] = "update"
    """The command of VMs whose help has the shape."""

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        repeated = getattr(given, "repeated", None)
        if repeated is not None:
            raise ValueError(f"{_shown(repeated)} stands there twice", "give each key once")
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in given:
            if key not in known:
                near = difflib.get_close_matches(key[:_LONGEST_NUMBER], known, 1, 0.5)
                way_out = f"is {near[0]} what you mean? " if near else ""
                raise ValueError(f"there is no key {_shown(key)}", f"{way_out}known here: {', '.join(known)}")
        return given


class _NewDisk(_Strict):
    size: _Size | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_size(cls, given: Any) -> Any:
        if isinstance(given, dict) and "size" in given and given["size"] is None:
            raise ValueError("null is no size", f"leave it out for the image's size; {_SIZES}")
        return given


class _CreatedDisk(_NewDisk):
    image_uuid: str | None = None
    boot: bool | None = None


class _Creation(_Strict):
    command: ClassVar[str] = "create"

    disks: list[_CreatedDisk] | None = None
    package: str | None = None
    image: str | None = None

    @property
    def boot_image(self) -> str | None:
        return self.disks[0].image_uuid if self.disks else None

    @model_validator(mode="after")
    def _check_boot_disk(self) -> Self:
        for index, disk in enumerate(self.disks or ()):
            if index and disk.image_uuid is not None:
                raise ValueError(f"disks[{index}] has an image", "only the first disk is made from one")
            if disk.boot is not None and disk.boot is not (index == 0):
                raise ValueError(f"disks[{index}].boot is {str(disk.boot).lower()}", "the first disk boots, no other")
        if self.image is not None and self.boot_image not in (None, self.image):
            raise ValueError("image and disks[0].image_uuid name two images", "give one of them")
        return self


class _UpdatedDisk(_Strict):
    slot: _Disk | None = None
    path: _Disk | None = None
    size: _Size
    shrink: bool = Field(default=False, alias="dangerous_allow_shrink")

    @property
    def named(self) -> _Named:
        named = self.slot or self.path
        assert named is not None
        return named

    @model_validator(mode="after")
    def _check_named(self) -> Self:
        if (self.slot is None) is (self.path is None):
            raise ValueError("says not exactly once which disk", "give either slot, such as disk1, or path")
        return self


class _Update(_Strict):
    add_disks: list[_NewDisk] = []
    update_disks: list[_UpdatedDisk] = []
    remove_disks: list[_Disk] = []


_EXPECTED = {
    "model_type": "an object",
    "dict_type": "an object",
    "list_type": "a list",
    "string_type": "a string",
    "bool_type": "true or false",
}

_Model = TypeVar("_Model", bound=_Strict)


def _read(document: bytes, model: type[_Model]) -> _Model:
    try:
        return model.model_validate(_parse(document))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    place = _place(first["loc"])
    told = first.get("ctx", {}).get("error")
    if isinstance(told, ValueError) and len(told.args) == 2:
        problem, way_out = told.args
    elif first["type"] == "missing":
        problem, way_out = "is missing", "give it"
    else:
        problem = f"{_shown(first['input'])} stands where {_EXPECTED.get(first['type'], 'something else')} belongs"
        way_out = f"see nbdresize vm {model.command} --help for the shape"
    raise InvalidArgument(f"{place}: {problem}", way_out)


def _parse(document: bytes) -> Any:
    """The JSON value, its objects as _Object. Raises InvalidArgument."""
    if len(document) > MOST_BYTES:
        raise InvalidArgument(f"The document has more than {format_size(MOST_BYTES)}", "give one VM's disks")
    try:
        return json.loads(
            document.decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_int=lambda digits: int(digits) if len(digits) <= _LONGEST_NUMBER else float(digits),
        )
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"The document is not UTF-8: byte {error.start}", "save it as UTF-8") from error
    except json.JSONDecodeError as error:
        what = (
            "is empty"
            if not document.strip()
            else f"is no JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        )
        raise InvalidArgument(f"The document {what}", "give one JSON object, and nothing behind it") from error
    except RecursionError as error:
        raise InvalidArgument("The document is nested too deeply", "give one JSON object") from error


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    made = _Object(pairs)
    if len(made) != len(pairs):
        made.repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
    return made


def _place(parts: Sequence[int | str]) -> str:
    """`update_disks[0].size`"""
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return place.lstrip(".") or "The document"


def _shown(value: object) -> str:
    """`value` as a message quotes it: bounded, and printable."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return names.shown(value) if isinstance(value, str) else shown_number(value)
