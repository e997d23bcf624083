#!/usr/bin/env python3
"""Tells which checkpoints a training can be resumed from, without a framework and without loading a tensor.

One file, standard library only, Python 3.8 or later. Copy it to an instance and run it there:

    python checkpoints.py DIRECTORY --json                    # newest first
    python checkpoints.py DIRECTORY --format glob --glob 'run/step-{step}.bin'
    python checkpoints.py --set-aside PATH --reason TEXT      # moves, never deletes

`good` is true where the checkpoint is complete and readable, false where it can't be resumed from, and null
where that can't be told: no permission, still being written, or at odds with its neighbours. Only false may be
moved aside. Nothing is ever unpickled: pickles are walked as data. What is read is bounded, whatever the files
claim about themselves.

Layouts, by the writers' own documentation and sources:
torch.save      https://pytorch.org/docs/stable/notes/serialization.html (zip since 1.6; five pickles before)
safetensors     https://github.com/huggingface/safetensors#format
DCP             https://pytorch.org/docs/stable/distributed.checkpoint.html (.metadata is written last)
Orbax           https://orbax.readthedocs.io/en/latest/guides/checkpoint/checkpoint_format.html
OCDBT, zarr     https://google.github.io/tensorstore/kvstore/ocdbt/index.html, .../driver/zarr/index.html
DeepSpeed       https://deepspeed.readthedocs.io/en/latest/model-checkpointing.html (`latest` is written last)
Megatron-LM     latest_checkpointed_iteration.txt is written last
numpy           https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
zip, zstd       PKWARE APPNOTE 4.3; RFC 8878 section 3.1.1
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import math
import os
import pickletools
import re
import stat
import struct
import sys
import time
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

FORMATS = (
    "auto", "torch", "pickle", "safetensors", "dcp", "orbax", "deepspeed", "megatron", "huggingface", "lightning",
    "numpy", "glob",
)  # fmt: skip

MEBI = 1024 * 1024
CHECKED = 12
"""Checkpoints looked into, newest first. Older ones are left out."""
MOST_ENTRIES = 100_000
MOST_FOLDERS = 2_000
MOST_FILES = 20_000
"""In one checkpoint."""
DEPTH = 5
MOST_HEADER = 128 * MEBI
MOST_OPCODES = 3_000_000
MOST_STRING = 16 * MEBI
CRC_EACH = MEBI
CRC_ALL = 32 * MEBI
FRESH = 60.0
"""Seconds since the last write in which a checkpoint may still be growing."""
OUT_OF_ORDER = 60.0
"""Seconds by which a later step must be older than an earlier one to be odd."""
FAR_SMALLER, SMALLER = 0.5, 0.9
SET_ASIDE = ".trainguard-set-aside-"


@dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint: a file or a folder."""

    path: str
    step: int | None
    format: str
    size: int
    """Bytes, all files together."""
    at: float | None
    """When it was last written, seconds since the epoch."""
    good: bool | None
    problem: str


class Bad(Exception):
    """It can't be resumed from."""


class Unsure(Exception):
    """It can't be told whether it can be resumed from."""


# ---------------------------------------------------------------- files


def open_regular(path: Path) -> BinaryIO:
    """Open a plain file; anything else (a FIFO would block for ever) can't be judged."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise Unsure(f"{shown(path.name)} is no plain file")
    return path.open("rb")


def read_small(path: Path, limit: int = MEBI) -> bytes:
    """Read a file that is expected to be small."""
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise Unsure(f"{shown(path.name)} is larger than such a file ever is")
    return content


def read_json(path: Path, limit: int = MOST_HEADER) -> dict[str, Any]:
    """Read a JSON object. Raises Bad where it is none."""
    content = read_small(path, limit)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Bad(f"{shown(path.name)} is cut short or no JSON") from error
    if not isinstance(value, dict):
        raise Bad(f"{shown(path.name)} holds no JSON object")
    return value


def shown(name: str) -> str:
    """Give a name as one harmless line."""
    return name if name.isprintable() and len(name) <= 200 else ascii(name)[:200]


def exactly(file: BinaryIO, count: int, what: str) -> bytes:
    """Read so many bytes. Raises Bad where the file ends before."""
    content = file.read(count)
    if len(content) != count:
        raise Bad(f"cut short in its {what}")
    return content


# ---------------------------------------------------------------- pickles, walked and never run


class Global(NamedTuple):
    """A name that a pickle would import."""

    module: str
    name: str


class Persistent(NamedTuple):
    """A reference to a tensor's storage."""

    id: Any


@dataclass
class Call:
    """What a pickle would make by calling something."""

    made_by: Any
    arguments: Any
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


class Skipped:
    """Bytes that are there and were not read."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        """Say how many."""
        return self.length


class Bounded:
    """A pickle's stream for pickletools: large strings of bytes are stepped over, lines are short."""

    def __init__(self, file: BinaryIO, end: int) -> None:
        self.file, self.end = file, end

    def read(self, count: int) -> bytes:
        """Read, or step over what is large."""
        if count <= MOST_STRING:
            return self.file.read(count)
        here = self.file.tell()
        there = min(here + count, self.end)
        self.file.seek(there)
        return cast(bytes, Skipped(there - here))

    def readline(self) -> bytes:
        """Read a line of an old-style opcode."""
        return self.file.readline(65536)

    def tell(self) -> int:
        """Say where the next opcode begins."""
        return self.file.tell()


MARK = object()
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
MAKERS: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
ARGUMENT = re.compile(r"(?:SHORT_)?(?:BIN)?(?:STRING|UNICODE|BYTES|INT|FLOAT)\d?|LONG[14]?|BYTEARRAY8")
IGNORED = {"PROTO", "FRAME", "READONLY_BUFFER"}


