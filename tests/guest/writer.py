"""Writes to a file system in a guest and reads back what it wrote, past all caches, until it gets SIGTERM.

    python3 writer.py DIRECTORY

Each block says where it belongs and which write it comes from, and carries a checksum. The file that it writes grows as
its file system does, so that new room is used as soon as it is there. Prints `writing` once it does, and at its end,
after it has read everything once more, one JSON object: "written" blocks, "room" in bytes up to where it wrote,
"errors" of system calls, "wrong" blocks.
"""

import contextlib
import json
import mmap
import os
import random
import signal
import struct
import sys
import time
import zlib

BLOCK = 32 << 10
SHARE = 0.7
"""How much of the file system it fills at the most."""
PAUSE = 0.02
"""Seconds between two writes, so that an emulated processor has time for something else."""
HEADER = struct.Struct("<QQQ")


class Writer:
    def __init__(self, directory: str) -> None:
        self.file = os.open(f"{directory}/written", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        self.buffer = mmap.mmap(-1, BLOCK)  # at the start of a page, as O_DIRECT wants it
        self.noise = random.randbytes(BLOCK + 256)
        self.last: dict[int, int] = {}
        self.written = self.errors = self.wrong = 0
        self.stopped = False

    def content(self, place: int, turn: int) -> bytes:
        body = self.noise[turn % 256 :][: BLOCK - HEADER.size]
        return HEADER.pack(place, turn, zlib.crc32(body)) + body

    def write(self, place: int) -> None:
        turn = self.written + 1
        self.buffer[:] = self.content(place, turn)
        try:
            os.pwritev(self.file, [self.buffer], place * BLOCK)
        except OSError as error:
            self.complain("write", place, error)
            self.last.pop(place, None)  # it may hold either
        else:
            self.last[place] = self.written = turn

    def check(self, place: int) -> None:
        try:
            os.preadv(self.file, [self.buffer], place * BLOCK)
        except OSError as error:
            self.complain("read", place, error)
            return
        if self.buffer[:] != self.content(place, self.last[place]):
            self.wrong += 1
            found = HEADER.unpack(self.buffer[: HEADER.size])
            print(f"block {place} should be of write {self.last[place]}, but begins with {found}", flush=True)

    def complain(self, what: str, place: int, error: OSError) -> None:
        self.errors += 1
        print(f"{what} of block {place} after {self.written} writes: {error}", flush=True)

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stopped", True))
        while not self.stopped:
            system = os.fstatvfs(self.file)
            count = int(system.f_blocks * system.f_frsize * SHARE) // BLOCK
            # Half of them near the end, where the disk has just grown.
            place = random.randrange(count) if self.written % 2 else count - 1 - random.randrange(32)
            self.write(place)
            with contextlib.suppress(IndexError):
                self.check(random.choice(list(self.last)[-500:]))
            if self.written == 1:
                print("writing", flush=True)
            time.sleep(PAUSE)
        for place in self.last:
            self.check(place)
        room = (max(self.last, default=-1) + 1) * BLOCK
        print(json.dumps({"written": self.written, "room": room, "errors": self.errors, "wrong": self.wrong}))


Writer(sys.argv[1]).run()
