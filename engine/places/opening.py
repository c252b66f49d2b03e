"""Opening a place by its location."""

from __future__ import annotations

from pathlib import Path

from hashlight.engine.places.bucket import Bucket
from hashlight.engine.places.elsewhere import Elsewhere
from hashlight.engine.places.folder import Folder
from hashlight.engine.places.place import Place, ReadOnly
from hashlight.engine.places.uris import BUCKET_SCHEMES, is_local, is_web, without_slash


def open_place(location: str | Path) -> Place:
    """Return the place at a path or URI, without accessing it.

    Parameters
    ----------
    location : str or Path
        A path, `file://PATH`, or a URI as `engine.places.uris` describes. The location of a file is a place whose only
        name is the empty one.

    Raises
    ------
    PlaceError
        If the URI's scheme is unknown.
    MissingDependencyError
        If reading it needs a package that is not installed.
    """
    text = str(location).removeprefix("file://")
    if is_local(text):
        return Folder(text)
    if text.partition("://")[0].lower() in BUCKET_SCHEMES:
        return Bucket(without_slash(text))
    if is_web(text):
        # Importing an HTTP client takes as long as everything else here.
        from hashlight.engine.places.web import Web

        return Web(text)
    return Elsewhere(without_slash(text))


def open_target(location: str | Path) -> Place:
    """Return the place at a path or URI that is to be written.

    Raises
    ------
    PlaceError
        If it can only be read; see also `open_place`.
    """
    place = open_place(location)
    if isinstance(place, ReadOnly):
        place.refuse()
    return place