class Walker:
    """Follows the opcodes of one pickle and keeps what it would make as plain data."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.persistent: list[Any] = []
        self.made: list[Call] = []
        self.actions: dict[str, Callable[[Any], None]] = {}

    def walk(self, file: BinaryIO, end: int) -> Any:
        """Give what the pickle that begins here is. Raises Bad (damaged) or Unsure (too long)."""
        try:
            # pickletools types its argument as the typing module's IO; it needs no more than these three.
            stream = cast("Any", file if isinstance(file, io.BytesIO) else Bounded(file, end))
            actions = self.actions
            for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if count > MOST_OPCODES:
                    raise Unsure("its pickle is too long to be followed")
                if opcode.name == "STOP":
                    return self.stack.pop()
                (actions.get(opcode.name) or self.action(opcode.name))(argument)
        except (
            ValueError,
            IndexError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            EOFError,
        ) as error:
            raise Bad("its pickle is cut short or damaged") from error
        raise Bad("its pickle is cut short")

    def action(self, name: str) -> Callable[[Any], None]:
        """Find what follows an opcode, and keep it: large pickles have millions."""
        found = self.plain_action(name) or getattr(self, f"do_{name.lower()}", None)
        if found is None:
            raise Unsure(f"its pickle uses {name}")
        self.actions[name] = found
        return cast("Callable[[Any], None]", found)

    def plain_action(self, name: str) -> Callable[[Any], None] | None:
        """Find what follows an opcode that only pushes something, or does nothing."""
        if name in IGNORED:
            return lambda _: None
        if name in CONSTANTS:
            return lambda _: self.stack.append(CONSTANTS[name])
        if name in MAKERS:
            return lambda _: self.stack.append(MAKERS[name]())
        return self.stack.append if ARGUMENT.fullmatch(name) else None

    def marked(self) -> list[Any]:
        """Take what was pushed since the last mark."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is MARK:
                taken = self.stack[index + 1 :]
                del self.stack[index:]
                return taken
        raise ValueError("no mark")

    def call(self, made_by: Any, arguments: Any) -> None:
        """Note a call instead of making it."""
        made = Call(made_by, arguments)
        self.made.append(made)
        self.stack.append(made)

    def put_items(self, pairs: list[Any]) -> None:
        """Set keys that can't run code or recurse when hashed; leave others out."""
        target = self.stack[-1]
        items = target.items if isinstance(target, Call) else target
        if isinstance(items, dict):
            for index in range(0, len(pairs) - 1, 2):
                if isinstance(pairs[index], (str, int, float, bytes)):
                    items[pairs[index]] = pairs[index + 1]

    def put_values(self, values: list[Any]) -> None:
        """Append to a list; what else is appended to is of no interest."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def do_mark(self, _: Any) -> None:
        """Push a mark."""
        self.stack.append(MARK)

    def do_pop(self, _: Any) -> None:
        """Drop the top."""
        self.stack.pop()

    def do_pop_mark(self, _: Any) -> None:
        """Drop down to the mark."""
        self.marked()

    def do_dup(self, _: Any) -> None:
        """Repeat the top."""
        self.stack.append(self.stack[-1])

    def do_tuple(self, _: Any) -> None:
        """Make a tuple of what was marked."""
        self.stack.append(tuple(self.marked()))

    def do_tuple1(self, _: Any) -> None:
        """Make a tuple of the top one."""
        self.fixed_tuple(1)

    def do_tuple2(self, _: Any) -> None:
        """Make a tuple of the top two."""
        self.fixed_tuple(2)

    def do_tuple3(self, _: Any) -> None:
        """Make a tuple of the top three."""
        self.fixed_tuple(3)

    def fixed_tuple(self, count: int) -> None:
        """Make a tuple of the top ones."""
        values = tuple(self.stack[-count:])
        if len(values) != count:
            raise ValueError("stack underflow")
        del self.stack[-count:]
        self.stack.append(values)

    def do_list(self, _: Any) -> None:
        """Make a list of what was marked."""
        self.stack.append(self.marked())

    def do_frozenset(self, _: Any) -> None:
        """Make what stands for a frozen set."""
        self.stack.append(self.marked())

    def do_dict(self, _: Any) -> None:
        """Make a dictionary of what was marked."""
        pairs = self.marked()
        self.stack.append({})
        self.put_items(pairs)

    def do_append(self, _: Any) -> None:
        """Append one."""
        self.put_values([self.stack.pop()])

    def do_appends(self, _: Any) -> None:
        """Append what was marked."""
        self.put_values(self.marked())

    def do_additems(self, _: Any) -> None:
        """Add what was marked to a set."""
        self.put_values(self.marked())

    def do_setitem(self, _: Any) -> None:
        """Set one key."""
        value, key = self.stack.pop(), self.stack.pop()
        self.put_items([key, value])

    def do_setitems(self, _: Any) -> None:
        """Set the keys that were marked."""
        self.put_items(self.marked())

    def do_put(self, index: int) -> None:
        """Remember the top."""
        self.memo[index] = self.stack[-1]

    do_binput = do_long_binput = do_put

    def do_memoize(self, _: Any) -> None:
        """Remember the top under the next number."""
        self.memo[len(self.memo)] = self.stack[-1]

    def do_get(self, index: int) -> None:
        """Recall."""
        self.stack.append(self.memo[index])

    do_binget = do_long_binget = do_get

    def do_global(self, name: str) -> None:
        """Name what would be imported."""
        module, _, attribute = name.partition(" ")
        self.stack.append(Global(module, attribute))

    def do_stack_global(self, _: Any) -> None:
        """Name what would be imported, from the stack."""
        attribute, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Global(str(module), str(attribute)))

    def do_reduce(self, _: Any) -> None:
        """Note a call."""
        arguments, made_by = self.stack.pop(), self.stack.pop()
        self.call(made_by, arguments)

    do_newobj = do_reduce

    def do_newobj_ex(self, _: Any) -> None:
        """Note a call with keywords."""
        self.stack.pop()
        self.do_reduce(None)

    def do_inst(self, name: str) -> None:
        """Note a call with what was marked."""
        arguments = tuple(self.marked())
        module, _, attribute = name.partition(" ")
        self.call(Global(module, attribute), arguments)

    def do_obj(self, _: Any) -> None:
        """Note a call with what was marked; the first is what would be called."""
        made_by, *arguments = self.marked()
        self.call(made_by, tuple(arguments))

    def do_build(self, _: Any) -> None:
        """Note the state of what was made."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Call):
            self.stack[-1].state = state

    def do_binpersid(self, _: Any) -> None:
        """Note a reference to a storage."""
        self.stack.append(Persistent(self.stack.pop()))
        self.persistent.append(self.stack[-1].id)

    def do_persid(self, name: str) -> None:
        """Note a reference by name."""
        self.stack.append(Persistent(name))

    def do_next_buffer(self, _: Any) -> None:
        """Push what lies outside the pickle."""
        self.stack.append(None)

    def do_ext1(self, code: int) -> None:
        """Note a registered name."""
        self.stack.append(Global("copyreg", str(code)))

    do_ext2 = do_ext4 = do_ext1


STEP_KEYS = ("global_step", "step", "iteration", "global_steps", "iter_num", "iter")


def step_inside(value: Any) -> int | None:
    """Find the step in what a training saved: a whole number under one of the usual names."""
    items = value.items if isinstance(value, Call) else value
    if isinstance(items, dict):
        for key in STEP_KEYS:
            step = items.get(key)
            if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**63:
                return step
    return None


ITEM_SIZES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8,
    "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
    "ComplexDoubleStorage": 16, "ComplexFloatStorage": 8, "QInt8Storage": 1, "QUInt8Storage": 1,
    "QInt32Storage": 4, "QUInt4x2Storage": 1, "QUInt2x4Storage": 1, "UntypedStorage": 1,
}  # fmt: skip


def storages(persistent: Iterable[Any]) -> Iterator[tuple[str, int | None, int]]:
    """Give key, element size (None where unknown) and element count of each storage that is referred to."""
    for one in persistent:
        if isinstance(one, tuple) and len(one) >= 5 and one[0] == "storage":
            _, kind, key, _, count = one[:5]
            size = ITEM_SIZES.get(kind.name) if isinstance(kind, Global) else None
            if not isinstance(count, int) or count < 0:
                raise Bad("its pickle names a storage without a size")
            yield str(key), size, count


# ---------------------------------------------------------------- zip archives, never inflated as a whole


class Entry(NamedTuple):
    """One file in an archive."""

    name: str
    method: int
    crc: int
    packed: int
    size: int
    header: int
    data: int


