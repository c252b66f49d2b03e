"""What the sources that download weights share."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from hashlight.encoders.errors import EncoderError
from hashlight.encoders.networks.backbone import first_words

T = TypeVar("T")

# A hub that does not answer within this is not waited for: its client would try for half a minute.
_ANSWER_S = 2.0


def from_hub(load: Callable[[], T]) -> T:
    """Return what `load` makes of the files in the cache of this machine, or else of those of the hub.

    What is in the cache is not compared with the hub, so that a machine without a network need not wait for it.

    Parameters
    ----------
    load : callable
        Loads with the client of the Hugging Face hub; may be called twice.

    Raises
    ------
    ConnectionError
        If the cache lacks a file and the hub does not answer.
    Exception
        Of `load`.
    """
    from huggingface_hub import constants

    try:
        with _offline():
            return load()
    except Exception:
        if constants.HF_HUB_OFFLINE:
            raise
    _refuse_silent(constants.ENDPOINT)
    return load()


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _refuse_silent(endpoint: str) -> None:
    """Raise ConnectionError unless a server answers, whatever it says; a name is not looked up for longer either."""
    from huggingface_hub import get_session

    failures: list[Exception | None] = []

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=_ANSWER_S)
        except Exception as error:
            failures.append(error)
        else:
            failures.append(None)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_ANSWER_S)
    if not failures:
        raise ConnectionError(f"{endpoint} did not answer within {_ANSWER_S:.0f} s")
    if (failure := failures[0]) is not None:
        raise ConnectionError(f"{endpoint} cannot be reached: {first_words(failure)}") from failure


def not_to_be_had(name: str, what: str, files: str, remedy: str, error: Exception) -> EncoderError:
    """Return the error for weights that are neither on this machine nor can be downloaded.

    Parameters
    ----------
    name : str
        Of the backbone.
    what : str
        What was sought: "the weights".
    files : str
        What has them: "the repository timm/resnet18".
    remedy : str
        What else can be given in their place.
    error : Exception
    """
    return EncoderError(
        f"{what} of {name} ({files} on the Hugging Face hub) are neither in the cache of this machine (HF_HOME, by "
        f"default ~/.cache/huggingface) nor could they be downloaded ({first_words(error)}): download them on a "
        f"connected machine and copy its cache, or {remedy}"
    )
