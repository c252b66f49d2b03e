"""The summary of a folder of codes, which says that it is complete."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hashlight.engine.codes import check_bits
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.uris import without_credentials
from hashlight.engine.storage.manifest import check_name
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.folder import MARKER, parse_object

SUMMARY = "codes.json"


@dataclass(frozen=True, slots=True)
class EncodeSummary:
    """What an encode job did.

    Attributes
    ----------
    images, codes, rejects : int
        `images = codes + rejects`.
    bits : int
    encoder : str
        The encoder's fingerprint.
    corpus : str
    reject_kinds : dict of str to int
        Rejects by kind, as in `pipelines.corpora.reasons`.
    skipped : dict of str to int
        Files of the corpus that are no images, by kind; none of them is among `images`.
    """

    images: int
    codes: int
    rejects: int
    bits: int
    encoder: str
    corpus: str
    reject_kinds: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)


def encode_first(corpus: str | Path) -> str:
    """Return what to do with a folder of images where one of codes was expected."""
    return (
        f"if it has images, encode them first: `hashlight encode --input {without_credentials(str(corpus))} "
        "--encoder ENCODER --output CODES`, and give CODES instead"
    )


def read_summary(codes: str | Path) -> EncodeSummary:
    """Return what `codes.json` says about a folder of codes.

    Raises
    ------
    PipelineError
        If the folder is not one, or its job has not finished.
    """
    output = open_place(codes)
    if not output.exists(SUMMARY):
        state = (
            "an unfinished encode job: run the same `hashlight encode` again to finish it"
            if output.exists(MARKER)
            else f"no codes: expected a folder that `hashlight encode` wrote; {encode_first(codes)}"
        )
        raise PipelineError(f"{output} holds {state}")
    try:
        summary = EncodeSummary(**parse_object(output.read(SUMMARY)))
        counts = (summary.images, summary.codes, summary.rejects)
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"expected numbers of images, codes and rejects, got {counts}")
        check_bits(summary.bits)
        check_name(summary.encoder, "an encoder")
        return summary
    except (ValueError, TypeError) as error:
        raise PipelineError(f"{output.path(SUMMARY)} is damaged ({error}): encode the corpus again") from error