class Archive:
    """A zip file's directory, held against the file itself."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        count, length, offset, end = self.directory(size)
        if length > MOST_HEADER:
            raise Unsure("its archive has too large a directory")
        if offset + length != end:
            raise Bad("its archive's directory is not where its end says")
        file.seek(offset)
        self.entries = self.read_entries(exactly(file, length, "archive directory"), count)
        self.locate(offset)

    def directory(self, size: int) -> tuple[int, int, int, int]:
        """Find the directory from the archive's last bytes: entries, length, offset, where it must end."""
        if size < 22:
            raise Bad("cut short: not even an archive's end")
        # Neither torch nor numpy writes a comment: the record is the file's very end, or the file is cut.
        self.file.seek(size - 22)
        record = exactly(self.file, 22, "archive end")
        signature, _, _, _, count, length, offset, comment = struct.unpack("<4s4H2LH", record)
        if signature != b"PK\x05\x06" or comment:
            raise Bad("cut short: its archive has no end")
        end = size - 22
        if count == 0xFFFF or length == 0xFFFFFFFF or offset == 0xFFFFFFFF:
            return self.large_directory(end)
        return self.maybe_large(end, count, length, offset)

    def maybe_large(self, end: int, count: int, length: int, offset: int) -> tuple[int, int, int, int]:
        """Step over the 64-bit records that torch writes also where it needs none."""
        if end >= 20 and offset + length != end:
            self.file.seek(end - 20)
            if self.file.read(4) == b"PK\x06\x07":
                return self.large_directory(end)
        return count, length, offset, end

    def large_directory(self, end: int) -> tuple[int, int, int, int]:
        """Read the 64-bit records before the archive's end."""
        if end < 76:
            raise Bad("its archive's end is damaged")
        self.file.seek(end - 20)
        signature, _, place, _ = struct.unpack("<4sLQL", exactly(self.file, 20, "archive end"))
        if signature != b"PK\x06\x07" or place > end - 76:
            raise Bad("its archive's end is damaged")
        self.file.seek(place)
        record = struct.unpack("<4sQ2H2L4Q", exactly(self.file, 56, "archive end"))
        if record[0] != b"PK\x06\x06":
            raise Bad("its archive's end is damaged")
        return record[7], record[8], record[9], place

    @staticmethod
    def read_entries(directory: bytes, count: int) -> list[Entry]:
        """Read the directory's entries."""
        entries, at = [], 0
        while at < len(directory):
            if directory[at : at + 4] != b"PK\x01\x02" or len(directory) - at < 46:
                raise Bad("its archive's directory is damaged")
            found = struct.unpack_from("<4s6H3L5H2L", directory, at)
            method, crc, packed, size = found[4], found[7], found[8], found[9]
            name_length, extra_length, comment_length, header = found[10], found[11], found[12], found[16]
            name = directory[at + 46 : at + 46 + name_length].decode("utf-8", "replace")
            extra = directory[at + 46 + name_length : at + 46 + name_length + extra_length]
            size, packed, header = _large(extra, size, packed, header)
            entries.append(Entry(name, method, crc, packed, size, header, 0))
            at += 46 + name_length + extra_length + comment_length
        if at != len(directory) or len(entries) != count:
            raise Bad("its archive's directory is damaged")
        return entries

    def locate(self, directory: int) -> None:
        """Hold each entry against its own header: in the file, before the directory, apart from the others."""
        placed: list[Entry] = []
        end = 0
        for entry in sorted(self.entries, key=lambda entry: entry.header):
            if entry.header < end or (not placed and entry.header):
                raise Bad("its archive's entries overlap or its beginning is missing")
            self.file.seek(entry.header)
            head = exactly(self.file, 30, "archive")
            if head[:4] != b"PK\x03\x04":
                raise Bad(f"its archive's entry {shown(entry.name)} is overwritten")
            name_length, extra_length = struct.unpack_from("<2H", head, 26)
            data = entry.header + 30 + name_length + extra_length
            end = data + entry.packed
            if end > directory:
                raise Bad(f"its archive's entry {shown(entry.name)} is cut short")
            placed.append(entry._replace(data=data))
        self.entries = placed

    def check_sums(self) -> None:
        """Compare the checksums of small entries. torch can be told not to write any: then all are zero."""
        if not any(entry.crc for entry in self.entries):
            return
        left = CRC_ALL
        for entry in self.entries:
            if entry.size > CRC_EACH or entry.packed > CRC_EACH or left < entry.size:
                continue
            left -= entry.size
            content = self.read(entry, entry.size)
            if len(content) != entry.size or zlib.crc32(content) != entry.crc:
                raise Bad(f"its archive's entry {shown(entry.name)} is damaged")

    def read(self, entry: Entry, limit: int) -> bytes:
        """Read an entry's first bytes, inflating no more than those."""
        self.file.seek(entry.data)
        if entry.method == 0:
            return self.file.read(min(limit, entry.packed))
        if entry.method != 8:
            raise Unsure(f"its archive is packed by method {entry.method}")
        inflate = zlib.decompressobj(-15)
        found = b""
        left = entry.packed
        try:
            while left > 0 and len(found) < limit and not inflate.eof:
                piece = self.file.read(min(left, 65536))
                left -= len(piece)
                found += inflate.decompress(piece, limit - len(found))
                if not piece:
                    break
        except zlib.error as error:
            raise Bad(f"its archive's entry {shown(entry.name)} is damaged") from error
        return found


