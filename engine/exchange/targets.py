"""Where exports go."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from hashlight.engine.places.opening import open_target
from hashlight.engine.places.uris import split_name


@contextlib.contextmanager
def written_file(target: str | Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a local path for a file; if the context exits without an error, the file is in its place, in one step.

    Parameters
    ----------
    target : str or Path
        A path, or a URI in a bucket.
    overwrite : bool
        Whether it may replace a file.

    Raises
    ------
    FileExistsError
        If there is a file and `overwrite` is false, or there is a folder.
    PlaceError
        If nothing can be written there.
    """
    folder, name = split_name(open_target(target).location)
    place = open_target(folder)
    entry = place.entry(name)
    if entry is not None and (entry.is_folder or not overwrite):
        if entry.is_folder:
            raise FileExistsError(f"{place.path(name)} is a folder, expected the name of a file: choose another name")
        raise FileExistsError(
            f"{place.path(name)} is there already: choose another name, or allow it to be replaced "
            "(`overwrite=True`, `--overwrite`)"
        )
    with place.scratch(name) as path:
        yield path
        place.put_file(name, path)
