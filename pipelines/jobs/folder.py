"""The folder of a job: what it has finished, so that the same command resumes where it was interrupted.

::

    FOLDER/
      job.json              the identity: all that the result depends on; it marks the folder
      sidecars/00000.json   written last for a unit of work: says that the unit is finished, and what it made
      (others)              what the job makes

Two jobs are the same if their identities are equal, whatever else they were given (processes, batches). Of two
processes that finish a unit, the first one's sidecar counts. The folder may be in a bucket.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from hashlight.engine.places.opening import open_place, open_target
from hashlight.engine.places.place import Place
from hashlight.engine.places.uris import split_name
from hashlight.pipelines.jobs.errors import PipelineError

LOCK = ".lock"
MARKER = "job.json"
SIDECARS = "sidecars"


def _check_nothing(_sidecar: dict[str, Any]) -> None:
    """Accept any sidecar."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobKind:
    """What sets the folders of one kind of job apart.

    Attributes
    ----------
    holds : str
        What such a folder holds, for messages: "codes".
    identified_by : tuple of str
        Keys that the identity of every job of this kind has, and that of no other kind has together.
    entries : tuple of str
        The names that a job of this kind writes beside the marker and the sidecars; the first says that it is finished.
    private : bool
        Whether the folder is named by the job itself, so that nothing in it can belong to anyone else.
    remedy : str
        What to do about the folder of another job; `{folder}` is the folder.
    check : callable
        Raises ValueError, LookupError, TypeError or AttributeError if a sidecar does not say what one of this kind
        says.
    """

    holds: str
    identified_by: tuple[str, ...] = ()
    entries: tuple[str, ...] = ()
    private: bool = False
    remedy: str = "choose another --output, or replace it with --overwrite"
    check: Callable[[dict[str, Any]], None] = _check_nothing


class OtherJobError(PipelineError):
    """A folder holds what another job finished; `different` names what the jobs differ in."""

    def __init__(self, message: str, different: list[str]) -> None:
        super().__init__(message)
        self.different = different


