"""Triton's interpreter, for kernels on a CPU: mended where it errs, and on the watch for races.

The interpreter (3.6 to 3.9) multiplies the bits of bfloat16 as if they were integers, cuts where hardware
rounds, and some of its versions do not get on with numpy 2.4. Kernels stay as a GPU takes them; it is put
right here, as long as `mended` lasts.

It runs one program after another, so a race would go unseen. Therefore each address that a program reads or
writes is noted: it must lie inside a tensor that the kernel was given, and what one program writes no other
may read or write.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor
from triton.runtime import interpreter

Array = NDArray[Any]


@contextmanager
def mended() -> Iterator[list[Tensor]]:
    """Put the interpreter right, and watch it.

    Yields:
        A list for tensors that kernels are told of by their addresses alone.
    """
    known: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        _mend(patch)
        _watch(patch, known)
        yield known


def _mend(patch: pytest.MonkeyPatch) -> None:
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    cast, dot, language = builder.cast_impl, builder.create_dot, interpreter._patch_lang_tensor

    def to_type(self: Any, given: Any, target: Any) -> Any:
        before, after = given.dtype.scalar, target.scalar
        if (before, after) == (tl.bfloat16, tl.float32):
            return handle(widened(given.data), after)
        if (before, after) == (tl.float32, tl.bfloat16):
            return handle(rounded(given.data), after)
        return cast(self, given, target)

    def product(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        wide = (to_type(self, x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, *wide, *rest)

    def tensors(tensor: Any, scope: Any) -> None:
        language(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    patch.setattr(builder, "cast_impl", to_type)
    patch.setattr(builder, "create_dot", product)
    patch.setattr(interpreter, "_patch_lang_tensor", tensors)


def widened(bits: Array) -> Array:
    """Return the fp32 numbers of the bits, uint16, of bf16 ones."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(x: Array) -> Array:
    """Round fp32 numbers to the bits of the nearest bf16 ones, of two the even one."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    nearest = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), nearest)


class _Launch:
    """What the programs of one launch read and write: the address of each number, and whose it was."""

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.name = name
        tensors = [getattr(it, "base", it) for it in arguments]
        self._ranges = sorted(
            (it.data_ptr(), it.data_ptr() + it.numel() * it.element_size())
            for it in tensors
            if isinstance(it, Tensor)
        )
        self.reads: list[tuple[int, Array]] = []
        self.writes: list[tuple[int, Array]] = []

    def check(self) -> None:
        (readers, read), (writers, written) = _joined(self.reads), _joined(self.writes)
        for addresses, done in ((read, "reads"), (written, "writes")):
            inside = np.zeros(len(addresses), dtype=bool)
            for begin, end in self._ranges:
                inside |= (addresses >= begin) & (addresses < end)
            assert inside.all(), f"`{self.name}` {done} outside of what it was given"
        order = np.argsort(written, kind="stable")
        written, writers = written[order], writers[order]
        is_again = written[1:] == written[:-1]
        assert (writers[1:] == writers[:-1])[is_again].all(), f"`{self.name}`: two programs write one place"
        if len(written):
            place = np.searchsorted(written, read).clip(max=len(written) - 1)
            is_shared = (written[place] == read) & (writers[place] != readers)
            assert not is_shared.any(), f"`{self.name}`: a program reads what another writes"


def _joined(parts: list[tuple[int, Array]]) -> tuple[Array, Array]:
    if not parts:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
    programs = np.repeat([program for program, _ in parts], [len(addresses) for _, addresses in parts])
    return programs, np.concatenate([addresses for _, addresses in parts])


def _watch(patch: pytest.MonkeyPatch, known: list[Tensor]) -> None:
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, call = builder.create_masked_load, builder.create_masked_store, executor.__call__
    launches: list[_Launch] = []

    def noted(self: Any, kind: str, pointers: Any, mask: Any) -> None:
        flags = mask.data if isinstance(mask, interpreter.TensorHandle) else mask
        x, y, z = self.grid_idx
        meant = pointers.data[np.broadcast_to(flags, pointers.data.shape)]
        getattr(launches[-1], kind).append((x + (y << 20) + (z << 40), meant.ravel()))

    def loaded(self: Any, pointers: Any, mask: Any, *rest: Any, **more: Any) -> Any:
        noted(self, "reads", pointers, mask)
        return load(self, pointers, mask, *rest, **more)

    def stored(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **more: Any) -> Any:
        noted(self, "writes", pointers, mask)
        return store(self, pointers, value, mask, *rest, **more)

    def called(self: Any, *arguments: Any, **options: Any) -> Any:
        launches.append(_Launch(self.fn.__name__, (*arguments, *known)))
        try:
            call(self, *arguments, **options)
            launches[-1].check()
        finally:
            launches.pop()

    patch.setattr(builder, "create_masked_load", loaded)
    patch.setattr(builder, "create_masked_store", stored)
    patch.setattr(executor, "__call__", called)
