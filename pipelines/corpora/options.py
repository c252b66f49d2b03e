"""What a user says of a corpus that its files do not say themselves: its kind, and the names of its columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

KINDS = ("images", "parquet", "tar", "idx", "csv", "jsonl", "list", "coco", "img2dataset")


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusOptions:
    """How a corpus is to be read; what is None is found out.

    Attributes
    ----------
    kind : str or None
        One of `KINDS`: files of other kinds are left out.
    image_column, uri_column, id_column, label_column : str or None
        Columns of encoded images, of their URIs, of their ids and of their labels.
    keep : tuple of str or None
        Columns that are kept as attributes, apart from labels and from ids that are texts; None is all of them.
    join : tuple of two str or None
        A file of metadata (CSV, JSON lines or Parquet), and its column that has the images' file names or ids.
    """

    kind: str | None = None
    image_column: str | None = None
    uri_column: str | None = None
    id_column: str | None = None
    label_column: str | None = None
    keep: tuple[str, ...] | None = None
    join: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in KINDS:
            raise ValueError(f"`kind` must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.image_column is not None and self.image_column == self.uri_column:
            raise ValueError(f"`image_column` and `uri_column` are both {self.image_column!r}: name one of them")

    @classmethod
    def parse(cls, *, keep: str | None = None, join: str | None = None, **others: str | None) -> Self:
        """Read what was given on the command line: `keep` as "a,b", `join` as "FILE:COLUMN".

        Raises
        ------
        ValueError
            If it is something else.
        """
        columns = None if keep is None else tuple(name.strip() for name in keep.split(",") if name.strip())
        if columns == ():
            raise ValueError(f"`keep` must name columns, separated by commas, got {keep!r}")
        pair = None
        if join is not None:
            file, colon, column = join.rpartition(":")
            if not (file and colon and column) or column.startswith("//"):
                raise ValueError(f"`join` must be FILE:COLUMN, got {join!r}")
            pair = (file, column)
        return cls(keep=columns, join=pair, **others)

    def ids(self, given: str) -> str:
        """Return what ids are made from: the column of ids, unless something else was asked for.

        Raises
        ------
        ValueError
            If both were.
        """
        if self.id_column is None:
            return given
        if given not in ("auto", f"column:{self.id_column}"):
            raise ValueError(f"ids are taken from the column {self.id_column!r} or made from {given}: say one of them")
        return f"column:{self.id_column}"


NO_OPTIONS = CorpusOptions()
