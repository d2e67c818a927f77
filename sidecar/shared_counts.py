"""How many streams are active in each scope, counted across processes in one piece of shared memory.

Owns the table in that memory, its lock, and what becomes of a process's counts when it dies. Must not know who the
processes are, nor what a limit is about.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import time
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sidecar.ports import Scope

ROWS: Final = 32 * 1024
"""How many scopes can be counted at once: every caller with a stream is one."""

WINDOW: Final = 64
"""How far from its home a scope's row may lie. One search in C finds it there, however full the table is."""

LOCK_PATIENCE_S: Final = 0.02
"""How long taking may wait for another process. A lock is held for some 10 µs, longer only by one that was put off its
core meanwhile: for a few milliseconds where there are more processes than cores."""

_MAGIC: Final = b"SCcounts"
_HEADER: Final = struct.Struct("<8sIII")
_HEADER_BYTES: Final = 64
_KEY_BYTES: Final = 16
_CELL_BYTES: Final = 4
_GIVE_UP_FOR_S: Final = 0.25
_YIELDS: Final = 20
_NAP_S: Final = 0.0001


def create(columns: int, *, rows: int = ROWS) -> int:
    """A descriptor of fresh memory in which ``columns`` processes can count; they get it by inheritance."""
    descriptor = os.memfd_create("sidecar-counts", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, _HEADER_BYTES + (rows + WINDOW) * (_KEY_BYTES + columns * _CELL_BYTES))
    os.pwrite(descriptor, _HEADER.pack(_MAGIC, columns, rows, 0), 0)
    return descriptor


