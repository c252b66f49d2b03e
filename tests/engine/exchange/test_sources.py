"""Codes in every form that other programs have them in, and what is refused by name before anything is written."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import CorruptDataError
from hashlight.engine.exchange.codes import bits_of, read_codes

BITS = 20
BYTES = np.array([[1, 2, 3], [0, 255, 15], [9, 9, 9], [0, 0, 0]], np.uint8)
WORDS = np.array([[0x030201], [0x0FFF00], [0x090909], [0]], np.uint64)
LISTS = BYTES.tolist()
PADDED = [bytes(row) + bytes(5) for row in LISTS]

FORMS = {
    "fixed binary": pa.array([bytes(row) for row in LISTS], pa.binary(3)),
    "whole words": pa.array(PADDED, pa.binary(8)),
    "binary": pa.array([bytes(row) for row in LISTS]),
    "large binary": pa.array([bytes(row) for row in LISTS], pa.large_binary()),
    "binary view": pa.array([bytes(row) for row in LISTS], pa.binary_view()),
    "dictionary": pa.array([bytes(row) for row in LISTS]).dictionary_encode(),
    "fixed list": pa.array(LISTS, pa.list_(pa.uint8(), 3)),
    "list": pa.array(LISTS, pa.list_(pa.uint8())),
    "large list": pa.array(LISTS, pa.large_list(pa.uint8())),
    "words": pa.array(WORDS.tolist(), pa.list_(pa.uint64(), 1)),
    "tensor": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.uint8(), (3,)), pa.array(LISTS, pa.list_(pa.uint8(), 3))
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_codes_in_every_form_are_the_same(form):
    column = FORMS[form]
    for part in (column, pa.concat_arrays([column, column]).slice(4)):
        assert read_codes(part, bits=BITS, name="code").tolist() == WORDS.tolist()
    assert read_codes(column.slice(1, 2), bits=BITS, name="code").tolist() == WORDS[1:3].tolist()
    assert read_codes(column.slice(4), bits=BITS, name="code").shape == (0, 1)
    assert bits_of(column, name="code") == (64 if form in ("whole words", "words") else 24)


@settings(max_examples=50, deadline=None)
@given(data=st.data(), size=st.integers(1, 128))
def test_bit_i_is_bit_i_mod_8_of_byte_i_div_8(data, size):
    code = data.draw(st.binary(min_size=size, max_size=size))
    [words] = read_codes(pa.array([code]), bits=8 * size, name="code").tolist()
    whole = sum(word << (64 * number) for number, word in enumerate(words))
    assert [(whole >> bit) & 1 for bit in range(8 * size)] == [(code[b // 8] >> (b % 8)) & 1 for b in range(8 * size)]


CODE = FORMS["fixed binary"]
FOUR = [0, 1, 2, 3]
REFUSED = {
    "no codes": ({"id": [1, 2, 3, 4]}, {}, "expected one column `code`, got 0 among id"),
    "no ids": ({"code": CODE}, {}, r"expected one column `id` \(`id_column=None` numbers the rows\), got 0"),
    "text": ({"code": ["a"] * 4, "id": FOUR}, {}, "`code` is string, which does not hold codes: expected fixed-size"),
    "signed": ({"code": pa.array(LISTS, pa.list_(pa.int16())), "id": FOUR}, {}, "list<item: int16>, which does not"),
    "null code": ({"code": pa.array([None, *PADDED[:3]]), "id": FOUR}, {}, "`code` is null in 1 rows, first 0"),
    "null byte": ({"code": pa.array([[1, None]] * 4, pa.list_(pa.uint8())), "id": FOUR}, {}, "has nulls within 4"),
    "two lengths": ({"code": [b"a", b"bc", b"d", b"e"], "id": FOUR}, {}, "got 1 bytes in row 0 and 2 in row 1"),
    "empty": ({"code": [b""] * 4, "id": FOUR}, {}, "`code` has 0 bytes per code, expected 1 to 128"),
    "too long": ({"code": [bytes(129)] * 4, "id": FOUR}, {}, "has 129 bytes per code, expected 1 to 128"),
    "other bits": ({"code": CODE, "id": FOUR}, {"bits": 48}, "3 bytes per code, 48-bit codes take 6 to 8"),
    "stray bits": ({"code": CODE, "id": FOUR}, {"bits": 19}, "bits set past bit 18 in 2 of 4 rows"),
    "bits beyond": ({"code": CODE, "id": FOUR}, {"bits": 2000}, "`bits` must be 1 to 1024, got 2000"),
    "real ids": ({"code": CODE, "id": [0.5] * 4}, {}, "`id` is double, expected whole numbers"),
    "null id": ({"code": CODE, "id": [0, 1, None, 3]}, {}, "`id` is null in 1 rows"),
    "negative id": ({"code": CODE, "id": [0, 1, -5, 3]}, {}, "`id` must be 0 or more, got -5 in row 2"),
    "large id": ({"code": CODE, "id": pa.array([2**63] * 4, pa.uint64())}, {}, "`id` must fit int64"),
    "repeated id": ({"code": CODE, "id": [7, 1, 7, 3]}, {}, r"must be distinct, got 7 more than once in 4 rows"),
    "repeated in shards": ({"code": CODE, "id": [7, 1, 2, 7]}, {"shard_rows": 1}, "got 7 more than once in 4 rows"),
    "reserved": ({"code": CODE, "id": FOUR, "distance": FOUR}, {}, r"must not be named \['distance'\]"),
    "union": (
        {"code": CODE, "id": FOUR, "u": pa.nulls(4, pa.dense_union([pa.field("x", pa.int32())]))}, {},
        "attribute `u` is dense_union.*store a column for each",
    ),
    "one column twice": ({"code": CODE, "id": FOUR}, {"id_column": "code"}, "must be columns of their own"),
    "features": ({"code": CODE, "id": FOUR, "f": [[1.0]] * 4}, {"features_column": "f"}, "expected features as fixed"),
    "huge features": (
        {"code": CODE, "id": FOUR, "f": pa.array([[1e6]] * 4, pa.list_(pa.float32(), 1))},
        {"features_column": "f"}, "finite as float16, up to 65,504, got others in 4 rows, first 0",
    ),
    "null features": (
        {"code": CODE, "id": FOUR, "f": pa.array([None] * 4, pa.list_(pa.float32(), 1))},
        {"features_column": "f"}, "`f` has nulls",
    ),
    "thumbnails": ({"code": CODE, "id": FOUR, "t": ["x"] * 4}, {"thumbnail_column": "t"}, "expected thumbnails as"),
    "no rows": ({"code": CODE.slice(4), "id": pa.array([], pa.int64())}, {}, "the source has no rows"),
    "no shards": ({"code": CODE, "id": FOUR}, {"shard_rows": 0}, "`shard_rows` must be 1 to"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_imported_is_refused_and_nothing_is_written(tmp_path, case):
    columns, options, message = REFUSED[case]
    table = pa.table(
        {name: pa.array(column) if isinstance(column, range) else column for name, column in columns.items()}
    )
    with pytest.raises(ValueError, match=message):
        Collection.from_arrow(table, tmp_path / "c", tables=False, **options)
    assert not (tmp_path / "c" / "CURRENT").exists()
    assert not list((tmp_path / "c" / "shards").glob("*")) if (tmp_path / "c").exists() else True


def test_a_collection_that_is_there_stays_as_it_was(tmp_path):
    Collection.from_numpy(BYTES, tmp_path / "c", tables=False)
    with pytest.raises(ValueError, match="more than once"):
        Collection.from_numpy(BYTES, tmp_path / "c", ids=np.zeros(4, np.int64), overwrite=True)
    table = pa.table({"code": CODE, "id": [1, 2, 3, 1]})
    with pytest.raises(ValueError, match="more than once"):
        Collection.from_arrow(table, tmp_path / "c", overwrite=True)
    assert Collection.open(tmp_path / "c", verify=True).get([3])["code"].to_pylist() == [bytes(8)]


@pytest.mark.parametrize("codes", [BYTES, np.asfortranarray(BYTES), WORDS, BYTES[::1]])
def test_numpy_bytes_and_words_are_codes(tmp_path, codes):
    ids = np.array([5, 3, 2**62, 0])
    made = Collection.from_numpy(
        codes, tmp_path / "c", ids=ids, bits=BITS, attributes={"n": [0, 1, 2, 3]}, shard_rows=3
    )
    assert (made.bits, [len(shard) for shard in made.shards]) == (BITS, [3, 1])
    found = made.get(ids)
    assert found["code"].to_pylist() == PADDED
    assert found["n"].to_pylist() == [0, 1, 2, 3]
    assert made.search(WORDS[:1], 1).ids.tolist() == [[5]]


@pytest.mark.parametrize("codes", [BYTES.astype(np.int64), BYTES[0], BYTES.tolist()])
def test_other_arrays_are_no_codes(tmp_path, codes):
    with pytest.raises(TypeError, match="`codes` must be packed bytes, uint8 of shape"):
        Collection.from_numpy(codes, tmp_path / "c")


def test_rows_can_be_numbered_and_columns_named(tmp_path):
    table = pa.table({"hash": CODE, "id": ["a", "b", "c", "d"]}).rename_columns(["hash", "name"])
    made = Collection.from_arrow(table, tmp_path / "c", code_column="hash", id_column=None, tables=False)
    assert made.bits == 24
    assert made.get([0, 1, 2, 3])["name"].to_pylist() == ["a", "b", "c", "d"]


@pytest.mark.parametrize("source", [5, {"id": [1]}, [1, 2], ["x"]])
def test_other_sources_are_refused(tmp_path, source):
    with pytest.raises(TypeError, match="`source` must be"):
        Collection.from_arrow(source, tmp_path / "c")


def test_batches_of_two_schemas_are_refused(tmp_path):
    batches = [pa.record_batch({"code": CODE, "id": FOUR}), pa.record_batch({"code": CODE, "id": list("abcd")})]
    with pytest.raises(ValueError, match=r"(?s)batch 1 has another: .*id: string"):
        Collection.from_arrow(batches, tmp_path / "c", tables=False)
    assert not (tmp_path / "c" / "CURRENT").exists()
    with pytest.raises(ValueError, match="no record batches"):
        Collection.from_arrow([], tmp_path / "c")


def test_metadata_that_is_not_readable_is_refused(tmp_path):
    for said in (b"{", b"[]", b'{"bits": "many"}'):
        table = pa.table({"code": CODE, "id": FOUR}).replace_schema_metadata({"hashlight": said})
        with pytest.raises(ValueError, match="the metadata `hashlight` of the source is not readable"):
            Collection.from_arrow(table, tmp_path / "c")


@pytest.mark.parametrize("read", [Collection.from_arrow, Collection.from_parquet, Collection.from_faiss])
def test_files_that_are_not_there_or_not_readable_are_named(tmp_path, read):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing", tmp_path / "c")
    for data in (b"", b"hello", b"PAR1" + bytes(40) + b"PAR1", b"ARROW1" + bytes(40), b"IBxF" + bytes(10)):
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(CorruptDataError, match="bad is not readable as"):
            read(tmp_path / "bad", tmp_path / "c")
    assert not (tmp_path / "c").exists()
