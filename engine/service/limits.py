"""How much one server takes on: what is beyond is refused at once, with the number that was exceeded."""

from __future__ import annotations

import dataclasses

MIB = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of one gateway.

    Attributes
    ----------
    body_bytes : int
        Of one request: 32 MiB hold 500 ordinary photographs for a page, or two million 64-bit codes.
    buffered_bytes : int
        Of all bodies being received at once, so that many slow uploads cannot fill the memory.
    body_s : float
        Seconds a body may take to arrive.
    pixels : int
        Of one image, told from its header before it is decoded. 64 million are 192 MB of RGB, which every decoding
        thread may hold, some three times over while transparent ones are laid on white.
    queries, images : int
        In one request.
    results : int
        Answers of one request, queries times `k` or `limit`.
    k : int
        Largest `k`, `limit` and `rerank.pool`.
    timeout_s, longest_timeout_s : float
        For a request that names no `timeout_ms`, and the most it may name.
    in_flight : int
        Requests at work; more are told to come again. With a millisecond each, 64 is the most that wait 0.1 s.
    """

    body_bytes: int = 32 * MIB
    buffered_bytes: int = 256 * MIB
    body_s: float = 30.0
    pixels: int = 64_000_000
    queries: int = 10_000
    images: int = 64
    results: int = 1_000_000
    k: int = 10_000
    timeout_s: float = 10.0
    longest_timeout_s: float = 60.0
    in_flight: int = 64

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"`{field.name}` must be above 0, got {value}")
        if self.buffered_bytes < self.body_bytes:
            raise ValueError(
                f"`buffered_bytes` must be at least `body_bytes` ({self.body_bytes}), got {self.buffered_bytes}: "
                "no body of that size would ever be received"
            )
