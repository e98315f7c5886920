"""Randomness without state: each value is a hash of a key and a counter.

So any place of any epoch's order, and any token's mask, is computed directly: nothing is
shuffled, nothing is drawn in order, nothing needs saving.
"""

from __future__ import annotations

import hashlib
from math import isqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 12  # with 8, the orders of five or six are visibly not equally likely


def key_of(*parts: int | str) -> int:
    """Hash what names a random stream, such as `("order", seed, "wiki")`, to a 64-bit key."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def mix64(words: ArrayLike) -> Words:
    """Scramble 64-bit words one to one (the finaliser of splitmix64, Steele et al. 2014).

    Args:
        words: Non-negative integers of any shape, read as uint64.

    Returns:
        uint64 of that shape, at least one-dimensional.
    """
    x = np.array(
        words, dtype=np.uint64, ndmin=1
    )  # always a copy, never a scalar: numpy warns of their overflow
    x += _GOLDEN
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def combine(keys: ArrayLike, counters: ArrayLike) -> Words:
    """Hash each key with its counter to a new key (uint64, shapes broadcast)."""
    return mix64(np.asarray(keys, dtype=np.uint64) ^ mix64(counters))


def unit(words: Words) -> NDArray[np.float64]:
    """Turn random words into numbers in `[0, 1)`."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniform(key: ArrayLike, counters: ArrayLike) -> NDArray[np.float64]:
    """Return a number in `[0, 1)` for each counter (shapes of key and counters broadcast)."""
    return unit(combine(key, counters))


def permute(indices: ArrayLike, size: int, key: ArrayLike) -> NDArray[np.int64]:
    """Return the images of `indices` under the permutation of `0 … size - 1` that `key` names.

    A Feistel network on the two digits of `high * low_size + low`, where `high_size * low_size`
    is barely more than `size`; an image outside is sent through again (cycle walking; Black and
    Rogaway 2002). Time and memory are those of `indices`, whatever the size.

    Args:
        indices: Integers in `[0, size)`.
        size: How many there are to permute, at least 1.
        key: One key, or one for each index.
    """
    places = np.atleast_1d(np.asarray(indices)).astype(np.uint64)
    keys = np.broadcast_to(np.asarray(key, dtype=np.uint64), places.shape)
    places = _feistel(places, size, keys)
    while (outside := np.flatnonzero(places >= size)).size:
        places[outside] = _feistel(places[outside], size, keys[outside])
    return places.astype(np.int64)


def _feistel(places: Words, size: int, keys: Words) -> Words:
    high_size = np.uint64(isqrt(size - 1) + 1)
    low_size = np.uint64(-(-size // int(high_size)))
    high, low = places // low_size, places % low_size
    for number in range(0, _ROUNDS, 2):
        high = (high + mix64(combine(keys, number) ^ low) % high_size) % high_size
        low = (low + mix64(combine(keys, number + 1) ^ high) % low_size) % low_size
    return high * low_size + low
