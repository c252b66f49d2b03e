"""How much one server accepts; anything beyond is refused at once, naming the limit."""

from __future__ import annotations

import dataclasses

MIB = 2**20

# What no gateway exceeds, so that lists are cut off while they are parsed.
MAX_QUERIES = 10_000
MAX_IMAGES = 64


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of one gateway.

    Attributes
    ----------
    body_bytes : int
        Of one request. 32 MiB hold 300 web-sized photographs in base64.
    text_bytes : int
        Of one JSON body besides its pictures, and of one Arrow body: 10,000 codes of 1,024 bits, or 250,000 ids.
    buffered_bytes : int
        Of all bodies being received at once, so that many slow uploads cannot fill the memory.
    body_s : float
        Seconds for a body to arrive.
    pixels : int
        Of one image, read from its header before it is decoded. 64 million are 192 MB of RGB for every image
        being decoded, and about three times that while a transparent image is put on white.
    queries, images : int
        Maximum number in one request; at most 10,000 and 64.
    results : int
        Maximum number of answers in one request: queries times `k` or `limit`.
    answer_bytes, answers_bytes : int
        Of one answer, about, and of all that are being sent, before they are written as text.
    k : int
        Largest `k`, `limit` and `rerank.pool`.
    timeout_s, longest_timeout_s : float
        Default for requests without `timeout_ms`, and the maximum.
    in_flight : int
        Requests in progress, from the end of their bodies to the last byte of their answers; more are refused and told
        to retry. At a millisecond each, 64 wait less than 0.1 s.
    """

    body_bytes: int = 32 * MIB
    text_bytes: int = 6 * MIB
    buffered_bytes: int = 256 * MIB
    body_s: float = 30.0
    pixels: int = 64_000_000
    queries: int = MAX_QUERIES
    images: int = MAX_IMAGES
    results: int = 1_000_000
    answer_bytes: int = 64 * MIB
    answers_bytes: int = 512 * MIB
    k: int = 10_000
    timeout_s: float = 10.0
    longest_timeout_s: float = 60.0
    in_flight: int = 64

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"`{field.name}` must be above 0, got {value}")
        for name, largest in (("queries", MAX_QUERIES), ("images", MAX_IMAGES)):
            if getattr(self, name) > largest:
                raise ValueError(f"`{name}` must be 1 to {largest}, got {getattr(self, name)}")
        if self.answers_bytes < self.answer_bytes:
            raise ValueError(
                f"`answers_bytes` must be at least `answer_bytes` ({self.answer_bytes}), got {self.answers_bytes}"
            )
        if self.buffered_bytes < self.body_bytes:
            raise ValueError(
                f"`buffered_bytes` must be at least `body_bytes` ({self.body_bytes}), got {self.buffered_bytes}: "
                "no body of that size would ever be received"
            )
