"""Codes are checked, never cast."""

from __future__ import annotations

import pkgutil
import re

import numpy as np
import pytest

from hashlight.engine.codes import (
    check_bits,
    check_codes,
    check_k,
    check_limit,
    check_radius,
    pack_bits,
    unpack_bits,
)
from hashlight.engine.ids import check_ids


@pytest.mark.parametrize("bits", [1, 16, 48, 64, 65, 128, 1000, 1024])
def test_pack_puts_bit_i_at_bit_i_mod_8_of_byte_i_div_8(bits):
    rng = np.random.default_rng(bits)
    rows = rng.random((20, bits)) < 0.5
    codes = pack_bits(rows)
    assert codes.shape == (20, (bits + 63) // 64)
    raw = codes.tobytes()
    width = 8 * codes.shape[1]
    for row in range(20):
        for bit in range(bits):
            byte = raw[row * width + bit // 8]
            assert bool(byte >> (bit % 8) & 1) == rows[row, bit]
    np.testing.assert_array_equal(unpack_bits(codes, bits), rows)


@pytest.mark.parametrize(
    ("codes", "error", "message"),
    [
        (np.zeros((3, 1), np.int64), TypeError, "dtype uint64, got int64"),
        (np.zeros((3, 1), np.float32), TypeError, "dtype uint64, got float32"),
        ([[1]], TypeError, "uint64 array of shape .N, 1., got list"),
        (np.zeros(3, np.uint64), ValueError, r"shape \(N, 1\), got \(3,\)"),
        (np.zeros((3, 2), np.uint64), ValueError, "2 words per code .128 bits., 48-bit codes have 1 word"),
        (np.zeros((6, 1), np.uint64)[::2], ValueError, "C-contiguous, got strides"),
        (np.full((3, 1), 1 << 48, np.uint64), ValueError, "past bit 47 in 3 of 3 rows .first: row 0."),
    ],
)
def test_wrong_codes_are_refused(codes, error, message):
    with pytest.raises(error, match=message):
        check_codes(codes, bits=48, name="queries")


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (np.array([1, 2], np.int32), TypeError, "int64"),
        (np.array([1, 2, 3]), ValueError, r"shape \(2,\)"),
        (np.array([1, -5]), ValueError, "got -5 in row 1"),
        (np.array([4, 4]), ValueError, "got 4 more than once"),
    ],
)
def test_wrong_ids_are_refused(ids, error, message):
    with pytest.raises(error, match=message):
        check_ids(ids, rows=2)


@pytest.mark.parametrize(
    ("check", "error", "message"),
    [
        (lambda: check_k(0), ValueError, "at least 1 and at most 2147483647, got 0"),
        (lambda: check_k(float("nan")), TypeError, "whole number, got nan"),
        (lambda: check_k(True), TypeError, "whole number, got True"),
        (lambda: check_radius(-1, bits=48), ValueError, "0 to 48 .* got -1"),
        (lambda: check_radius(49, bits=48), ValueError, "0 to 48 .* got 49"),
        (lambda: check_radius(2.0, bits=48), TypeError, "whole number, got 2.0"),
        (lambda: check_limit(0), ValueError, "None or at least 1 and at most 2147483647, got 0"),
        (lambda: check_bits(0), ValueError, "1 to 1024, got 0"),
        (lambda: check_bits(1025), ValueError, "1 to 1024, got 1025"),
    ],
)
def test_wrong_numbers_are_refused(check, error, message):
    with pytest.raises(error, match=message):
        check()


def test_numpy_integers_are_accepted():
    assert check_k(np.int64(3)) == 3
    assert check_radius(np.uint8(4), bits=64) == 4


@pytest.mark.parametrize("codes", [[1, 2], np.zeros((2, 1), np.int64)])
def test_what_a_refusal_recommends_can_be_imported(codes):
    with pytest.raises(TypeError) as raised:
        check_codes(codes, bits=48, name="queries")
    (name,) = re.findall(r"`([a-z_.]+\.[a-z_]+)`", str(raised.value))
    assert pkgutil.resolve_name(name) is pack_bits