class SharedCounts:
    """Fulfils `sidecar.ports.Counts` for the one process that owns ``column``; ``column`` None only looks and tidies.

    A row is a scope, a cell what one process has of it. Only its owner writes a column (or the parent, when the owner
    is dead), so giving back is one store and needs no lock; taking reads the sum of a row and holds the lock meanwhile,
    which the kernel releases when its holder dies. A row of zeroes is free, whatever key it still bears: so nothing
    has to be put in order after a process that was killed half-way.

    `take` refuses, as though the scope were full, where no row is free within reach, and where the lock cannot be had
    in time: its holder was stopped, and a limit that cannot be checked is not assumed to be kept.
    """

    is_shared = True

    def __init__(self, descriptor: int, column: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ValueError for a descriptor of something else."""
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, 0)
        magic, columns, rows, _ = _HEADER.unpack_from(self._map)
        if magic != _MAGIC or (column is not None and not 0 <= column < columns):
            raise ValueError("this is no memory to count streams in")
        self._column = column or 0
        self._columns = int(columns)
        self._rows = int(rows)
        self._cells_at = _HEADER_BYTES + (rows + WINDOW) * _KEY_BYTES
        self._view = memoryview(self._map)
        self._cells = self._view[self._cells_at :].cast("i")
        self._empty_row = bytes(columns * _CELL_BYTES)
        self._places: dict[tuple[str, str], int] = {}
        """Where the scopes are that this process counts in. Their rows are not free, so they stay where they are."""
        self._clock = clock
        self._hopeless_until = float("-inf")

    def close(self) -> None:
        """Let go of the memory, and of any lock on it: whoever closes it counts no more."""
        self._cells.release()
        self._view.release()
        self._map.close()

    # What everybody may ask.

    def take(self, scopes: Sequence[Scope]) -> Scope | None:
        """Count one stream in all of ``scopes`` and return None; or, where one is full, count nothing and return it."""
        if not scopes:
            return None
        if not self._lock():
            return next((scope for scope in scopes if scope.limit), scopes[0])
        taken: list[Scope] = []
        try:
            for scope in scopes:
                if not self._take_one(scope):
                    self.give(taken)
                    return scope
                taken.append(scope)
        finally:
            self._unlock()
        return None

    def give(self, scopes: Sequence[Scope]) -> None:
        """One stream less in each of ``scopes``. Never waits. Raises KeyError for one that nothing was taken of."""
        for scope in scopes:
            name = (scope.kind, scope.name)
            cell = self._places[name] * self._columns + self._column
            left = self._cells[cell] - 1
            if not left:
                del self._places[name]  # from here on the row may be free
            self._cells[cell] = left

    def used(self, scope: Scope) -> int:
        """How many are active in ``scope`` now, without the lock: others may be about to change it."""
        row = self._places.get((scope.kind, scope.name))
        if row is None:
            row = self._find(_key(scope))
        return 0 if row is None else self._total(row)

    # What the parent asks.

    def held(self, column: int) -> int:
        """The most that a process has of any one scope: where all its streams share one, how many they are."""
        return max(self._cells[column :: self._columns])

    def clear(self, column: int) -> None:
        """Forget what a dead process had. It is the column's only writer and gone, so no lock is needed: others may
        see part of it cleared, which makes room one stream after the other."""
        for row in range(self._rows + WINDOW):
            cell = row * self._columns + column
            if self._cells[cell]:
                self._cells[cell] = 0

    @property
    def is_empty(self) -> bool:
        """Nobody counts anything."""
        return not any(self._cells)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody takes meanwhile. Raises TimeoutError where the lock cannot be had."""
        if not self._lock():
            raise TimeoutError("the lock on the counts cannot be had")
        try:
            yield
        finally:
            self._unlock()

    # Rows.

    def _take_one(self, scope: Scope) -> bool:
        name = (scope.kind, scope.name)
        row = self._places.get(name)
        if row is None:
            key = _key(scope)
            row = self._find(key)
            if row is None:
                row = self._claim(key)
                if row is None:
                    return False
        if scope.limit and self._total(row) >= scope.limit:
            return False
        self._cells[row * self._columns + self._column] += 1
        self._places[name] = row
        return True

    def _total(self, row: int) -> int:
        start = row * self._columns
        return sum(self._cells[start : start + self._columns])

    def _find(self, key: bytes) -> int | None:
        """The row that bears this key, of no matter what count."""
        start = _HEADER_BYTES + self._home(key) * _KEY_BYTES
        end = start + WINDOW * _KEY_BYTES
        at: int = self._map.find(key, start, end)
        while at >= 0 and (at - start) % _KEY_BYTES:  # found across two other keys
            at = self._map.find(key, at + 1, end)
        return None if at < 0 else (at - _HEADER_BYTES) // _KEY_BYTES

    def _claim(self, key: bytes) -> int | None:
        """A free row, which bears this key from now on. Under the lock."""
        size = len(self._empty_row)
        first = start = self._cells_at + self._home(key) * size
        end = first + WINDOW * size
        while (at := self._map.find(self._empty_row, start, end)) >= 0:
            beyond = (at - first) % size
            if not beyond:
                row: int = (at - self._cells_at) // size
                self._map[_HEADER_BYTES + row * _KEY_BYTES : _HEADER_BYTES + (row + 1) * _KEY_BYTES] = key
                return row
            start = at + size - beyond  # found across two rows
        return None

    def _home(self, key: bytes) -> int:
        return int.from_bytes(key[:8], "little") % self._rows

    # The lock: a record lock, which belongs to the process and goes with it.

    def _lock(self) -> bool:
        if self._try_lock():
            return True
        now = self._clock()
        if now < self._hopeless_until:
            return False
        deadline = now + LOCK_PATIENCE_S
        for _ in range(_YIELDS):
            os.sched_yield()
            if self._try_lock():
                return True
        while self._clock() < deadline:
            time.sleep(_NAP_S)
            if self._try_lock():
                return True
        self._hopeless_until = self._clock() + _GIVE_UP_FOR_S  # the loop must not stand for this at every request
        return False

    def _try_lock(self) -> bool:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EAGAIN, errno.EINTR, errno.ENOLCK}:
                return False
            raise
        return True

    def _unlock(self) -> None:
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


def _key(scope: Scope) -> bytes:
    """128 bits of a hash stand for the scope: two that share them will not be met, not even on purpose."""
    return blake2b(f"{scope.kind}\0{scope.name}".encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES).digest()
