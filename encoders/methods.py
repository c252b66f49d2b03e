"""All methods by name: what each learns from, and what it trains or fits.

=============  =========================================================================================
hashnet        Cao et al., ICCV 2017: weighted pairs, tanh(beta z) with a rising beta
hashnet-c      HashNet+C: a similar pair of multi-labelled images is weighted by the overlap of its labels
hashnet-w      ablation: no weights
hashnet-ste    ablation: signs from the first step, with straight-through gradients
hashnet-sgn    ablation: tanh(z) throughout, signs taken afterwards, as in the paper's Table 3
hashnet-sharp  ablation: tanh(beta z) at the last beta (30 by default) from the first step
hashnet-st     ours: hashnet-ste plus a classifier on the same signs
dhn            Zhu et al., AAAI 2016: pairs and a quantisation penalty
latent         Lin et al., CVPR workshops 2015: a classifier behind a layer of sigmoids
joint          a reconstruction of Mu & Liu 2016: classification, then an exponentiated loss of pairs
csq            Yuan et al., CVPR 2020: one Hadamard centre for each class
orthohash      Hoe et al., NeurIPS 2021: one cross-entropy over cosines to centres
lsh            Charikar, STOC 2002: random hyperplanes on the backbone's features
sh             Weiss et al., NIPS 2008: spectral hashing of the features
itq            Gong & Lazebnik, CVPR 2011: rotated principal components of the features
neighbours     ours: a linear layer that learns which features are neighbours, started from ITQ
itq-cca        Gong et al., TPAMI 2013: rotated canonical components of features and labels
sdh            Shen et al., CVPR 2015: discrete codes for a linear classifier, on a kernel of the features
ksh            Liu et al., CVPR 2012: kernel hash functions fitted to pairs, one by one
=============  =========================================================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from hashlight.encoders.data.supervision.protocol import LABELS, MULTI_LABELS, NOTHING, PAIRS, VIEWS, Supervision
from hashlight.encoders.fits.hashers import Classes, Features, Hasher, check_components
from hashlight.encoders.fits.itq import ITQ
from hashlight.encoders.fits.itq_cca import ITQCCA
from hashlight.encoders.fits.ksh import KSH
from hashlight.encoders.fits.lsh import LSH
from hashlight.encoders.fits.neighbours import Neighbours
from hashlight.encoders.fits.sdh import SDH
from hashlight.encoders.fits.sh import SH
from hashlight.encoders.fits.streaming import Stream
from hashlight.encoders.losses.centres import check_centres
from hashlight.encoders.losses.csq import CSQ
from hashlight.encoders.losses.dhn import DHN
from hashlight.encoders.losses.hashnet import HashNet
from hashlight.encoders.losses.joint import Joint
from hashlight.encoders.losses.latent import Latent
from hashlight.encoders.losses.objective import Objective
from hashlight.encoders.losses.orthohash import OrthoHash
from hashlight.encoders.losses.straight_through import SteHashNet, StraightHashNet


def _any_bits(bits: int, dims: int, num_classes: int) -> None:
    """Accept any number of bits."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveSettings:
    """What an objective is built from.

    Attributes
    ----------
    bits, num_classes, seed : int
    alpha : float or None
        Slope of the pairs' likelihood; None is 10 / bits.
    """

    bits: int
    num_classes: int
    seed: int
    alpha: float | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One way to get codes. Exactly one of `objective` and `fit` is set.

    Attributes
    ----------
    name : str
    title : str
        The name to print in tables.
    learns_from : tuple of str
        Kinds of supervision.
    refusal : str
        Why no other kind works, and what to do instead.
    objective : callable, optional
        Builds the objective that a network is trained on.
    fit : callable, optional
        Learns a hasher from features (N, D), a number of bits, a seed and classes (N, C), dense or sparse, which are
        None for a method that does not read them.
    fit_stream : callable, optional
        Does as `fit` with features that need not fit in memory, a number of bits and a seed.
    check_bits : callable
        Called before training with the numbers of bits, feature dimensions and classes (0 without labels); raises
        ValueError if the method cannot produce that many, or that few, bits.
    continues : bool
        Whether beta rises by the schedule of the settings; if not, it is `beta` throughout.
    beta : float or None
        Sharpness of the method's own relaxed codes tanh(beta z); None is the beta at which continuation would end.
    pretrains : bool
        Whether classification comes first, whatever weights the backbone starts from.
    compares : bool
        Whether the objective compares the images of a batch with each other, so that each needs similar ones in it.
    """

    name: str
    title: str
    learns_from: tuple[str, ...]
    refusal: str = ""
    objective: Callable[[ObjectiveSettings], Objective] | None = None
    fit: Callable[[Features, int, int, Classes | None], Hasher] | None = None
    fit_stream: Callable[[Stream, int, int], Hasher] | None = None
    check_bits: Callable[[int, int, int], None] = _any_bits
    continues: bool = False
    beta: float | None = 1.0
    pretrains: bool = False
    compares: bool = True

    @property
    def reads_classes(self) -> bool:
        """Whether the method needs labels."""
        return set(self.learns_from) <= {LABELS, MULTI_LABELS}

    @property
    def ignores(self) -> frozenset[str]:
        """Settings of `encoders.training.train.TrainConfig` that have no effect on this method."""
        if self.fit is not None:
            return frozenset({"epochs", "schedule", "final_beta", "validation_images", "patience"})
        if self.continues:
            return frozenset()
        return frozenset({"schedule"} if self.beta is None else {"schedule", "final_beta"})

    def check(self, supervision: Supervision) -> None:
        """Refuse supervision that the method cannot learn from.

        Raises
        ------
        ValueError
        """
        if supervision.kind not in self.learns_from:
            raise ValueError(
                f"`method` {self.name} learns from {' or '.join(self.learns_from)}, got {supervision.kind}: "
                f"{self.refusal}"
            )


# Up to so many bits, and from so many rows on, "neighbours" is better than ITQ.
NEIGHBOURS_BITS = 64
NEIGHBOURS_ROWS = 2000

_PAIRWISE = (LABELS, MULTI_LABELS, PAIRS, VIEWS)
_CLASSES = (LABELS, MULTI_LABELS)
_ANYTHING = (NOTHING, LABELS, MULTI_LABELS, PAIRS, VIEWS)
_NEEDS_PAIRS = "it compares images with each other; give labels or pairs, or train on views"
_NEEDS_CLASSES = "it reads the classes of the images; label them, or choose hashnet (pairs) or itq (nothing)"
_NEEDS_SEVERAL = "with one label per image its weights would all be 1, which is hashnet"

METHODS = {
    method.name: method
    for method in (
        Method(
            name="hashnet",
            title="HashNet",
            learns_from=_PAIRWISE,
            refusal=_NEEDS_PAIRS,
            objective=lambda s: HashNet(s.alpha),
            continues=True,
        ),
        Method(
            name="hashnet-c",
            title="HashNet+C",
            learns_from=(MULTI_LABELS,),
            refusal=_NEEDS_SEVERAL,
            objective=lambda s: HashNet(s.alpha, jaccard=True),
            continues=True,
        ),
        Method(
            name="hashnet-w",
            title="HashNet-W",
            learns_from=_PAIRWISE,
            refusal=_NEEDS_PAIRS,
            objective=lambda s: HashNet(s.alpha, weighted=False),
            continues=True,
        ),
        Method(
            name="hashnet-ste",
            title="HashNet-ste (straight-through signs from the start)",
            learns_from=_PAIRWISE,
            refusal=_NEEDS_PAIRS,
            objective=lambda s: SteHashNet(s.alpha),
        ),
        Method(
            name="hashnet-sgn",
            title="HashNet-sgn (tanh(z) throughout, signs afterwards)",
            learns_from=_PAIRWISE,
            refusal=_NEEDS_PAIRS,
            objective=lambda s: HashNet(s.alpha),
        ),
        Method(
            name="hashnet-sharp",
            title="HashNet-sharp (tanh(beta z), the last beta from the start)",
            learns_from=_PAIRWISE,
            refusal=_NEEDS_PAIRS,
            objective=lambda s: HashNet(s.alpha),
            beta=None,
        ),
        Method(
            name="hashnet-st",
            title="HashNet, straight-through, with a classifier (ours)",
            learns_from=_CLASSES,
            refusal=_NEEDS_CLASSES,
            objective=lambda s: StraightHashNet(s.alpha, s.bits, s.num_classes),
        ),
        Method(
            name="dhn",
            title="DHN",
            learns_from=_PAIRWISE,
            refusal=_NEEDS_PAIRS,
            objective=lambda s: DHN(s.alpha),
        ),
        Method(
            name="latent",
            title="Latent layer (Lin et al. 2015)",
            learns_from=_CLASSES,
            refusal=_NEEDS_CLASSES,
            objective=lambda s: Latent(s.bits, s.num_classes),
            # sigmoid(z) = (tanh(z / 2) + 1) / 2.
            beta=0.5,
            compares=False,
        ),
        Method(
            name="joint",
            title="Joint (Mu & Liu 2016, a reconstruction)",
            learns_from=_CLASSES,
            refusal="it trains the network to classify before it hashes; label the images, or choose hashnet",
            objective=lambda _: Joint(),
            pretrains=True,
        ),
        Method(
            name="csq",
            title="CSQ",
            learns_from=_CLASSES,
            refusal=_NEEDS_CLASSES,
            objective=lambda s: CSQ(s.bits, s.num_classes, s.seed),
            compares=False,
            check_bits=lambda bits, _, num_classes: check_centres(num_classes, bits),
        ),
        Method(
            name="orthohash",
            title="OrthoHash",
            learns_from=_CLASSES,
            refusal=_NEEDS_CLASSES,
            objective=lambda s: OrthoHash(s.bits, s.num_classes, s.seed),
            compares=False,
            check_bits=lambda bits, _, num_classes: check_centres(num_classes, bits),
        ),
        Method(
            name="lsh",
            title="LSH",
            learns_from=_ANYTHING,
            fit=lambda features, bits, seed, _: LSH.fit(features, bits, seed),
            fit_stream=LSH.fit_stream,
        ),
        Method(
            name="sh",
            title="SH",
            learns_from=_ANYTHING,
            fit=lambda features, bits, seed, _: SH.fit(features, bits, seed),
            fit_stream=SH.fit_stream,
        ),
        Method(
            name="itq",
            title="ITQ",
            learns_from=_ANYTHING,
            fit=lambda features, bits, seed, _: ITQ.fit(features, bits, seed),
            fit_stream=ITQ.fit_stream,
            check_bits=lambda bits, dims, _: check_components(bits, dims, "ITQ"),
        ),
        Method(
            name="neighbours",
            title="Neighbours (ours)",
            learns_from=_ANYTHING,
            fit=lambda features, bits, seed, _: Neighbours.fit(features, bits, seed),
            fit_stream=Neighbours.fit_stream,
            check_bits=lambda bits, dims, _: check_components(bits, dims, "neighbours"),
        ),
        Method(
            name="itq-cca",
            title="ITQ-CCA",
            learns_from=_CLASSES,
            refusal=_NEEDS_CLASSES,
            fit=lambda features, bits, seed, classes: ITQCCA.fit(features, bits, seed, class_NC=_given(classes)),
            check_bits=lambda bits, dims, _: check_components(bits, dims, "ITQ-CCA"),
        ),
        Method(
            name="sdh",
            title="SDH",
            learns_from=_CLASSES,
            refusal=_NEEDS_CLASSES,
            fit=lambda features, bits, seed, classes: SDH.fit(features, bits, seed, class_NC=_given(classes)),
        ),
        Method(
            name="ksh",
            title="KSH",
            learns_from=_CLASSES,
            refusal=_NEEDS_CLASSES,
            fit=lambda features, bits, seed, classes: KSH.fit(features, bits, seed, class_NC=_given(classes)),
        ),
    )
}


def label_free_method(bits: int, rows: int) -> str:
    """Return the method that suits images or embeddings without labels best: "neighbours" or "itq".

    Measured on drawings: "neighbours" finds more of the nearest at 16 to 64 bits, ITQ as many at 128 and more beyond;
    with 500 rows ITQ is better at any length.
    """
    return "neighbours" if bits <= NEIGHBOURS_BITS and rows >= NEIGHBOURS_ROWS else "itq"


def streaming_method(name: str) -> Method:
    """Return the method with this name, which fits to a stream of features.

    Raises
    ------
    ValueError
        If there is none, or it needs more than features.
    """
    known = ", ".join(method.name for method in METHODS.values() if method.fit_stream is not None)
    if name not in METHODS:
        raise ValueError(f"`method` must be one of {known} for embeddings, got {name!r}")
    method = METHODS[name]
    if method.fit_stream is None:
        needs = "trains a network on images" if method.objective is not None else "reads the classes of the images"
        raise ValueError(f"`method` must be one of {known} for embeddings, got {name}, which {needs}")
    return method


def _given(classes: Classes | None) -> Classes:
    assert classes is not None, "`Method.check` lets no supervision without classes through"
    return classes