def _large(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Take 64-bit sizes from an entry's extra field where the 32-bit ones are full."""
    at, values = 0, [size, packed, header]
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            place = at + 4
            for index, value in enumerate(values):
                if value == 0xFFFFFFFF:
                    if place + 8 > at + 4 + length or place + 8 > len(extra):
                        raise Bad("its archive's directory is damaged")
                    (values[index],) = struct.unpack_from("<Q", extra, place)
                    place += 8
        at += 4 + length
    return values[0], values[1], values[2]


# ---------------------------------------------------------------- single files


def check_torch(path: Path) -> int | None:
    """Check what torch.save writes, zip or legacy; give the step inside, if there is one."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(4)
        if head[:2] == b"PK":
            return check_torch_zip(file, size)
        if head[:1] == b"\x80":
            file.seek(0)
            return check_torch_legacy(file, size)
    raise Bad("its beginning is not that of a torch file")


def check_torch_zip(file: BinaryIO, size: int) -> int | None:
    """Check the archive, and that each storage that the pickle refers to is there in full."""
    archive = Archive(file, size)
    archive.check_sums()
    entries = {entry.name: entry for entry in archive.entries}
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Bad("its archive has no data.pkl")
    main = entries[pickles[0]]
    if main.method != 0:
        raise Unsure("its data.pkl is compressed, which torch never does")
    if main.size > MOST_HEADER:
        raise Unsure("its data.pkl is too large to be followed")
    walker, pickled = Walker(), io.BytesIO(archive.read(main, main.size))
    value = walker.walk(pickled, main.size)
    if pickled.tell() != main.size:
        raise Bad("its data.pkl does not end where its archive says")
    prefix = pickles[0].split("/")[0]
    for key, item, count in storages(walker.persistent):
        entry = entries.get(f"{prefix}/data/{key}")
        if entry is None:
            raise Bad(f"its storage {shown(key)} is missing")
        if item is not None and entry.size != item * count:
            raise Bad(f"its storage {shown(key)} has {entry.size} bytes instead of {item * count}")
    return step_inside(value)


LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def check_torch_legacy(file: BinaryIO, size: int) -> int | None:
    """Check five pickles and the storages behind them; a plain pickle is checked as one."""
    first = Walker().walk(file, size)
    if first != LEGACY_MAGIC:
        return end_pickle(file, size, first)
    for _ in range(2):
        Walker().walk(file, size)
    walker = Walker()
    value = walker.walk(file, size)
    keys = Walker().walk(file, size)
    if not isinstance(keys, list):
        raise Bad("its list of storages is damaged")
    sizes = {key: item for key, item, _ in storages(walker.persistent)}
    for key in keys:
        (count,) = struct.unpack("<q", exactly(file, 8, "storages"))
        item = sizes.get(str(key))
        if item is None:
            raise Unsure(f"its storage {shown(str(key))} has an unknown type")
        if count < 0 or file.tell() + count * item > size:
            raise Bad("cut short in its storages")
        file.seek(count * item, os.SEEK_CUR)
    if file.tell() != size:
        raise Bad("there are bytes behind its last storage")
    return step_inside(value)


def check_pickle(path: Path) -> int | None:
    """Check a plain pickle, or several in a row."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        return end_pickle(file, size, Walker().walk(file, size))


def end_pickle(file: BinaryIO, size: int, first: Any) -> int | None:
    """Follow the pickles behind the first one to the file's end."""
    while file.tell() < size:
        Walker().walk(file, size)
    return step_inside(first)


DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4,
    "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


def check_safetensors(path: Path) -> int | None:
    """Check the header and that its tensors fill the file exactly."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        (length,) = struct.unpack("<Q", exactly(file, 8, "header"))
        if length > size - 8:
            raise Bad("cut short in its header, or no safetensors file")
        if length > MOST_HEADER:
            raise Unsure("its header is larger than the format allows")
        content = exactly(file, length, "header")
    try:
        header = json.loads(content)
        # Sorting by offsets that are no numbers is an error of the header, too.
        tensors = sorted((value for key, value in header.items() if key != "__metadata__"), key=_offsets)
        end = 0
        for tensor in tensors:
            end = _after(tensor, end)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Bad("its header is damaged") from error
    if end != size - 8 - length:
        raise Bad(f"its tensors need {end} bytes and there are {size - 8 - length}")
    return None


def _offsets(tensor: dict[str, Any]) -> tuple[int, int]:
    begin, end = tensor["data_offsets"]
    return int(begin), int(end)


def _after(tensor: dict[str, Any], begin: int) -> int:
    """Give where a tensor ends, which must begin where the last one ended and be as long as its shape says."""
    first, last = _offsets(tensor)
    bits = DTYPE_BITS.get(tensor["dtype"])
    needed = last - first if bits is None else math.prod(tensor["shape"]) * bits // 8
    if first != begin or last - first != needed:
        raise ValueError("a tensor is not where its header says")
    return last


def npy_size(description: Any) -> int | None:
    """Give the bytes of one element of an array; None for Python objects, which are pickled."""
    if isinstance(description, list):
        total = 0
        for one in description:
            item = npy_size(one[1])
            if item is None:
                return None
            shape = one[2] if len(one) > 2 else ()
            total += item * math.prod(shape if isinstance(shape, tuple) else (shape,))
        return total
    if isinstance(description, tuple):
        inner = npy_size(description[0])
        return None if inner is None else inner * math.prod(description[1])
    found = re.fullmatch(r"[<>|=]?([a-zA-Z?])(\d*)(?:\[[^\]]*\])?", str(description))
    if found is None:
        raise ValueError("unknown type")
    letter, digits = found.groups()
    if letter == "O":
        return None
    if letter in "Mm":
        return 8
    return int(digits or 1) * (4 if letter == "U" else 1)


def npy_header(head: bytes) -> tuple[int, int | None, tuple[int, ...], str]:
    """Read an array's header: where its data begins, how long it is, shape and type."""
    if head[:6] != b"\x93NUMPY":
        raise Bad("its beginning is not that of a numpy array")
    form = "<H" if head[6:7] == b"\x01" else "<L"
    start = 8 + struct.calcsize(form)
    if len(head) < start:
        raise Bad("cut short in its header")
    (length,) = struct.unpack_from(form, head, 8)
    if start + length > NPY_HEADER:
        raise Unsure("its header is too large to be followed")
    if len(head) < start + length:
        raise Bad("cut short in its header")
    try:
        header = ast.literal_eval(head[start : start + length].decode("latin1").strip())
        shape = tuple(int(size) for size in header["shape"])
        item = npy_size(header["descr"])
    except (ValueError, SyntaxError, KeyError, TypeError, IndexError, RecursionError, MemoryError) as error:
        raise Bad("its header is damaged") from error
    return start + length, None if item is None else item * math.prod(shape), shape, str(header["descr"])


NPY_HEADER = 65_536 + 12


def check_npy(path: Path) -> int | None:
    """Check that an array's data is as long as its header says."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        start, length, _, _ = npy_header(file.read(NPY_HEADER))
        if length is None:
            file.seek(start)
            Walker().walk(file, size)
            if file.tell() != size:
                raise Bad("there are bytes behind its objects")
        elif start + length != size:
            raise Bad(f"its array needs {start + length} bytes and there are {size}")
    return None


def check_npz(path: Path) -> int | None:
    """Check the archive and each array's header against its size; give the step inside, if there is one."""
    with open_regular(path) as file:
        archive = Archive(file, os.fstat(file.fileno()).st_size)
        archive.check_sums()
        if not archive.entries:
            raise Bad("its archive is empty")
        steps: dict[str, int] = {}
        for entry in archive.entries:
            name, _, suffix = entry.name.rpartition(".")
            if suffix != "npy":
                continue
            head = archive.read(entry, min(entry.size, NPY_HEADER))
            start, length, shape, description = npy_header(head)
            if length is not None and start + length != entry.size:
                raise Bad(f"its array {shown(name)} needs {start + length} bytes and there are {entry.size}")
            if name in STEP_KEYS and math.prod(shape) == 1 and description in {"<i8", "<i4", "<u8", "<u4"}:
                steps[name] = int.from_bytes(
                    head[start : start + (length or 0)], "little", signed="i" in description
                )
    return next((steps[key] for key in STEP_KEYS if key in steps), None)


FILE_CHECKS: dict[str, Callable[[Path], int | None]] = {
    ".pt": check_torch, ".pth": check_torch, ".ckpt": check_torch, ".bin": check_torch,
    ".pkl": check_pickle, ".pickle": check_pickle, ".safetensors": check_safetensors, ".npz": check_npz,
    ".npy": check_npy,
}  # fmt: skip
FILE_FORMATS = {
    ".pt": "torch", ".pth": "torch", ".ckpt": "torch", ".bin": "torch", ".pkl": "pickle", ".pickle": "pickle",
    ".safetensors": "safetensors", ".npz": "numpy", ".npy": "numpy",
}  # fmt: skip


def check_file(path: Path) -> int | None:
    """Check one file by what its name and its beginning say it is. Raises Bad, Unsure or OSError."""
    if path.stat().st_size == 0:
        raise Bad("empty")
    check = FILE_CHECKS.get(path.suffix)
    if check is None:
        with open_regular(path) as file:
            check = by_beginning(file.read(8))
    if check is None:
        raise Opaque("its format can't be verified")
    return check(path)


class Opaque(Unsure):
    """Nothing can be said of it but its size."""


def by_beginning(head: bytes) -> Callable[[Path], int | None] | None:
    """Recognise a file without a telling name."""
    if head[:6] == b"\x93NUMPY":
        return check_npy
    if head[:2] == b"\x80\x02":
        return check_torch
    return None


# ---------------------------------------------------------------- folders


class Folder:
    """What lies in a checkpoint's folder, links not followed into other folders."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, Path] = {}
        self.size = 0
        self.at: float | None = None
        self.folders: set[str] = set()
        self.trouble = ""
        self.add(path, "", 0)

    def add(self, path: Path, prefix: str, depth: int) -> None:
        """Add a folder's files, bounded in number and depth."""
        if depth > DEPTH:
            self.trouble = self.trouble or "its folders are too deep"
            return
        with os.scandir(path) as entries:
            for entry in entries:
                if len(self.files) + len(self.folders) >= MOST_FILES:
                    self.trouble = self.trouble or f"it has more than {MOST_FILES} files"
                    return
                name = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    self.folders.add(name)
                    self.add(Path(entry.path), f"{name}/", depth + 1)
                else:
                    self.add_file(name, entry)

    def add_file(self, name: str, entry: os.DirEntry[str]) -> None:
        """Add a file; a link that leads nowhere is one that is missing."""
        try:
            found = entry.stat()
        except OSError as error:
            self.trouble = self.trouble or f"{shown(name)} can't be read ({error.strerror})"
            return
        self.files[name] = Path(entry.path)
        self.size += found.st_size
        self.at = found.st_mtime if self.at is None else max(self.at, found.st_mtime)

    def named(self, pattern: str) -> list[str]:
        """Give the files whose whole name fits a regular expression."""
        return sorted(name for name in self.files if re.fullmatch(pattern, name))


def check_members(folder: Folder, names: Iterable[str]) -> list[int]:
    """Check files of a folder; give the steps found inside. Raises Bad or Unsure, naming the file."""
    steps = []
    for name in names:
        try:
            step = check_file(folder.files[name])
        except Opaque:
            continue
        except Bad as error:
            raise Bad(f"{shown(name)}: {error}") from error
        except Unsure as error:
            raise Unsure(f"{shown(name)}: {error}") from error
        if step is not None:
            steps.append(step)
    return steps


WEIGHTS = r"(?:.*/)?[^/]*\.(?:pt|pth|bin|ckpt|safetensors|npz|npy)"


def check_weights(folder: Folder) -> int | None:
    """Check every weight file and every index of shards in a folder."""
    for name in folder.named(r".*\.index\.json"):
        check_shards(folder, name)
    steps = check_members(folder, folder.named(WEIGHTS))
    return max(steps) if steps else None


def check_shards(folder: Folder, index: str) -> None:
    """Check that each shard of an index is there."""
    shards = read_json(folder.files[index]).get("weight_map")
    if not isinstance(shards, dict):
        raise Bad(f"{shown(index)} has no map of its shards")
    place = index.rpartition("/")[0]
    for shard in sorted({str(shard) for shard in shards.values()}):
        name = f"{place}/{shard}" if place else shard
        if name not in folder.files:
            raise Bad(f"the shard {shown(shard)} is missing")


def check_plain(folder: Folder) -> int | None:
    """Check a folder of weight files that belong together."""
    if not folder.named(WEIGHTS):
        raise Bad("there are no weights in it")
    check_numbered(folder)
    return check_weights(folder)


SHARD = re.compile(r"(.*?)(\d+)-of-(\d+)(\.[a-z]+)")


def check_numbered(folder: Folder) -> None:
    """Check that where there is one of `x-00002-of-00005.bin` there are all five."""
    shards = {
        found.group(1, 3, 4): len(found.group(2)) for found in map(SHARD.fullmatch, folder.files) if found
    }
    for (stem, total, suffix), digits in sorted(shards.items()):
        first = 0 if f"{stem}{0:0{digits}}-of-{total}{suffix}" in folder.files else 1
        for number in range(first, min(int(total), MOST_FILES) + first):
            name = f"{stem}{number:0{digits}}-of-{total}{suffix}"
            if name not in folder.files:
                raise Bad(f"the shard {shown(name)} is missing")


def check_huggingface(folder: Folder) -> int | None:
    """Check weights, trainer_state.json (written last) and that its step is the folder's."""
    weights = r"(?:pytorch_model|model|adapter_model|tf_model)[^/]*\.(?:bin|safetensors)"
    parts = [name for name in folder.folders if name.startswith(("pytorch_model_fsdp", "global_step"))]
    if not folder.named(weights) and not parts:
        raise Bad("there are no weights in it")
    if "trainer_state.json" not in folder.files:
        raise Bad("trainer_state.json is missing: it was not finished")
    state = read_json(folder.files["trainer_state.json"])
    for part in parts:
        if part.startswith("pytorch_model_fsdp"):
            check_dcp(Folder(folder.path / part))
    check_weights(folder)
    step, named = state.get("global_step"), step_of(folder.path.name)
    if isinstance(step, int) and named is not None and step != named:
        raise Unsure(f"its trainer_state.json says step {step}")
    return step if isinstance(step, int) else None


def check_dcp(folder: Folder) -> int | None:
    """Check that each piece that .metadata (written last) refers to is there and as long as it says."""
    if ".metadata" not in folder.files:
        raise Bad(".metadata is missing: it was not finished")
    with open_regular(folder.files[".metadata"]) as file:
        size = os.fstat(file.fileno()).st_size
        walker = Walker()
        walker.walk(file, size)
        if file.tell() != size:
            raise Bad(".metadata is damaged")
    check_pieces(folder, walker.made)
    steps = check_members(folder, folder.named(r"common\.pt"))
    return steps[0] if steps else None


def check_pieces(folder: Folder, made: Iterable[Call]) -> None:
    """Check that each piece is as long as the records that lie in it need."""
    needed: dict[str, int] = {}
    for name, end in map(_piece, made):
        if name:
            needed[name] = max(needed.get(name, 0), end)
    if not needed:
        raise Unsure(".metadata is of an unknown form")
    for name, end in sorted(needed.items()):
        if name not in folder.files:
            raise Bad(f"the piece {shown(name)} is missing")
        there = folder.files[name].stat().st_size
        if there != end:
            raise Bad(f"the piece {shown(name)} has {there} bytes instead of {end}")


def _piece(made: Call) -> tuple[str, int]:
    """Give file and end of a storage record (relative_path, offset, length), or nothing for other objects."""
    if not isinstance(made.made_by, Global) or made.made_by.name != "_StorageInfo":
        # copyreg.__newobj__ forms name the class as first argument
        arguments = made.arguments if isinstance(made.arguments, tuple) else ()
        if not any(isinstance(one, Global) and one.name == "_StorageInfo" for one in arguments):
            return "", 0
    state = made.state if isinstance(made.state, dict) else {}
    name, offset, length = state.get("relative_path"), state.get("offset"), state.get("length")
    if isinstance(name, str) and isinstance(offset, int) and isinstance(length, int):
        return name, offset + length
    return "", 0


def check_deepspeed(folder: Folder) -> int | None:
    """Check that the ranks are there from 0 to the last, as many as the files themselves say."""
    models = folder.named(r"mp_rank_\d+_model_states\.pt|zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
    if not models and not folder.named(r"layer_\d+-model_.*\.pt"):
        raise Bad("there are no model states in it")
    ranks = [
        int(number) for name in folder.files for number in re.findall(r"zero_pp_rank_(\d+)_.*optim", name)
    ]
    require_ranks(ranks, "optimizer states of rank")
    require_ranks([int(n) for name in models for n in re.findall(r"mp_rank_(\d+)_model", name)], "mp_rank")
    check_members(folder, folder.named(r".*\.pt"))
    return step_of(folder.path.name)


def check_megatron(folder: Folder) -> int | None:
    """Check the ranks' folders, or the distributed form with its .metadata."""
    if ".metadata" in folder.files or folder.named(r".*\.distcp"):
        check_dcp(folder)
        return step_of(folder.path.name)
    ranks = sorted({name for name in folder.folders if re.fullmatch(r"mp_rank_\d+(?:_\d+)*", name)})
    if not ranks:
        raise Bad("there are no ranks in it")
    require_ranks([int(name.split("_")[2]) for name in ranks], "mp_rank")
    for rank in ranks:
        if not any(name.startswith(f"{rank}/") for name in folder.named(WEIGHTS)):
            raise Bad(f"{rank} is empty")
    check_members(folder, folder.named(WEIGHTS))
    return step_of(folder.path.name)


def require_ranks(ranks: Sequence[int], what: str) -> None:
    """Raise Bad where a rank between the first and the last is missing."""
    missing = sorted(set(range(max(ranks, default=-1) + 1)) - set(ranks))
    if missing:
        raise Bad(f"{what} {missing[0]} is missing")


# ---------------------------------------------------------------- Orbax and TensorStore

ORBAX_TEMPORARY = ".orbax-checkpoint-tmp"
MANIFEST, NODE, ZSTD = b"\x0c\xdb\x3a\x2a", b"\x0c\xdb\x20\xde", b"\x28\xb5\x2f\xfd"


def check_orbax(folder: Folder) -> int | None:
    """Check the commit marks, the manifests and what can be seen of the data without decompressing it."""
    if any(ORBAX_TEMPORARY in name for name in (folder.path.name, *folder.folders)):
        raise Bad("its temporary name says that it was not finished")
    names = {name.rpartition("/")[2] for name in folder.files}
    if "_CHECKPOINT_METADATA" in folder.files:
        state = read_json(folder.files["_CHECKPOINT_METADATA"])
        if not state.get("commit_timestamp_nsecs"):
            raise Bad("_CHECKPOINT_METADATA has no commit time: it was not finished")
    for name, path in sorted(folder.files.items()):
        check_orbax_file(folder, name, path)
    if not names & {"manifest.ocdbt", ".zarray", "zarr.json", "checkpoint"}:
        raise Bad("there are no arrays in it")
    check_headed(folder)
    return step_of(folder.path.name)


def check_headed(folder: Folder) -> None:
    """Check that data does not lie about without what describes it."""
    for name in sorted(folder.files):
        place, _, last = name.rpartition("/")
        if place.rpartition("/")[2] == "d" and re.fullmatch(r"[0-9a-f]{32}", last):
            needed = [f"{place[:-1]}manifest.ocdbt"]
            needed += [re.sub(r"ocdbt\.process_\d+/manifest", "manifest", needed[0])]
        elif re.fullmatch(r"\d{1,9}(?:\.\d{1,9})*", last) and f"{place}/zarr.json" not in folder.files:
            needed = [f"{place}/.zarray"]
        else:
            continue
        for one in needed:
            if one not in folder.files:
                raise Bad(f"{shown(one)} is missing")


def check_orbax_file(folder: Folder, name: str, path: Path) -> None:
    """Check one file of an Orbax checkpoint by its role."""
    last = name.rpartition("/")[2]
    if path.stat().st_size == 0:
        raise Bad(f"{shown(name)} is empty")
    if last in {"_METADATA", "_sharding", "zarr.json"} or "array_metadatas/" in name:
        read_json(path)
    elif last == ".zarray":
        check_zarr(folder, name)
    elif last == "manifest.ocdbt":
        check_manifest(name, path)
    elif re.fullmatch(r"(?:.*/)?d/[0-9a-f]{32}", name):
        check_records(name, path)


def check_manifest(name: str, path: Path) -> None:
    """Check an OCDBT manifest: its magic, its length, its checksum."""
    content = read_small(path, 16 * MEBI)
    if content[:4] != MANIFEST or len(content) < 17:
        raise Bad(f"{shown(name)} is damaged")
    (length,) = struct.unpack_from("<Q", content, 4)
    if length != len(content):
        raise Bad(f"{shown(name)} has {len(content)} bytes instead of {length}")
    if len(content) <= 65536 and crc32c(content[:-4]) != struct.unpack("<L", content[-4:])[0]:
        raise Bad(f"{shown(name)} is damaged")


def check_records(name: str, path: Path) -> None:
    """Follow the tree nodes and zstd frames of an OCDBT data file as far as they can be told."""
    with open_regular(path) as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        while at < size:
            file.seek(at)
            head = file.read(12)
            if head[:4] == NODE[: len(head)] or (head[:4] == ZSTD[: len(head)] and len(head) < 5):
                at += (struct.unpack_from("<Q", head, 4)[0] or size + 1) if len(head) == 12 else size + 1
            elif head[:4] == ZSTD:
                at = zstd_end(file, at, size)
            else:
                return
        if at != size:
            raise Bad(f"{shown(name)} is cut short")


def zstd_end(file: BinaryIO, at: int, size: int) -> int:
    """Give where a zstd frame ends, by its blocks' headers (RFC 8878); past the end where it is cut."""
    file.seek(at + 4)
    head = file.read(1)
    if not head:
        return size + 1
    single, checksum = head[0] >> 5 & 1, head[0] >> 2 & 1
    sizes = (1 if single else 0, 2, 4, 8)
    at += 5 + (0 if single else 1) + (0, 1, 2, 4)[head[0] & 3] + sizes[head[0] >> 6]
    while at + 3 <= size:
        file.seek(at)
        block = int.from_bytes(file.read(3), "little")
        at += 3 + (1 if block >> 1 & 3 == 1 else block >> 3)
        if block & 1:
            return at + 4 * checksum
    return size + 1


def check_zarr(folder: Folder, name: str) -> None:
    """Check an array's chunks: all there unless empty ones may be left out, each as long as can be told."""
    array = read_json(folder.files[name])
    place = name[: -len(".zarray")]
    try:
        shape, chunks = [int(n) for n in array["shape"]], [int(n) for n in array["chunks"]]
        counts = [-(-length // chunk) for length, chunk in zip(shape, chunks)]  # noqa: B905
        item = npy_size(array["dtype"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise Bad(f"{shown(name)} is damaged") from error
    there = [
        one for one in folder.files if one.startswith(place) and re.fullmatch(r"[\d./]+", one[len(place) :])
    ]
    needed = math.prod(counts)
    if array.get("fill_value") is None and len(there) < needed:
        raise Bad(f"{needed - len(there)} of {needed} chunks of {shown(place)} are missing")
    compressor = array.get("compressor")
    for one in there:
        whole = None if item is None else item * math.prod(chunks)
        check_chunk(one, folder.files[one], compressor, whole)


def check_chunk(name: str, path: Path, compressor: Any, whole: int | None) -> None:
    """Check one chunk's length by its compressor's header."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(16)
        kind = compressor.get("id") if isinstance(compressor, dict) else None
        needed: int | None = size
        if compressor is None:
            needed = whole
        elif kind == "zstd":
            needed = zstd_end(file, 0, size) if head[:4] == ZSTD else -1
        elif kind == "blosc":
            needed = struct.unpack_from("<L", head, 12)[0] if len(head) == 16 else -1
    if needed is not None and needed != size:
        raise Bad(f"the chunk {shown(name)} is cut short or damaged")


def crc32c(content: bytes) -> int:
    """Castagnoli's checksum, bit by bit: for small files alone."""
    value = 0xFFFFFFFF
    for byte in content:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


FOLDER_CHECKS: dict[str, Callable[[Folder], int | None]] = {
    "dcp": check_dcp, "orbax": check_orbax, "deepspeed": check_deepspeed, "megatron": check_megatron,
    "huggingface": check_huggingface, "safetensors": check_plain, "torch": check_plain, "numpy": check_plain,
}  # fmt: skip

# ---------------------------------------------------------------- finding them

NUMBERED = (
    re.compile(r"(?:global|train(?:ing)?)?[_-]?steps?[=_-]?(\d+)", re.IGNORECASE),
    re.compile(r"(?:iter(?:ation)?|it)[=_-]?(\d+)", re.IGNORECASE),
    re.compile(r"(?:checkpoint|ckpt|chkpt|model|state|save)[=_-](\d+)(?!.*-of-)", re.IGNORECASE),
    re.compile(r"^(\d+)$"),
)
TEMPORARY = re.compile(
    r"\.(?:tmp|temp|part|partial|incomplete|inprogress)\b|(?:^|[._-])te?mp[._-]|~$|\.tmp\w*$"
)
OURS = re.compile(re.escape(SET_ASIDE) + r"\d+|^set-aside$")
SKIPPED = re.compile(r"^(?:\.git|__pycache__|wandb|mlruns|runs|tensorboard|node_modules)$")


def step_of(name: str) -> int | None:
    """Read the step from a name. Epochs, ranks and shards are no steps."""
    stem = re.sub(
        r"\.(?:orbax-checkpoint-tmp.*|pt|pth|ckpt|bin|safetensors|npz|npy|pkl|pickle|tmp)$", "", name
    )
    for pattern in NUMBERED:
        found = pattern.findall(stem)
        if found and len(found[-1]) <= 18:
            return int(found[-1])
    return None


@dataclass
class Candidate:
    """Something that may be a checkpoint."""

    path: Path
    format: str
    step: int | None
    folder: bool
    size: int = 0
    at: float | None = None
    good: bool | None = None
    problem: str = ""
    exact: bool = True
    """Whether its completeness was read from itself, not guessed from its neighbours."""


def folder_format(name: str, names: set[str]) -> str:
    """Say which kind of checkpoint a folder is by what lies in it; empty where it is none."""
    marks = {"_CHECKPOINT_METADATA", "manifest.ocdbt", "_METADATA", "commit_success.txt"}
    if ORBAX_TEMPORARY in name or names & marks:
        return "orbax"
    if re.fullmatch(r"global_step\d+", name) and any(one.endswith("_states.pt") for one in names):
        return "deepspeed"
    if re.fullmatch(r"iter_\d+", name) or any(re.fullmatch(r"mp_rank_\d+(?:_\d+)*", one) for one in names):
        return "megatron"
    if ".metadata" in names or any(one.endswith(".distcp") for one in names):
        return "dcp"
    if re.fullmatch(r"(?:tmp-)?checkpoint-\d+", name) or "trainer_state.json" in names:
        return "huggingface"
    return plain_format(name, names)


def plain_format(name: str, names: set[str]) -> str:
    """Say whether a folder is one checkpoint in several files: sharded weights, or a step's own folder."""
    kinds = {FILE_FORMATS[Path(one).suffix] for one in names if Path(one).suffix in FILE_FORMATS} - {"pickle"}
    sharded = any(re.search(r"-of-\d+\.|\.index\.json$", one) for one in names)
    whole = names & {
        "model.safetensors",
        "pytorch_model.bin",
        "adapter_model.safetensors",
        "adapter_model.bin",
    }
    if sharded or whole or (kinds and step_of(name) is not None):
        return "safetensors" if "safetensors" in kinds else min(kinds, default="torch")
    return ""


def file_format(name: str, wanted: str) -> str:
    """Say which kind of checkpoint a file is by its name; empty where it is none."""
    stem = re.sub(r"(?:\.(?:tmp|temp|part|partial|incomplete|inprogress)\w*|~)$", "", name)
    suffix = Path(stem).suffix
    kind = FILE_FORMATS.get(suffix, "")
    if suffix == ".bin" and not re.match(r"(?:pytorch_|adapter_)?model|optimizer", name):
        return ""
    if suffix in {".npy", ".pkl", ".pickle"} and wanted == "auto" and step_of(name) is None:
        return ""
    return kind


class Finder:
    """Goes through a directory, bounded, and names what may be a checkpoint."""

    def __init__(self, root: Path, wanted: str, pattern: str) -> None:
        self.root, self.wanted = root, wanted
        self.pattern = glob_expression(pattern) if pattern else None
        self.found: list[Candidate] = []
        self.folders = self.entries = 0

    def run(self) -> list[Candidate]:
        """Find candidates. Raises OSError where the directory itself can't be read."""
        names = self.visit(self.root, "", 0)
        if not self.found and self.pattern is None:
            kind = folder_format(self.root.name, names)
            if self.fits(kind):
                self.found.append(Candidate(self.root, kind, step_of(self.root.name), folder=True))
        return self.found

    def fits(self, kind: str) -> bool:
        """Say whether a kind is wanted."""
        alike = {"lightning": "torch"}.get(self.wanted, self.wanted)
        return bool(kind) and alike in {"auto", "glob", kind}

    def visit(self, folder: Path, prefix: str, depth: int) -> set[str]:
        """Look at one folder's entries; links are not followed, so that none can lead in circles."""
        names: set[str] = set()
        deeper: list[tuple[Path, str]] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                self.entries += 1
                if self.entries > MOST_ENTRIES:
                    break
                names.add(entry.name)
                if OURS.search(entry.name) or SKIPPED.search(entry.name) or entry.is_symlink():
                    continue
                if self.consider(entry, prefix):
                    deeper.append((Path(entry.path), f"{prefix}{entry.name}/"))
        if depth < DEPTH:
            for path, name in sorted(deeper):
                self.folders += 1
                if self.folders <= MOST_FOLDERS:
                    self.descend(path, name, depth)
        return names

    def descend(self, path: Path, name: str, depth: int) -> None:
        """Look into a folder that is no checkpoint itself; one that can't be read is passed over."""
        with contextlib.suppress(OSError):
            self.visit(path, name, depth + 1)

    def consider(self, entry: os.DirEntry[str], prefix: str) -> bool:
        """Take an entry as a candidate; say whether to look inside instead."""
        folder = entry.is_dir(follow_symlinks=False)
        step, kind = step_of(entry.name), ""
        if self.pattern is not None:
            fit = self.pattern.fullmatch(prefix + entry.name)
            if fit is None:
                return folder
            number = fit.groupdict().get("step")
            step = int(number) if number and len(number) <= 18 else step
            kind = file_format(entry.name, "glob") or "glob"
        if folder:
            kind = self.folder_kind(entry, kind)
        elif not kind:
            kind = file_format(entry.name, self.wanted)
        if not self.fits(kind) and self.pattern is None:
            return folder
        self.found.append(Candidate(Path(entry.path), kind, step, folder))
        return False

    def folder_kind(self, entry: os.DirEntry[str], known: str) -> str:
        """Say what a folder is; one that can't be read is a checkpoint if its name says so."""
        try:
            with os.scandir(entry.path) as inside:
                names = {one.name for _, one in zip(range(MOST_FILES), inside)}  # noqa: B905
        except OSError:
            names = set()
        kind = folder_format(entry.name, names) or known
        if not kind and not names and self.wanted in FOLDER_CHECKS and step_of(entry.name) is not None:
            return self.wanted
        return kind


def glob_expression(pattern: str) -> re.Pattern[str]:
    """Make a regular expression of a glob; `{step}` stands for the number, `*` stops at a slash."""
    parts = re.split(r"(\{step\}|\*\*/|\*|\?)", pattern)
    words = {"{step}": r"(?P<step>\d+)", "**/": r"(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]"}
    seen, out = False, ""
    for part in parts:
        if part == "{step}" and seen:
            out += r"(?P=step)"
            continue
        seen = seen or part == "{step}"
        out += words.get(part, re.escape(part))
    return re.compile(out, re.DOTALL)


# ---------------------------------------------------------------- judging them


def measure(candidate: Candidate) -> tuple[int, float | None]:
    """Give size and time of the last write."""
    if candidate.folder:
        folder = Folder(candidate.path)
        return folder.size, folder.at
    found = candidate.path.lstat()
    return found.st_size, found.st_mtime


def judge(candidate: Candidate, now: float | None) -> None:
    """Say of one checkpoint, looked at alone, whether it is good."""
    try:
        before = candidate.size, candidate.at = measure(candidate)
        try:
            judge_content(candidate)
        finally:
            after = measure(candidate)
        candidate.size, candidate.at = after
        if before != after:
            candidate.good, candidate.problem = None, "it is still being written"
    except OSError as error:
        candidate.good = None
        candidate.problem = f"it can't be read ({error.strerror or error})"
    judge_age(candidate, now)


def judge_content(candidate: Candidate) -> None:
    """Check what is in it."""
    try:
        if TEMPORARY.search(candidate.path.name) and not candidate.folder:
            raise Bad("its temporary name says that it was not finished")
        inside = check_candidate(candidate)
        candidate.good, candidate.problem = True, ""
        candidate.step = candidate.step if candidate.step is not None else inside
    except Bad as error:
        candidate.good, candidate.problem = False, str(error)
    except Opaque as error:
        candidate.good, candidate.problem, candidate.exact = None, str(error), False
    except Unsure as error:
        candidate.good, candidate.problem = None, str(error)
    except RecursionError:
        candidate.good, candidate.problem = None, "it is nested too deeply to be followed"


def check_candidate(candidate: Candidate) -> int | None:
    """Check a file or a folder by its format."""
    if not candidate.folder:
        return check_file(candidate.path)
    folder = Folder(candidate.path)
    if folder.trouble:
        raise Unsure(folder.trouble)
    if not folder.files:
        raise Bad("empty")
    if TEMPORARY.search(candidate.path.name):
        raise Bad("its temporary name says that it was not finished")
    check = FOLDER_CHECKS.get(candidate.format)
    if check is None:
        raise Opaque("its format can't be verified")
    candidate.exact = candidate.format != "orbax"
    return check(folder)


def judge_age(candidate: Candidate, now: float | None) -> None:
    """Don't call bad what may be unfinished because it is just being written."""
    if now is None or candidate.at is None or abs(now - candidate.at) >= FRESH:
        return
    if candidate.good is False:
        candidate.good = None
        candidate.problem = f"perhaps still being written: {candidate.problem}"


def family(candidate: Candidate) -> tuple[str, str, str]:
    """Name those whose sizes can be compared: same place, same format, same name but for its numbers."""
    return str(candidate.path.parent), candidate.format, re.sub(r"\d+", "#", candidate.path.name)


def compare(candidates: Sequence[Candidate]) -> None:
    """Hold checkpoints against their neighbours: trackers, sizes, parts, order of steps."""
    families: dict[tuple[str, str, str], list[Candidate]] = {}
    for candidate in candidates:
        families.setdefault(family(candidate), []).append(candidate)
    for members in families.values():
        members.sort(key=order)
        for index, candidate in enumerate(members):
            if candidate.good is not False and not candidate.problem.startswith("it can't be read"):
                compare_size(candidate, [one for one in members if one is not candidate])
                compare_parts(candidate, members[:index])
        compare_order(members)
    for candidate in candidates:
        if candidate.good:
            compare_tracker(candidate)


def compare_size(candidate: Candidate, others: Sequence[Candidate]) -> None:
    """A checkpoint far smaller than its neighbours is odd; an unverifiable one is bad then."""
    sizes = sorted(one.size for one in others if one.good is not False and one.size)
    if not sizes:
        return
    share = candidate.size / sizes[len(sizes) // 2]
    said = f"it has {candidate.size} bytes, its neighbours {sizes[len(sizes) // 2]}"
    if share < FAR_SMALLER:
        candidate.good, candidate.problem = (None if candidate.exact else False), said
    elif not candidate.exact and share < SMALLER:
        candidate.good, candidate.problem = None, said
    elif not candidate.exact and candidate.good is None:
        candidate.good, candidate.problem = True, ""


def compare_parts(candidate: Candidate, before: Sequence[Candidate]) -> None:
    """A folder with fewer files than the one before it is incomplete (ranks, optimizer, shards)."""
    if not candidate.folder or not before or candidate.format == "orbax":
        return
    last = next((one for one in reversed(before) if one.good), None)
    if last is None:
        return
    with contextlib.suppress(OSError):
        mine, theirs = parts(candidate.path), parts(last.path)
        missing = sorted(theirs - mine)
        if missing:
            candidate.good = False
            candidate.problem = f"{shown(missing[0])} is missing, which {shown(last.path.name)} has"


def parts(path: Path) -> set[str]:
    """Name the weight files of a folder; shards by their number, since their count may change."""
    return {name for name in Folder(path).files if re.fullmatch(WEIGHTS, name) and "-of-" not in name}


def compare_order(members: Sequence[Candidate]) -> None:
    """A later step that is older than an earlier one is left over from another run."""
    for index, candidate in enumerate(members):
        if candidate.step is None or candidate.at is None or not candidate.good:
            continue
        for earlier in members[:index]:
            if (
                earlier.step is None
                or earlier.at is None
                or earlier.step >= candidate.step
                or not earlier.good
            ):
                continue
            if earlier.at > candidate.at + OUT_OF_ORDER:
                candidate.good = None
                candidate.problem = (
                    f"it is older than {shown(earlier.path.name)}: left over from another run?"
                )
                break


TRACKERS = {
    "deepspeed": ("latest", r"global_step(\d+)"),
    "megatron": ("latest_checkpointed_iteration.txt", r"(\d+)"),
}


def compare_tracker(candidate: Candidate) -> None:
    """What the file that is written last does not name yet was not finished."""
    if candidate.format not in TRACKERS or candidate.step is None:
        return
    name, pattern = TRACKERS[candidate.format]
    try:
        text = read_small(candidate.path.parent / name, 4096).decode("utf-8", "replace").strip()
    except (OSError, Unsure):
        return
    found = re.fullmatch(pattern, text)
    if found and int(found.group(1)) < candidate.step:
        candidate.good, candidate.problem = False, f"{name} still names {text}: it was not finished"


def order(candidate: Candidate) -> tuple[bool, int, float]:
    """Later steps are newer; where no step is known the time decides."""
    return candidate.step is not None, candidate.step or 0, candidate.at or 0.0


def find_checkpoints(
    directory: str | os.PathLike[str], format: str = "auto", glob: str = "", now: float | None = None
) -> list[CheckpointInfo]:
    """Find checkpoints below a directory, newest first, at most CHECKED of them.

    `now` (seconds since the epoch) is given while the training may still be writing: what was written within
    the last minute is then never called bad. Raises OSError where the directory can't be read, ValueError for
    an unknown format.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; there are {', '.join(FORMATS)}")
    if (format == "glob") != bool(glob):
        raise ValueError("format 'glob' and a glob belong together")
    found = Finder(Path(directory), format, glob).run()
    for candidate in found:
        with contextlib.suppress(OSError):
            candidate.at = candidate.path.lstat().st_mtime
    found = sorted(found, key=order, reverse=True)[: CHECKED * 4]
    numbered = [one for one in found if one.step is not None][:CHECKED]
    found = numbered + [one for one in found if one.step is None][:CHECKED]
    for candidate in found:
        judge(candidate, now)
    compare(found)
    found.sort(key=order, reverse=True)
    return [
        CheckpointInfo(str(one.path), one.step, one.format, one.size, one.at, one.good, one.problem)
        for one in found
    ]


def newest_good(
    directory: str | os.PathLike[str], format: str = "auto", glob: str = "", now: float | None = None
) -> CheckpointInfo | None:
    """Give the newest checkpoint that a training can be resumed from."""
    return next((one for one in find_checkpoints(directory, format, glob, now) if one.good), None)


def set_aside(path: str | os.PathLike[str], reason: str) -> str:
    """Move a checkpoint beside itself under a name that no training looks for, with a note; give the new path.

    Deletes nothing and overwrites nothing. Raises OSError where it can't be moved.
    """
    old = Path(path)
    old.lstat()
    for number in range(1, 10_000):
        new = old.with_name(f".{old.name}{SET_ASIDE}{number}")
        note = new.with_name(f"{new.name}.json")
        try:
            # The note is made first: making it anew is what reserves the name against others.
            handle = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            continue
        with os.fdopen(handle, "w", encoding="ascii") as file:
            json.dump({"was": str(old), "reason": reason, "at": time.time()}, file)
        if os.path.lexists(new):
            note.unlink()
            continue
        try:
            old.rename(new)
        except OSError:
            note.unlink()
            raise
        return str(new)
    raise FileExistsError(f"{old} was set aside too often")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a command; exit code 2 where the user must act."""
    parser = argparse.ArgumentParser(description="Which checkpoints can be resumed from?")
    parser.add_argument("directory", nargs="?", default="")
    parser.add_argument("--format", choices=FORMATS, default="auto")
    parser.add_argument("--glob", default="", help="with --format glob; {step} stands for the number")
    parser.add_argument("--writing", action="store_true", help="the training may still be writing")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--set-aside", default="", metavar="PATH")
    parser.add_argument("--reason", default="")
    options = parser.parse_args(arguments)
    try:
        if options.set_aside:
            print(json.dumps({"path": set_aside(options.set_aside, options.reason)}))
            return 0
        now = time.time() if options.writing else None
        found = find_checkpoints(options.directory or ".", options.format, options.glob, now)
    except (OSError, ValueError) as error:
        print(
            json.dumps({"problem": str(error)}) if options.json else f"checkpoints: {error}", file=sys.stderr
        )
        return 2
    if options.json:
        print(json.dumps({"checkpoints": [asdict(one) for one in found]}))
    else:
        for one in found:
            word = {True: "good", False: "bad", None: "?"}[one.good]
            print(
                f"{word:4} {one.step if one.step is not None else '-':>10} {one.size:>14} {shown(one.path)} {one.problem}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
