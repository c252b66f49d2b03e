"""The state machine over HTTP: a server is asked and written, and so is its collection by another writer beside it."""

from __future__ import annotations

import contextlib
import time

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis.stateful import invariant, rule

from hashlight.engine.client.client import SearchClient
from hashlight.engine.client.errors import VersionGoneError
from hashlight.engine.client.results import Cursor
from hashlight.engine.collection.collection import Collection
from hashlight.engine.service.door.http_server import Address
from hashlight.engine.service.door.keys import Keys
from hashlight.pipelines.serving.serve import embedded_app
from tests import serving
from tests.engine.living.asking import Served, pairs_of, rows_of
from tests.engine.living.machine import FILTER, REFUSED, Machine, as_arrays, where
from tests.engine.living.model import RefusedError, Row

WAIT_S = 120.0


def sent(client, name, given, *, visible):
    """Make a change over HTTP; return the version that has it."""
    if name in ("add", "upsert"):
        arrays = as_arrays(given["rows"], given["types"])
        return getattr(client, name)(arrays.pop("codes"), ids=given["ids"], **arrays, visible=visible)
    if name == "update":
        types = given["types"]
        table = {each: pa.array([item[each] for item in given["items"]], types[each]) for each in types}
        return client.update(given["ids"], pa.table(table), visible=visible)
    if name == "delete_where":
        return client.delete_where(*where(given["number"]), visible=visible)
    return client.delete(given["ids"], visible=visible)


def is_for_http(name, given):
    """Whether there is a request for a change; one that names nothing is refused."""
    return name == "delete_where" or (
        name in ("add", "upsert", "delete", "update")
        and bool(given["ids"])
        and (name != "update" or bool(given["types"]))
    )


class ServedMachine(Machine):
    """Asks a server, and writes through it and beside it.

    What was written through it is seen there at once. Another writer sees it once a write is waited for until it is
    visible: until then `operations` are what was written, and `states` what the collection must hold after each.
    """

    kinds = (*Machine.kinds, *("add", "delete", "where", "update") * 3)

    def begin(self):
        self.operations, self.states = [], []
        self.serve("auto")

    def serve(self, index):
        self.server = contextlib.ExitStack()
        app = embedded_app(self.location, Address(port=0), Keys.load(None, {}), index=index, writable=True)
        url = self.server.enter_context(serving.running(self.server.enter_context(app)))
        self.client = self.server.enter_context(SearchClient(url, timeout_s=60))

    def teardown(self):
        if hasattr(self, "server"):
            self.server.close()
        super().teardown()

    def open(self, *, index, verify=False):
        """Begin again with another server, now and then."""
        super().open(index=index, verify=verify)
        if self.random.random() < 0.2:
            self.server.close()
            self.serve(index)

    @property
    def now(self):
        return self.states[-1].version if self.states else self.history.now

    @property
    def asked(self):
        return Served(self.client)

    @contextlib.contextmanager
    def writing(self):
        self.settle()
        yield
        until_s = time.monotonic() + WAIT_S
        while self.client.describe()["version"] < self.collection.version:
            assert time.monotonic() < until_s, "the server does not follow"
            time.sleep(0.002)

    def do(self, operation):
        if is_for_http(*operation) and self.random.random() < 0.8:
            self.send(operation, visible=self.random.random() < 0.3)
        else:
            super().do(operation)

    @rule(changes=st.integers(2, 4))
    def change_much(self, changes):
        """Make several changes, one after another without a look, or in one transaction beside the server."""
        if self.random.random() < 0.3:
            super().change_much(changes)
            return
        for _ in range(2 * changes):
            self.do(self._operation(self._draw))

    def send(self, operation, *, visible):
        """Make a change over HTTP."""
        self.is_checked = False
        type(self).changes += 1
        try:
            draft = self.history.change([*self.operations, operation])
        except RefusedError:
            with pytest.raises(REFUSED):
                sent(self.client, *operation, visible=visible)
            return
        version = sent(self.client, *operation, visible=visible)
        self.operations.append(operation)
        self.states.append(draft)
        if visible:
            self._note_versions(version)

    def settle(self):
        """Have everything that was written become visible to others."""
        if self.operations:
            rows = [Row(self._code(self.random.randrange(7)), {}, self._features(self.random.randrange(99)))]
            self.send(("upsert", {"rows": rows, "ids": [40], "types": {}}), visible=True)

    def _note_versions(self, version):
        """Find out which versions the writes have become: one each, or one of several."""
        self.collection = Collection.open(self.location)
        assert version == self.collection.version
        left = self.states
        for number in range(self.history.live + 1, version + 1):
            rows = self._rows(Collection.open(self.location, version=number))
            left = left[next((at for at, state in enumerate(left) if state.version.rows == rows), len(left)) :]
            assert left, f"version {number} is not what the collection was after any of these writes"
            left[0].oldest = max(left[0].oldest, self.history.oldest)
            self.history.commit(left[0], number)
        self.states[-1].oldest = self.history.oldest
        self.history.commit(self.states[-1], version)
        self.operations, self.states = [], []

    def _rows(self, opened):
        columns = [*opened.schema.names, *(["features"] if self.with_features else []), "thumbnail"]
        return rows_of(opened.scan(columns).read_all(), features=self.with_features)

    @invariant()
    def is_as_it_should_be(self):
        if self.is_checked:
            return
        now, told = self.now, self.client.describe()
        assert told["rows"] == len(now.rows)
        assert told["attributes"] == {name: str(kind) for name, kind in now.types.items()}
        found = self.asked.scan(list(now.types), where(None), 1000, None)
        assert found == {id_: Row(row.code, row.attributes) for id_, row in now.rows.items()}
        some = self.random.sample(sorted(now.rows), min(3, len(now.rows)))
        assert self.asked.thumbnails(some) == [now.rows[id_].thumbnail for id_ in some]
        if not self.operations:
            assert told["version"] == self.collection.version
            super().is_as_it_should_be()
        self.is_checked = True

    @rule()
    def open_another_version(self):
        self.settle()
        super().open_another_version()

    @rule(code=st.integers(0, 6), k=st.integers(1, 30), number=FILTER)
    def look_at_the_nearest(self, code, k, number):
        """Read the attributes and codes of hits."""
        text, parameters = where(number)
        try:
            rows = self.now.select(number)
        except RefusedError:
            return
        (hits,) = self.client.search(self._queries([code]), k, filter=text, parameters=parameters,
                                     include=["attributes", "code"])  # fmt: skip
        assert len(hits) == min(k, len(rows))
        found = {hit.id: (tuple(hit.code.tolist()), hit.attributes) for hit in hits}
        assert found == {id_: (rows[id_].code, rows[id_].attributes) for id_ in found}

    @rule(code=st.integers(0, 6), distance=st.integers(0, 2), id_=st.integers(0, 40))
    def go_on_in_another_version(self, code, distance, id_):
        """Read a page of answers and a page of items in a version that was live once."""
        self.settle()
        number = self.random.choice(list(self.history.versions))
        version, queries = self.history.versions[number], self._queries([code])
        try:
            (hits,) = self.client.range_search(queries, 3, 9, after=Cursor(distance, id_, number))
            page = self.client.scroll(after=id_, limit=9, version=number)
        except VersionGoneError:
            assert number not in self.history.kept
            return
        assert [pairs_of(hits.distances, hits.ids)] == version.within(queries, 3, None, 9, (distance, id_))[0]
        ids = sorted(each for each in version.rows if each > id_)[:9]
        assert [(item.id, item.attributes) for item in page] == [(each, version.rows[each].attributes) for each in ids]
        assert page.version == number