class JobFolder:
    """What a job has finished, at a place that processes on any machine may open.

    Parameters
    ----------
    location : str or Path
        A folder, or a prefix of a bucket.
    kind : JobKind
    name : str
        Name of the job that was begun there, as `begin` returned it, for processes that do its units.

    Attributes
    ----------
    place : Place
    name : str
        A hash of the identity, which every sidecar carries.
    """

    def __init__(self, location: str | Path, kind: JobKind, *, name: str = "") -> None:
        self.place = open_place(location)
        self.kind = kind
        self.name = name

    def __str__(self) -> str:
        """Return the path or URI."""
        return str(self.place)

    def refuse_foreign(self) -> None:
        """Raise PipelineError unless the folder is missing, empty, or marked by a job of this kind."""
        open_target(self.place.location)
        entry = self.place.entry()
        if entry is not None and not entry.is_folder:
            raise PipelineError(f"{self} is a file, expected a folder for {self.kind.holds}: choose another --output")
        found = self.identity()
        # A task that outlived its job may have left a sidecar.
        is_foreign = bool(set(self.place.names()) - {SIDECARS}) if found is None else self._is_of_another_kind(found)
        if is_foreign:
            raise PipelineError(
                f"{self} is not empty and holds no {self.kind.holds}: choose another --output, or move away what is "
                "there"
            )

    def _is_of_another_kind(self, found: dict[str, Any]) -> bool:
        return not found.keys() >= set(self.kind.identified_by)

    def begin(self, identity: Mapping[str, Any], *, overwrite: bool) -> str:
        """Mark the folder as this job's, if it is not yet, and return the job's name; the caller holds the lock.

        Parameters
        ----------
        identity : mapping
            All that the result depends on, as JSON.
        overwrite : bool
            Remove what another job left.

        Raises
        ------
        OtherJobError
            If another job's results are there, and are not to be removed.
        PipelineError
            If another process began a job there meanwhile.
        """
        document = json.loads(json.dumps(identity))
        found = self.identity()
        if found is not None and found != document and not overwrite:
            raise self._other_job(found, document)
        self.name = name_of(identity)
        if found == document:
            return self.name
        self.clear()
        if not self.place.put_new(MARKER, (json.dumps(document, indent=1) + "\n").encode()):
            raise PipelineError(f"another process began to write {self} meanwhile: choose another --output")
        return self.name

    def _other_job(self, found: dict[str, Any], asked: dict[str, Any]) -> OtherJobError:
        different = [key for key in {**asked, **found} if found.get(key) != asked.get(key)]
        details = ", ".join(f"{key} {found.get(key)} (asked: {asked.get(key)})" for key in different)
        remedy = self.kind.remedy.format(folder=self)
        return OtherJobError(f"{self} holds the {self.kind.holds} of another job, with {details}: {remedy}", different)

    def identity(self) -> dict[str, Any] | None:
        """Return the identity of the job whose folder it is; None if it is not a job's."""
        found = self.place.find(MARKER)
        if found is None:
            return None
        try:
            return parse_object(found.data)
        except ValueError as error:
            raise PipelineError(
                f"{self.place.path(MARKER)} is damaged ({error}): delete {self} and run again"
            ) from error

    def clear(self) -> None:
        """Remove everything that a job wrote, the marker last."""
        entries = self.place.names(hidden=True) if self.kind.private else self.kind.entries
        others = [name for name in entries if name not in (SIDECARS, MARKER, LOCK)]
        for name in (*others[:1], SIDECARS, *others[1:], MARKER):
            self.place.remove(name)

    def remove(self) -> None:
        """Remove a private folder, once its job is finished."""
        self.place.remove("")

    # Units of work.

    def publish(self, unit: int, said: Mapping[str, Any]) -> dict[str, Any]:
        """Publish the sidecar of a finished unit; return the sidecar of the process that was first to publish one."""
        sidecar = {"job": self.name, **said}
        if self.place.put_new(sidecar_name(unit), json.dumps(sidecar).encode()):
            return sidecar
        return self.parse(unit, self.place.read(sidecar_name(unit)))

    def sidecar(self, unit: int) -> dict[str, Any] | None:
        """Return the sidecar of a unit; None if it is not finished yet."""
        found = self.place.find(sidecar_name(unit))
        return None if found is None else self.parse(unit, found.data)

    def withdraw(self, unit: int) -> None:
        """Remove the sidecar of a unit that turned out to be unfinished."""
        self.place.remove(sidecar_name(unit))

    def parse(self, unit: int, data: bytes) -> dict[str, Any]:
        """Parse the sidecar of a unit.

        Raises
        ------
        PipelineError
            If it is another job's, or damaged.
        """
        try:
            sidecar = self._checked(data)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise PipelineError(
                f"{self.place.path(sidecar_name(unit))} is damaged: delete it and run the same command again, which "
                f"repeats the unit ({type(error).__name__}: {error})"
            ) from error
        if sidecar["job"] != self.name:
            raise PipelineError(
                f"unit {unit} was published by another job meanwhile ({sidecar['job']}, this one is {self.name}): make "
                f"sure that no other job writes to {self}, and run the same command again, which repeats the unit"
            )
        return sidecar

    def units(self) -> list[int]:
        """Return the numbers of the units that have a sidecar, ascending."""
        stems = (name.removesuffix(".json") for name in self.place.names(SIDECARS))
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def sidecars(self) -> dict[int, dict[str, Any]]:
        """Return the sidecars of any job by unit, without damaged ones."""
        return {unit: sidecar for unit, sidecar in self._read_sidecars() if sidecar is not None}

    def _read_sidecars(self) -> Iterator[tuple[int, dict[str, Any] | None]]:
        units = self.units()
        read = self.place.read_many(map(sidecar_name, units))
        return ((unit, self._parse(data)) for unit, data in zip(units, read, strict=True))

    def _parse(self, data: bytes) -> dict[str, Any] | None:
        """Parse a sidecar; None if it is damaged."""
        try:
            return self._checked(data)
        except (ValueError, LookupError, TypeError, AttributeError):
            return None

    def _checked(self, data: bytes) -> dict[str, Any]:
        sidecar = parse_object(data)
        if not isinstance(sidecar["job"], str):
            raise TypeError(f"expected the name of a job, got {sidecar['job']!r}")
        self.kind.check(sidecar)
        return sidecar

    def done(
        self, is_whole: Callable[[int, dict[str, Any]], bool] | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the finished units of this job, ascending, and their sidecars; those that do not hold are removed.

        A sidecar has the rejects of its unit and may be large: keep only what is needed of each.

        Parameters
        ----------
        is_whole : callable, optional
            Whether what a sidecar says about a unit is true; its job is compared in any case.
        """
        for unit, sidecar in self._read_sidecars():
            is_ours = sidecar is not None and sidecar["job"] == self.name
            if sidecar and is_ours and (is_whole is None or is_whole(unit, sidecar)):
                yield unit, sidecar
            else:
                self.withdraw(unit)

    # The end.

    def finish(self, name: str, document: Mapping[str, Any]) -> None:
        """Remove the temporary files of killed processes, and write the file that says that the job is finished."""
        for entry in self.place.children():
            if entry.is_folder:
                self.place.remove_leftovers(entry.name)
        self.place.remove_leftovers()
        self.place.put(name, (json.dumps(document, indent=1) + "\n").encode())


def private_folder(output: Place, job: str, *, shared: bool = False) -> str | Path:
    """Return where a job keeps what it has done until its output is there: beside it, or on this machine for a bucket.

    Parameters
    ----------
    output : Place
    job : str
        What the job is called there, such as "training".
    shared : bool
        Whether processes of other machines write there: then it is beside the output in a bucket, too.
    """
    if output.local or shared:
        location, name = split_name(output.location)
        return open_place(location).location_of(f".{name}.{job}")
    digest = hashlib.sha256(output.location.encode()).hexdigest()[:32]
    return Path(platformdirs.user_cache_dir("hashlight")) / job / digest


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises
    ------
    ValueError
        If it is not one.
    """
    try:
        document = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError(f"expected an object, got {type(document).__name__}")
    return document


def name_of(identity: Mapping[str, Any]) -> str:
    """Return the name of the job with this identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def sidecar_name(unit: int) -> str:
    """Name the file that says that a unit is finished."""
    return f"{SIDECARS}/{unit:05d}.json"
