"""What the sources that download weights share."""

from __future__ import annotations

from hashlight.encoders.errors import EncoderError
from hashlight.encoders.networks.backbone import first_words


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
