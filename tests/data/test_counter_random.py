from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernbert.data.counter_random import combine, key_of, mix64, permute, uniform


def test_mix64_is_splitmix64() -> None:
    golden = 0x9E3779B97F4A7C15
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # splitmix64 from state 0
    states = [number * golden % 2**64 for number in range(3)]
    assert mix64(states).tolist() == published


def test_mix64_neither_changes_its_argument_nor_collides() -> None:
    words = np.arange(100_000, dtype=np.uint64)
    assert len(np.unique(mix64(words))) == len(words)
    assert words[:3].tolist() == [0, 1, 2]


def test_keys_depend_on_every_part() -> None:
    keys = {
        key_of("order", 1, "wiki"),
        key_of("order", 2, "wiki"),
        key_of("mask", 1, "wiki"),
        key_of("order", "1"),
    }
    assert len(keys) == 4
    assert key_of("order", 1, "wiki") == 0xDC9EDB7225E4E925, "a change here changes every run's data order"


@pytest.mark.parametrize("key", [0, 1, key_of("any")])
def test_uniform_is_uniform_and_uncorrelated(key: int) -> None:
    draws = uniform(key, np.arange(200_000))
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.histogram(draws, bins=100, range=(0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 160  # chi-square, 99 degrees of freedom: 1 in 10,000
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(draws, uniform(key + 1, np.arange(200_000)))[0, 1]) < 0.01


def test_uniform_takes_a_key_for_each_counter() -> None:
    keys, counters = np.array([3, 4, 5]), np.array([9, 9, 8])
    assert uniform(keys, counters).tolist() == [uniform(*pair)[0] for pair in zip(keys, counters)]
    assert combine(3, 9) != combine(9, 3)


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 255, 256, 257, 65_536, 1_000_003])
def test_permute_is_a_bijection_at_awkward_sizes(size: int) -> None:
    images = permute(np.arange(size), size, key_of("size", size))
    assert np.bincount(images, minlength=size).max() == 1


def test_permute_finds_any_place_of_a_huge_order() -> None:
    size = 3 * 10**15
    images = permute([0, 1, size - 1], size, 7)
    assert len(set(images.tolist())) == 3
    assert images.min() >= 0
    assert images.max() < size
    assert permute(1, size, 7)[0] == images[1]


def test_permute_takes_a_key_for_each_index() -> None:
    keys = np.array([5, 6, 7], dtype=np.uint64)
    assert permute([4, 4, 4], 100, keys).tolist() == [permute(4, 100, int(key))[0] for key in keys]


def orders_of(size: int, num_keys: int) -> np.ndarray:
    """The order of `0 … size - 1` under each of many keys, `[num_keys, size]`."""
    keys = np.repeat(mix64(np.arange(num_keys)), size)
    return permute(np.tile(np.arange(size), num_keys), size, keys).reshape(num_keys, size)


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_every_order_of_a_few_is_about_equally_likely(size: int) -> None:
    _, counts = np.unique(orders_of(size, 20_000), axis=0, return_counts=True)
    assert len(counts) == math.factorial(size)
    expected = 20_000 / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < 3 * len(counts)


@pytest.mark.parametrize("size", [7, 10, 33])
def test_each_index_comes_to_each_place_equally_often(size: int) -> None:
    orders = orders_of(size, 5000)
    for index in range(size):
        counts = np.bincount(orders[:, index], minlength=size)
        assert ((counts - 5000 / size) ** 2 / (5000 / size)).sum() < 2.5 * size + 15


def test_an_order_looks_shuffled() -> None:
    size = 100_000
    one, other = (permute(np.arange(size), size, key) for key in (1, 2))
    assert (one == other).sum() < 20
    assert (one == np.arange(size)).sum() < 20
    assert (np.abs(np.diff(one)) == 1).sum() < 20  # neighbours do not stay neighbours
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 0.015
    first_tenth = np.histogram(one[: size // 10], bins=10, range=(0, size))[0]
    assert (np.abs(first_tenth - 1000) < 150).all()
