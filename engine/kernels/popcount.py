"""Intrinsics that numba lacks: population count, unaligned loads, prefetching, and wide vectors.

Shapes: N codes, W words per code. A code array is passed as its bytes, (8 * N * W,) uint8, because a shard's codes are
mapped behind a header of 33 bytes: a uint64 array there is not aligned, and reading it as if it were is undefined
behaviour that happens to work on some machines. The loads here declare an alignment of 1; on x86-64 they cost the same.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_WORD = ir.IntType(64)
_EIGHT = ir.VectorType(_WORD, 8)


@intrinsic
def popcount(typingctx: Any, word: Any) -> Any:
    """Return the number of ones in a uint64. LLVM vectorises it where the CPU can."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), generate


@intrinsic
def trailing_zeros(typingctx: Any, word: Any) -> Any:
    """Return the number of zeros below the lowest one of a uint64; 64 for zero."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


@intrinsic
def load_word(typingctx: Any, bytes_array: Any, index: Any) -> Any:
    """Return word `index` (uint64) of an array of bytes, which need not be aligned."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = builder.load(_word_pointer(context, builder, signature, args))
        word.align = 1
        return word

    return types.uint64(bytes_array, types.intp), generate


@intrinsic
def near_words(typingctx: Any, bytes_array: Any, index: Any, word: Any, shift: Any, room: Any) -> Any:
    """Return which of words [index, index + 8), shifted right by `shift`, are within `room` of `word`.

    The result is a uint64 with bit i for word i; all eight words must exist. Written as a vector, because LLVM does not
    vectorise a loop as short as a bucket.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words = _load_eight(builder, _word_pointer(context, builder, signature, args))
        differing = builder.xor(builder.lshr(words, _eight_times(builder, args[3])), _eight_times(builder, args[2]))
        near = builder.icmp_unsigned("<=", _popcount_eight(builder, differing), _eight_times(builder, args[4]))
        return builder.zext(builder.bitcast(near, ir.IntType(8)), _WORD)

    return types.uint64(bytes_array, types.intp, types.uint64, types.uint64, types.uint64), generate


@intrinsic
def near_places(typingctx: Any, dist_B: Any, place: Any, limit: Any) -> Any:
    """Return which of `dist_B[place:place + 8]` are at most `limit`, as bits of a uint64; all eight must exist."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        distances = context.make_array(signature.args[0])(context, builder, args[0]).data
        near = builder.icmp_unsigned(
            "<=", _load_eight(builder, builder.gep(distances, [args[1]])), _eight_times(builder, args[2])
        )
        return builder.zext(builder.bitcast(near, ir.IntType(8)), _WORD)

    return types.uint64(dist_B, types.intp, types.uint64), generate


@intrinsic(prefer_literal=True)
def store_eight_distances(
    typingctx: Any, bytes_array: Any, row: Any, query_W: Any, num_words: Any, dist_B: Any, place: Any
) -> Any:
    """Write the distances of rows [row, row + 8) of 2, 4, 8 or 16 words to `dist_B[place:place + 8]`.

    `num_words` is a literal. Written as vectors: whole vectors of words are counted, and the counts of a row are summed
    by interleaving, which LLVM does not find by itself. Measured on 3 million codes of 256 bits: half the time.
    """
    words = num_words.literal_value  # numba passes a literal as a type of its own

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        query = context.make_array(signature.args[2])(context, builder, args[2]).data
        query_parts = _query_vectors(builder, query, words)
        first = builder.mul(args[1], ir.Constant(_WORD, words))
        counts = []
        for part in range(words):
            index = builder.add(first, ir.Constant(_WORD, 8 * part))
            loaded = _load_eight(builder, _word_pointer(context, builder, signature, [args[0], index]))
            counts.append(_popcount_eight(builder, builder.xor(loaded, query_parts[part % len(query_parts)])))
        if words == 16:
            counts = [builder.add(*pair) for pair in zip(counts[::2], counts[1::2], strict=True)]
        while len(counts) > 1:
            counts = [_add_neighbours(builder, *pair) for pair in zip(counts[::2], counts[1::2], strict=True)]
        target = context.make_array(signature.args[4])(context, builder, args[4]).data
        stored = builder.store(counts[0], builder.bitcast(builder.gep(target, [args[5]]), _EIGHT.as_pointer()))
        stored.align = 8
        return context.get_dummy_value()

    signature = types.void(bytes_array, types.intp, query_W, num_words, dist_B, types.intp)
    return signature, generate


@intrinsic
def prefetch_word(typingctx: Any, bytes_array: Any, index: Any) -> Any:
    """Prefetch word `index` of an array of bytes, without waiting for it.

    It goes to the L2 cache, because L1 is too small for that many lines. Measured on lookups in tables of 10 million
    codes: 0.24 ms instead of 0.35 for 12,000 buckets.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.bitcast(_word_pointer(context, builder, signature, args), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type] + [ir.IntType(32)] * 3)
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        read, second_level, data = (ir.Constant(ir.IntType(32), value) for value in (0, 2, 1))
        builder.call(fetch, [pointer, read, second_level, data])
        return context.get_dummy_value()

    return types.void(bytes_array, types.intp), generate


@intrinsic
def use_wide_vectors(typingctx: Any) -> Any:
    """Let LLVM vectorise the calling function with 512 bits where the CPU has them.

    LLVM keeps to 256 bits on many AVX-512 CPUs, because wider vectors may lower their clock. Measured with two queries
    per pass over a block of 64-bit codes: 13.4 G codes/s instead of 7.0.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # llvmlite's own `add` accepts only the attributes it knows.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


def _word_pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.gep(builder.bitcast(array.data, _WORD.as_pointer()), [args[1]])


def _eight_times(builder: Any, word: Any) -> Any:
    """Return a vector of eight copies of a word."""
    one = builder.insert_element(ir.Constant(_EIGHT, ir.Undefined), word, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, ir.Constant(_EIGHT, ir.Undefined), _lanes([0] * 8))


def _lanes(numbers: list[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), numbers)


def _load_eight(builder: Any, pointer: Any) -> Any:
    """Return eight words, which need not be aligned."""
    words = builder.load(builder.bitcast(pointer, _EIGHT.as_pointer()))
    words.align = 1
    return words


def _popcount_eight(builder: Any, words: Any) -> Any:
    name = "llvm.ctpop.v8i64"
    kind = ir.FunctionType(_EIGHT, [_EIGHT])
    return builder.call(builder.module.globals.get(name) or ir.Function(builder.module, kind, name), [words])


def _add_neighbours(builder: Any, low: Any, high: Any) -> Any:
    """Return the sums of lanes 0 + 1, 2 + 3, ... of two vectors, in order."""
    even = builder.shuffle_vector(low, high, _lanes(list(range(0, 16, 2))))
    return builder.add(even, builder.shuffle_vector(low, high, _lanes(list(range(1, 16, 2)))))


def _query_vectors(builder: Any, query: Any, words: int) -> list[Any]:
    """Return a query as vectors to compare with consecutive vectors of rows: repeated, or in two parts."""
    held = min(words, 8)
    vectors = []
    for begin in range(0, words, 8):
        pointer = builder.gep(query, [ir.Constant(_WORD, begin)])
        part = builder.load(builder.bitcast(pointer, ir.VectorType(_WORD, held).as_pointer()))
        part.align = 8
        vectors.append(builder.shuffle_vector(part, part, _lanes([lane % held for lane in range(8)])))
    return vectors
