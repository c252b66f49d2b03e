"""What a source of networks offers. The modules beside this one are sources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from hashlight.encoders.networks.backbone import Backbone


class Source(Protocol):
    """Finds networks by what follows the colon of their names: "python:module:factory"."""

    def build(self, what: str, weights: str | None, /) -> Backbone:
        """Return a network with its weights.

        Parameters
        ----------
        what : str
        weights : str or None
            A file; None for the source's own.

        Raises
        ------
        EncoderError
            If there is no such network, its package is not installed, or its weights are missing or do not fit.
        """

    def rebuild(self, what: str, architecture: Mapping[str, Any], /) -> Backbone:
        """Return the network with random weights, from `Backbone.architecture`, without a download.

        Raises
        ------
        EncoderError
            If it cannot be built.
        """
