"""Measures of codes that need no labels: neighbours kept, images within a radius, distorted copies found again.

Shapes: Q queries, N database items, D feature dimensions, J neighbours, P items of a pool.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from hashlight.encoders.data.images import open_image
from hashlight.encoders.encoder import EncoderOutput, HashEncoder
from hashlight.encoders.errors import ImageError
from hashlight.encoders.metrics import distinct_codes
from hashlight.engine.codes import CodeArray
from hashlight.engine.collection.rerank import inner_products
from hashlight.engine.indexes.choice import IndexChoice, build_index
from hashlight.engine.indexes.histogram import distance_histogram
from hashlight.engine.results import PAD_ID

NEIGHBOURS = 10
RERANKED = 100
RADII = (0, 1, 2, 3, 4, 6, 8, 10, 12, 16)
ATTACK_RADII = (0, 2, 4, 8, 12)
# Images that are distorted: each is encoded once for each attack.
ATTACKED = 100

# Of the pool that asymmetric order takes the images to re-rank from.
_POOL = 1000
_COSINES_AT_ONCE = 2**24

Attack = Callable[[Image.Image], Image.Image]


class Coded(NamedTuple):
    """Codes (Q, W) and projections (Q, B) of the queries, and codes (N, W) of the database, by one method."""

    queries: CodeArray
    projections: NDArray[np.floating]
    database: CodeArray


@dataclass(frozen=True, slots=True)
class LabelFree:
    """Quality of one method's codes, without labels.

    Attributes
    ----------
    recall, recall_asymmetric : float
        Share of the 10 nearest by cosine of the features that are among the first 10 answers, in Hamming order and in
        asymmetric order.
    recall_reranked, recall_asymmetric_reranked : float
        The same with the first 100 answers re-ranked by the features.
    distinct_codes : int
        Of the database.
    found_within, answers_within : dict of str to float
        For each radius: share of queries with at least one answer, and mean number of answers.
    """

    recall: float
    recall_asymmetric: float
    recall_reranked: float
    recall_asymmetric_reranked: float
    distinct_codes: int
    found_within: dict[str, float]
    answers_within: dict[str, float]


def label_free_report(
    coded: Coded, nearest_QJ: NDArray[np.intp], *, bits: int, index: IndexChoice = "auto"
) -> LabelFree:
    """Measure the codes of one method.

    Parameters
    ----------
    coded : Coded
    nearest_QJ : ndarray of int, shape (Q, J)
        Rows of the database, from `nearest_by_features`.
    bits : int
    index : str
        The index that answers, as in `Collection.open`.
    """
    rows = np.arange(len(coded.database))
    pool = min(_POOL, len(rows))
    pool_QP = build_index(index, coded.database, rows, bits=bits).search(coded.queries, pool).ids
    assert not (pool_QP == PAD_ID).any(), "a pool is no larger than the database"
    asymmetric_QP = _in_asymmetric_order(coded, pool_QP)
    # A service orders the 100 nearest codes for 10 answers.
    shown_Q10 = _in_asymmetric_order(coded, pool_QP[:, :RERANKED])[:, :NEIGHBOURS]
    same_Q, same_N = (np.zeros(len(codes), np.int64) for codes in (coded.queries, coded.database))
    counts = distance_histogram(coded.queries, coded.database, query_labels=same_Q, code_labels=same_N, bits=bits)
    within = np.cumsum(counts.total, axis=1)
    radii = [radius for radius in RADII if radius <= bits]
    return LabelFree(
        recall=_share(nearest_QJ, pool_QP[:, :NEIGHBOURS]),
        recall_asymmetric=_share(nearest_QJ, shown_Q10),
        recall_reranked=_share(nearest_QJ, pool_QP[:, :RERANKED]),
        recall_asymmetric_reranked=_share(nearest_QJ, asymmetric_QP[:, :RERANKED]),
        distinct_codes=distinct_codes(coded.database),
        found_within={str(radius): float((within[:, radius] > 0).mean()) for radius in radii},
        answers_within={str(radius): float(within[:, radius].mean()) for radius in radii},
    )


def nearest_by_features(queries: EncoderOutput, database: EncoderOutput) -> NDArray[np.intp]:
    """Return the rows of the database that are nearest to each query by cosine of the features, (Q, J), exactly."""
    unit_QD, unit_ND = _unit(queries.features), _unit(database.features)
    count = min(NEIGHBOURS, len(unit_ND))
    found = [np.empty((0, count), np.intp)]
    for part_RD in np.array_split(unit_QD, -(-len(unit_QD) * len(unit_ND) // _COSINES_AT_ONCE)):
        found.append(np.argsort(-(part_RD @ unit_ND.T), axis=1, kind="stable")[:, :count])
    return np.concatenate(found)


def attacks_report(model: HashEncoder, images: Sequence[bytes], codes: CodeArray) -> dict[str, dict[str, float]]:
    """Distort images, encode them again, and return for each attack and radius the share that is still within it.

    Parameters
    ----------
    model : HashEncoder
    images : sequence of bytes
        Files that can be decoded.
    codes : ndarray of uint64, shape (N, W)
        Their codes.
    """
    opened = [open_image(data).convert("RGB") for data in images]
    found: dict[str, dict[str, float]] = {}
    for name, attack in ATTACKS.items():
        changed = model.encode([attack(image) for image in opened])
        distance_N = np.bitwise_count(changed ^ codes).sum(axis=1)
        found[name] = {str(r): float((distance_N <= r).mean()) for r in ATTACK_RADII if r <= model.bits}
    return found


def can_be_opened(data: object) -> bool:
    """Whether an image can be decoded in this process."""
    try:
        return isinstance(data, bytes) and bool(open_image(data).size)
    except ImageError:
        return False


def _in_asymmetric_order(coded: Coded, pool_QP: NDArray[np.int64]) -> NDArray[np.int64]:
    """Order pools, which are in Hamming order, by asymmetric distance; of equal ones the first stays first."""
    counts_Q = np.full(len(pool_QP), pool_QP.shape[1])
    products = inner_products(coded.projections, coded.database[pool_QP.reshape(-1)], counts_Q)
    order_QP = np.argsort(-products.reshape(pool_QP.shape), axis=1, kind="stable")
    return np.take_along_axis(pool_QP, order_QP, axis=1)


def _share(wanted_QJ: NDArray[np.intp], found_QP: NDArray[np.int64]) -> float:
    return float(np.mean([np.isin(wanted, found).mean() for wanted, found in zip(wanted_QJ, found_QP, strict=True)]))


def _unit(feature_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    length_N = np.linalg.norm(feature_ND, axis=1, keepdims=True)
    return np.asarray(feature_ND / np.maximum(length_N, np.finfo(np.float32).tiny), np.float32)


def _jpeg(quality: int) -> Attack:
    def attack(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return attack


def _halved(image: Image.Image) -> Image.Image:
    return image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.BICUBIC)


def _cropped(image: Image.Image) -> Image.Image:
    left, top = image.width // 20, image.height // 20
    return image.crop((left, top, image.width - left, image.height - top))


def _blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(max(image.size) / 100))


def _grey(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")


def _written_on(image: Image.Image) -> Image.Image:
    marked = image.copy()
    size = max(8.0, image.height / 8)
    ImageDraw.Draw(marked).text((image.width / 10, image.height / 2), "SAMPLE", fill=(255, 0, 0), font_size=size)
    return marked


def _rotated(image: Image.Image) -> Image.Image:
    return image.rotate(5, Image.Resampling.BICUBIC, fillcolor=(255, 255, 255))


ATTACKS: dict[str, Attack] = {
    "JPEG, quality 75": _jpeg(75),
    "JPEG, quality 25": _jpeg(25),
    "half the size": _halved,
    "a tenth of each side cropped": _cropped,
    "blurred": _blurred,
    "grey": _grey,
    "text across": _written_on,
    "rotated by 5 degrees": _rotated,
}
