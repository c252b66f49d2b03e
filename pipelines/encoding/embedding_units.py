"""One unit of a job that encodes embeddings: a range of rows of a file; the stage that Ray's actors run."""

from __future__ import annotations

import gc
import threading
import time
from collections import defaultdict

import numpy as np
import pyarrow as pa

from hashlight.encoders.encoder import EncoderOutput
from hashlight.pipelines.codes.encoder import load_encoder
from hashlight.pipelines.codes.parts import PLAN
from hashlight.pipelines.corpora.embeddings.rows import RowReader, Rows
from hashlight.pipelines.corpora.kinds.webdataset import START, STOP
from hashlight.pipelines.corpora.listing import SOURCE, STAMP, File
from hashlight.pipelines.corpora.reasons import FORMAT, Reason
from hashlight.pipelines.corpora.work import WorkList
from hashlight.pipelines.encoding.units import Encoded, EncodeUnits
from hashlight.pipelines.jobs import chaos


class EncodeEmbeddings(EncodeUnits):
    """Encodes units of embeddings; otherwise as `EncodeUnits`, but that nothing has to be decoded."""

    def _start(self) -> None:
        """Load the encoder and open the work list."""
        chaos.step("start")
        self._encoder = load_encoder(self._output.location_of("encoder"))
        self._work = WorkList(self._output.open(PLAN), self._output.path(PLAN))
        # By thread, which has one block of units at a time, in the order of the plan.
        self._rows: defaultdict[int, RowReader] = defaultdict(self._new_reader)
        gc.freeze()

    def _new_reader(self) -> RowReader:
        summary = self._work.summary
        return RowReader(
            column=summary.embedding_column, dims=self._encoder.config.embeddings.dims, ids=summary.id_rule
        )

    def close(self) -> None:
        """Close files; those of an actor end with it."""
        for reader in self._rows.values():
            reader.close()

    def _encode_entries(self, entries: pa.Table) -> tuple[pa.Table, Encoded]:
        """Encode the rows of a unit; return their entries, which are known only now, and the outputs."""
        encoded = Encoded()
        name, source, stamp, start, stop = (
            entries[column][0].as_py() for column in ("uri", SOURCE, STAMP, START, STOP)
        )
        tables: list[pa.Table] = []
        begun = time.perf_counter()
        for rows in self._rows[threading.get_ident()].read(File(source, name, stamp), start, stop):
            read = time.perf_counter()
            encoded.seconds["read"] += read - begun
            self._encode_rows(rows, sum(map(len, tables)), encoded)
            tables.append(rows.entries)
            begun = time.perf_counter()
            encoded.seconds["encode"] += begun - read
        return pa.concat_tables(tables), encoded

    def _encode_rows(self, rows: Rows, first: int, encoded: Encoded) -> None:
        """Encode a batch, which begins with a row of the unit."""
        head = self._encoder.head
        faults = head.unusable(rows.embeddings) | rows.faults
        encoded.reasons |= {first + row: Reason(FORMAT, words) for row, words in sorted(faults.items())}
        usable = np.ones(len(rows.embeddings), np.bool_)
        usable[list(faults)] = False
        good_RD = rows.embeddings[usable] if faults else rows.embeddings
        encoded.good.append(first + np.flatnonzero(usable))
        kept_RD = (
            head.features(good_RD) if self._settings.features is not None else np.empty((len(good_RD), 0), np.float32)
        )
        nothing_R0 = np.empty((len(good_RD), 0), np.float32)
        encoded.outputs.append(EncoderOutput(head.encode(good_RD), nothing_R0, kept_RD, nothing_R0))
