"""A list of known pairs; all other pairs are unknown, or, if no dissimilar ones are known, mostly dissimilar.

Shapes: P pairs, B images of a batch, Q pairs among them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse import csgraph

from hashlight.encoders.data.supervision.protocol import PAIRS, digest_of
from hashlight.encoders.data.supervision.samplers import PairSampler

logger = logging.getLogger(__name__)


class PairList(NamedTuple):
    """Known pairs of images; all other pairs are unknown, not dissimilar.

    Attributes
    ----------
    index_a, index_b : int array, shape (P,)
        Positions of the images.
    similar : bool or 0/1 array, shape (P,)
    """

    index_a: ArrayLike
    index_b: ArrayLike
    similar: ArrayLike


class PairSupervision:
    """A list of known pairs.

    A list of similar pairs alone would be satisfied by one code for all images. It is completed within each batch: two
    images count as dissimilar unless a chain of similar pairs joins them, which leaves them unknown.

    Parameters
    ----------
    pairs : PairList
    num_images : int

    Raises
    ------
    ValueError
        If the list is empty, has positions out of range, pairs an image with itself, contradicts itself, has no similar
        pair, or joins all of its images by chains of similar pairs without a dissimilar pair.
    """

    def __init__(self, pairs: PairList, num_images: int):
        first_P, second_P, similar_P = _check_pairs(pairs, num_images)
        self._num_images = num_images
        # A pair has the same key in either order.
        key_P = np.minimum(first_P, second_P) * num_images + np.maximum(first_P, second_P)
        self._key_P, position_P, inverse_P = np.unique(key_P, return_index=True, return_inverse=True)
        self._similar_P = similar_P[position_P]
        self._sampler = PairSampler(self._key_P, num_images)
        contradicted = np.flatnonzero(self._similar_P[inverse_P] != similar_P)
        if len(contradicted):
            row = int(contradicted[0])
            raise ValueError(
                f"`pairs` calls images {first_P[row]} and {second_P[row]} both similar and dissimilar: keep one"
            )
        if not similar_P.any():
            raise ValueError(
                f"`pairs` must hold a similar pair, got {len(self._key_P)} dissimilar ones: nothing would be brought "
                "together"
            )
        self._component_N = _components(self._key_P, num_images) if similar_P.all() else None

    @property
    def kind(self) -> str:
        """PAIRS."""
        return PAIRS

    @property
    def num_images(self) -> int:
        """Number of images, paired or not."""
        return self._num_images

    @property
    def num_classes(self) -> int:
        """0: pairs have no labels."""
        return 0

    def classes_of(self, index_B: torch.Tensor) -> torch.Tensor:
        """Refuse: there are no labels."""
        raise ValueError("a pair list has no labels")

    def batches_per_epoch(self, batch_size: int) -> int:
        """See `PairSampler.batches_per_epoch`."""
        return self._sampler.batches_per_epoch(batch_size)

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """See `PairSampler.batches`."""
        return self._sampler.batches(batch_size)

    def pairs_within(self, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Look up every pair of the batch in the list."""
        index = index_B.numpy().astype(np.int64)
        order_B = np.argsort(index)
        first_Q, second_Q = order_B[np.stack(np.triu_indices(len(order_B), 1))]
        # Each pair once, in ascending order: ten times as fast as at random, where each search misses the caches.
        key_Q = index[first_Q] * self._num_images + index[second_Q]
        place_Q = np.searchsorted(self._key_P, key_Q).clip(max=len(self._key_P) - 1)
        known_Q = self._key_P[place_Q] == key_Q
        known_BB, similar_BB = np.zeros((2, len(order_B), len(order_B)), np.bool_)
        if self._component_N is not None:
            component_B = self._component_N[index]
            known_BB |= component_B[:, None] != component_B
        known_BB[first_Q, second_Q] |= known_Q
        known_BB[second_Q, first_Q] |= known_Q
        similar_BB[first_Q, second_Q] = similar_BB[second_Q, first_Q] = self._similar_P[place_Q] & known_Q
        return torch.from_numpy(similar_BB), torch.from_numpy(known_BB)

    def affinity_within(self, index_B: torch.Tensor) -> torch.Tensor | None:
        """Return None: pairs are similar or not."""
        return None

    def with_similar(self, batch_size: int) -> Self:
        """Return this supervision: its batches are drawn by pairs."""
        return self

    def restricted_to(self, index_M: torch.Tensor) -> Self:
        """Refuse: hardly any pair would have both images in a part of them."""
        raise ValueError("a pair list cannot be restricted to some of its images without losing most of its pairs")

    def describe(self) -> str:
        """Return "pairs" and their number."""
        completed = "" if self._component_N is None else ", others of a batch dissimilar"
        return f"{len(self._key_P)} pairs, {int(self._similar_P.sum())} similar{completed}"

    def digest(self) -> str:
        """Return a hash of the pairs."""
        return digest_of(PAIRS, np.array([self._num_images]), self._key_P, self._similar_P)


def _components(key_P: NDArray[np.int64], num_images: int) -> NDArray[np.int32]:
    """Return the number of the chain of similar pairs that each image is in, (N,)."""
    first_P, second_P = np.divmod(key_P, num_images)
    links = sparse.coo_array((np.ones(len(key_P), np.bool_), (first_P, second_P)), shape=(num_images, num_images))
    component_N: NDArray[np.int32] = csgraph.connected_components(links, directed=False)[1]
    if len(np.unique(component_N[first_P])) < 2:
        raise ValueError(
            f"`pairs` must hold dissimilar pairs: the {len(key_P)} given are all similar and join all of their images, "
            "so that one code for all would satisfy them"
        )
    logger.warning(
        "all %d pairs are similar: images of a batch that no chain of them joins count as dissimilar", len(key_P)
    )
    return component_N


def _check_pairs(pairs: PairList, num_images: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    first_P, second_P, similar_P = (np.asarray(column) for column in pairs)
    if first_P.ndim != 1 or not first_P.shape == second_P.shape == similar_P.shape or not len(first_P):
        raise ValueError(
            "`pairs` must be three columns of one length of at least 1 (index_a, index_b, similar), got shapes "
            f"{first_P.shape}, {second_P.shape}, {similar_P.shape}"
        )
    if first_P.dtype.kind not in "iu" or second_P.dtype.kind not in "iu":
        raise ValueError(f"`index_a` and `index_b` must be integers, got {first_P.dtype} and {second_P.dtype}")
    both_2P = np.stack([first_P, second_P]).astype(np.int64)
    if both_2P.min() < 0 or both_2P.max() >= num_images:
        raise ValueError(f"`pairs` must name images 0 to {num_images - 1}, got {both_2P.min()} to {both_2P.max()}")
    if (both_2P[0] == both_2P[1]).any():
        row = int(np.argmax(both_2P[0] == both_2P[1]))
        raise ValueError(
            f"`pairs` must join two different images, got image {both_2P[0][row]} with itself in row {row}"
        )
    if not np.isin(similar_P, (0, 1)).all():
        raise ValueError(f"`similar` must be 0 or 1, got {similar_P[~np.isin(similar_P, (0, 1))][0]!r}")
    return both_2P[0], both_2P[1], similar_P.astype(np.bool_)
