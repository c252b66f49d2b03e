"""Values drawn from a seed, where hypothesis, which prefers the simplest ones, would make the same change again."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any


class Sampler:
    """Draws a value from a generator; `a | b` draws from either."""

    def __init__(self, sample: Callable[[random.Random], Any]) -> None:
        self._sample = sample

    def __call__(self, rng: random.Random) -> Any:
        return self._sample(rng)

    def __or__(self, other: Sampler) -> Sampler:
        return Sampler(lambda rng: rng.choice([self, other])(rng))


def none() -> Sampler:
    return just(None)


def just(value: Any) -> Sampler:
    return Sampler(lambda rng: value)


def integers(low: int, high: int) -> Sampler:
    return Sampler(lambda rng: rng.randint(low, high))


def sampled_from(values: Sequence[Any]) -> Sampler:
    return Sampler(lambda rng: rng.choice(values))


def lists(each: Sampler, *, min_size: int = 0, max_size: int = 4, unique: bool = False) -> Sampler:
    def sample(rng):
        values = [each(rng) for _ in range(rng.randint(min_size, max_size))]
        return list(dict.fromkeys(values)) if unique else values

    return Sampler(sample)
