# mypy: disable-error-code="no-untyped-def"
"""The multi-index: tables from substrings of the codes to rows.

Source: Norouzi, Punjani, Fleet, "Fast exact search in Hamming space with multi-index hashing", CVPR 2012, TPAMI 2014.

Shapes: N rows, sorted by (code, id), W words per code, D distinct codes, T tables, Q queries, K nearest, H slots for
hits, P buckets and C candidates of scratch, S = widest substring + 1.

The named tuples in `arguments` give the shape of each array; `word_V` is a mask (see `masks`).

A code at distance r differs from the query in at most r // T bits of some substring. So steps of (substring radius s,
table t), taken in ascending order, have met every code within T * s + t after step (s, t). Whether an earlier step has
met a code follows from the bits of the code, so there is no set of visited rows.

A sketch holds as many bits of the code from outside the substring as fit beside the row number. The distance of the
sketches plus that of the substrings is a lower bound of the whole distance, so most candidates are dismissed without
reading their codes, each of which would be a cache miss. Measured at 10 million uniform 64-bit codes and radius 12: a
third of the time, for 4 more bytes per entry.
"""

from __future__ import annotations

import numpy as np

from hashlight.engine.kernels.arguments import (
    Budget,
    Heaps,
    Hits,
    Prices,
    Rows,
    Scratch,
    Sizes,
    Step,
    TableArrays,
    Work,
)
from hashlight.engine.kernels.compiling import inlined_kernel, kernel
from hashlight.engine.kernels.masks import allows
from hashlight.engine.kernels.popcount import load_word, near_words, popcount, prefetch_word, trailing_zeros
from hashlight.engine.kernels.scan import row_distance
from hashlight.engine.kernels.select import comes_before, keep_nearest

ONE = np.uint64(1)
NO_MASK = np.uint64(1 << 62)
EIGHT = 8
FETCHED = 256  # entries of a bucket to prefetch; the hardware prefetcher predicts the rest


@kernel
def mark_distinct(code_bytes, num_words, num_rows, start_D):
    """Write the first row of each distinct code as far as `start_D` has room; return the number of distinct codes."""
    count = 0
    for row in range(num_rows):
        if row == 0 or not same_code(code_bytes, num_words, row - 1, row):
            if count < len(start_D):
                start_D[count] = row
            count += 1
    return count


@kernel
def same_code(code_bytes, num_words, row_a, row_b):
    """Tell whether two rows have equal codes."""
    for word in range(num_words):
        if load_word(code_bytes, row_a * num_words + word) != load_word(code_bytes, row_b * num_words + word):
            return False
    return True


@kernel
def code_substring(code_bytes, num_words, row, low, width):
    """Return bits [low, low + width) of a row's code."""
    place = row * num_words + (low >> 6)
    shift = np.uint64(low & 63)
    value = load_word(code_bytes, place) >> shift
    if (low & 63) + width > 64:
        value |= load_word(code_bytes, place + 1) << (np.uint64(64) - shift)
    return np.int64(value & ((ONE << np.uint64(width)) - ONE))


@kernel
def query_substring(query_W, low, width):
    """Return bits [low, low + width) of a query."""
    shift = np.uint64(low & 63)
    value = query_W[low >> 6] >> shift
    if (low & 63) + width > 64:
        value |= query_W[(low >> 6) + 1] << (np.uint64(64) - shift)
    return value & ((ONE << np.uint64(width)) - ONE)


@kernel
def build_first_table(code_bytes, num_words, start_D, num_distinct, low, width, offset_V):
    """Write the offsets of table 0, whose buckets are ranges of `start_D`; return the largest bucket."""
    offset_V[:] = 0
    for place in range(num_distinct):
        row = np.int64(start_D[place]) if len(start_D) else place
        offset_V[code_substring(code_bytes, num_words, row, low, width) + 1] += np.uint32(1)
    largest = np.uint32(0)
    for value in range(1, len(offset_V)):
        largest = max(largest, offset_V[value])
        offset_V[value] += offset_V[value - 1]
    return largest


@kernel
def build_table(code_bytes, num_words, start_D, num_distinct, low, width, runs_4, row_bits, offset_V, entry_D):
    """Write offsets and list of another table by counting sort; return the largest bucket."""
    offset_V[:] = 0
    for place in range(num_distinct):
        row = np.int64(start_D[place]) if len(start_D) else place
        offset_V[code_substring(code_bytes, num_words, row, low, width) + 1] += np.uint32(1)
    # While the list fills, offset v + 1 is where the next entry of bucket v goes; then it is where bucket v + 1 begins.
    largest = np.uint32(0)
    total = np.uint32(0)
    for value in range(1, len(offset_V)):
        count = offset_V[value]
        offset_V[value] = total
        total += count
        largest = max(largest, count)
    for place in range(num_distinct):
        row = np.int64(start_D[place]) if len(start_D) else place
        value = code_substring(code_bytes, num_words, row, low, width) + 1
        sketch = code_sketch(code_bytes, num_words, row, runs_4)
        entry_D[offset_V[value]] = np.uint64(row) | sketch << np.uint64(row_bits)
        offset_V[value] += np.uint32(1)
    return largest


@kernel
def next_mask(mask):
    """Return the next larger number with the same number of ones (Gosper's hack); `NO_MASK` after 0."""
    if mask == np.uint64(0):
        return NO_MASK
    lowest = mask & (~mask + ONE)
    ripple = mask + lowest
    return (((ripple ^ mask) >> np.uint64(2)) >> trailing_zeros(mask)) | ripple


@kernel
def code_sketch(code_bytes, num_words, row, runs_4):
    """Return the sketch of a row's code; `runs_4` is a row of `sketch_T4`."""
    above = code_substring(code_bytes, num_words, row, runs_4[0], runs_4[1])
    below = code_substring(code_bytes, num_words, row, runs_4[2], runs_4[3])
    return np.uint64(above) | np.uint64(below) << np.uint64(runs_4[1])


@kernel
def query_sketch(query_W, runs_4):
    """Return the sketch of a query."""
    above = query_substring(query_W, runs_4[0], runs_4[1])
    return above | query_substring(query_W, runs_4[2], runs_4[3]) << np.uint64(runs_4[1])


@inlined_kernel
def look_up(rows, tables, table, value, mask, scratch):
    """Look up buckets from `mask` on, as many as fit into scratch, and keep those that are not empty.

    Their entries are prefetched, so that the misses overlap. Returns the mask to resume from (beyond 2^width at the
    end), the number of buckets kept and the number looked up.
    """
    from_P = scratch.from_P
    to_P = scratch.to_P
    entry_bytes = tables.entry_bytes if table else rows.code_bytes
    shift = (table - 1) * tables.num_distinct if table else 0
    end = ONE << np.uint64(tables.width_T[table])
    begin = tables.begin_T[table]
    kept = 0
    probes = 0
    while mask < end and probes < len(from_P):
        place = begin + np.int64(value ^ mask)
        first = np.int64(tables.offset_O[place])
        from_P[kept] = first
        to_P[kept] = tables.offset_O[place + 1]
        for entry in range(first, min(np.int64(to_P[kept]), first + FETCHED), EIGHT):
            prefetch_word(entry_bytes, shift + entry)
        prefetch_word(entry_bytes, shift + to_P[kept] - 1)
        kept += first < to_P[kept]
        mask = next_mask(mask)
        probes += 1
    return mask, kept, probes


@inlined_kernel
def dismiss(rows, tables, word_V, query_W, sketch, radius, step, kept, scratch):
    """List rows in the kept buckets that may be within `radius`, given that the substring accounts for `step.reach`.

    Resumes from `place_2` (bucket, entry), stops when scratch is full, and prefetches the codes of the rows it lists.
    Table 0 has no sketches because its codes are adjacent: one-word codes are compared whole, all others are listed.
    If all codes are distinct, rows that may not be returned are left out here, before their codes are fetched.
    Returns the number of rows listed, of rows left out, and of entries seen.
    """
    to_P = scratch.to_P
    row_C = scratch.row_C
    filled = 0
    barred = 0
    seen = 0
    bucket = scratch.place_2[0]
    entry = scratch.place_2[1]
    shift = (step.table - 1) * tables.num_distinct
    room = np.uint64(radius - step.reach)
    distinct = len(tables.start_D) == 0
    whole_codes = rows.num_words == 1 and distinct
    while bucket < kept and filled + EIGHT <= len(row_C):
        left = to_P[bucket] - entry
        if step.table > 0:
            near = near_words(tables.entry_bytes, shift + entry, sketch, tables.row_bits, room)
        elif whole_codes and entry + EIGHT <= rows.num_rows:
            near = near_words(rows.code_bytes, entry, query_W[0], 0, radius)
        else:
            near = np.uint64(255)
        if left <= EIGHT:
            near &= (ONE << np.uint64(left)) - ONE
            seen += left
            bucket += 1
            following = scratch.from_P[bucket] if bucket < kept else 0
        else:
            seen += EIGHT
            following = entry + EIGHT
        while near != np.uint64(0):
            place = entry + np.int64(trailing_zeros(near))
            near &= near - ONE
            row = entry_place_row(tables, step.table, place)
            if distinct and not allows(word_V, row):
                barred += 1
                continue
            row_C[filled] = row
            prefetch_word(rows.code_bytes, row * rows.num_words)
            filled += 1
        entry = following
    scratch.place_2[0] = bucket
    scratch.place_2[1] = entry
    return filled, barred, seen


@kernel
def entry_place_row(tables, table, place):
    """Return the row at position `place` of a table's list."""
    if table > 0:
        word = load_word(tables.entry_bytes, (table - 1) * tables.num_distinct + place)
        return np.int64(word & ((ONE << np.uint64(tables.row_bits)) - ONE))
    return np.int64(tables.start_D[place]) if len(tables.start_D) else np.int64(place)


@inlined_kernel
def met_before(rows, tables, row, query_W, seen_T):
    """Tell whether an earlier step met the row; `seen_T` is how far each table was probed, -1 for not at all."""
    for table in range(len(seen_T)):
        if seen_T[table] < 0:
            continue
        low = tables.low_T[table]
        apart = np.uint64(0)
        for word in range(low >> 6, ((low + tables.width_T[table] - 1) >> 6) + 1):
            differing = load_word(rows.code_bytes, row * rows.num_words + word) ^ query_W[word]
            apart += popcount(differing & tables.submask_TW[table, word])
        if apart <= np.uint64(seen_T[table]):
            return True
    return False


@kernel
def emit_run(rows, word_V, first, query, dist, num_hits, hits):
    """Write all rows of one distinct code as hits; keep counting when the buffers are full."""
    row = first
    while row < rows.num_rows and (row == first or same_code(rows.code_bytes, rows.num_words, first, row)):
        if allows(word_V, row):
            if num_hits < len(hits.row_H):
                hits.query_H[num_hits] = query
                hits.row_H[num_hits] = row
                hits.dist_H[num_hits] = dist
            num_hits += 1
        row += 1
    return num_hits


@kernel
def offer_run(rows, word_V, first, dist, after_2, dist_K, id_K):
    """Offer the rows of one distinct code that come after `after_2` to a heap until it declines one: ids ascend."""
    row = first
    while row < rows.num_rows and (row == first or same_code(rows.code_bytes, rows.num_words, first, row)):
        if allows(word_V, row) and comes_before(after_2[0], after_2[1], dist, rows.id_N[row]):
            if not comes_before(dist, rows.id_N[row], dist_K[0], id_K[0]):
                return
            keep_nearest(dist_K, id_K, dist, rows.id_N[row])
        row += 1


@kernel
def range_tables(rows_, tables_, word_V, query_QW, radius, reach_T, budget, cursor_2, scratch_, work_, hits_):
    """Collect the hits of queries from `cursor_2[0]` on; return how many were written.

    `reach_T` is the substring radius of each table, -1 for a table that is not needed. When the hits of a query do not
    fit, they are dropped and `cursor_2` is set to (the query, the slots it needs). When a query meets more than
    `budget` candidates, it is given up and `cursor_2` is set to (the query, -1).
    """
    rows, tables, scratch = Rows(*rows_), TableArrays(*tables_), Scratch(*scratch_)
    work, hits = Work(*work_), Hits(*hits_)
    num_hits = 0
    for query in range(cursor_2[0], len(query_QW)):
        before = num_hits
        work.probes_Q[query] = 0
        work.candidates_Q[query] = 0
        scratch.seen_T[:] = -1
        for number in range((reach_T[0] + 1) * len(reach_T)):
            step = Step(query, number % len(reach_T), number // len(reach_T))
            if step.reach <= reach_T[step.table]:
                num_hits = range_step(
                    rows, tables, word_V, query_QW[query], step, radius, budget, scratch, work, num_hits, hits
                )
                scratch.seen_T[step.table] = step.reach
        if scratch.stop_1[0]:
            cursor_2[0] = len(query_QW)
            return before
        if work.candidates_Q[query] > budget:
            cursor_2[0] = query
            cursor_2[1] = -1
            return before
        if num_hits > len(hits.row_H):
            cursor_2[0] = query
            cursor_2[1] = num_hits - before
            return before
    cursor_2[0] = len(query_QW)
    return num_hits


@inlined_kernel
def range_step(rows, tables, word_V, query_W, step, radius, budget, scratch, work, num_hits, hits):
    """Collect the hits of one step, until the budget is spent; return the new number of hits."""
    candidates_Q = work.candidates_Q
    place_2 = scratch.place_2
    width = tables.width_T[step.table]
    value = query_substring(query_W, tables.low_T[step.table], width)
    sketch = query_sketch(query_W, tables.sketch_T4[step.table])
    mask = (ONE << np.uint64(step.reach)) - ONE
    while mask < ONE << np.uint64(width) and candidates_Q[step.query] <= budget and scratch.stop_1[0] == 0:
        mask, kept, probes = look_up(rows, tables, step.table, value, mask, scratch)
        work.probes_Q[step.query] += probes
        place_2[0] = 0
        place_2[1] = scratch.from_P[0]
        while place_2[0] < kept and candidates_Q[step.query] <= budget:
            size, _, seen = dismiss(rows, tables, word_V, query_W, sketch, radius, step, kept, scratch)
            candidates_Q[step.query] += seen
            for candidate in range(size):
                row = scratch.row_C[candidate]
                dist = candidate_distance(rows, row, query_W)
                if dist <= np.uint64(radius) and not met_before(rows, tables, row, query_W, scratch.seen_T):
                    num_hits = emit_run(rows, word_V, row, step.query, dist, num_hits, hits)
    return num_hits


@kernel
def knn_tables(rows_, tables_, sizes_, word_V, query_QW, bound_Q, after_2, budget_, scratch_, work_, done_Q, heaps_):
    """Fill the heaps with the nearest rows within `bound_Q` that come after `after_2`, by steps of growing radius.

    Before each step the cost of the remaining steps is estimated: up to the k-th distance so far, or up to
    `budget.likely_radius` if that is less. Once `budget.trial_ns` have been spent on a query whose remaining steps cost
    more than `budget.scan_ns`, it is given up: its `done_Q` stays 0, its `bound_Q` drops to the k-th distance so far.
    """
    rows, tables, scratch = Rows(*rows_), TableArrays(*tables_), Scratch(*scratch_)
    work, budget, heaps = Work(*work_), Budget(*budget_), Heaps(*heaps_)
    count_TS, mean_T = Sizes(*sizes_)
    candidates_Q = work.candidates_Q
    met_T = scratch.met_T
    num_tables = len(mean_T)
    widest = count_TS.shape[1] - 2
    for query in range(len(query_QW)):
        dist_K = heaps.dist_QK[query]
        work.probes_Q[query] = 0
        candidates_Q[query] = 0
        done_Q[query] = 0
        scratch.seen_T[:] = -1
        met_T[:] = -1.0
        crowding = 1.0
        share_tested = 1.0
        share_read = 1.0
        spent_ns = 0.0
        number = 0
        while done_Q[query] == 0:
            step = Step(query, number % num_tables, number // num_tables)
            goal = min(budget.likely_radius, np.int64(min(bound_Q[query], dist_K[0])))
            entry_ns = budget.candidate_ns + share_tested * budget.tested_ns + share_read * budget.read_ns
            next_ns, rest_ns = steps_cost(number, goal, count_TS, mean_T, met_T, crowding, budget.mask_ns, entry_ns)
            if spent_ns + next_ns > budget.trial_ns and rest_ns > budget.scan_ns:
                bound_Q[query] = min(bound_Q[query], dist_K[0])
                break
            if step.reach <= tables.width_T[step.table]:
                before = candidates_Q[query]
                tested, read = knn_step(
                    rows, tables, word_V, query_QW[query], bound_Q[query], after_2, step, scratch, work, dist_K,
                    heaps.id_QK[query],
                )  # fmt: skip
                met = candidates_Q[query] - before
                met_T[step.table] = met
                if step.reach == 0:
                    crowding += (max(met / mean_T[step.table], 1.0) - crowding) / (step.table + 1)
                share_tested = tested / max(met, 1)
                share_read = read / max(met, 1)
                spent_ns += count_TS[step.table, step.reach] * budget.mask_ns + met * budget.candidate_ns
                spent_ns += tested * budget.tested_ns + read * budget.read_ns
                scratch.seen_T[step.table] = step.reach
            # Every row within distance `number` has now been met.
            if number >= min(bound_Q[query], dist_K[0]) or step.reach > widest or scratch.stop_1[0]:
                done_Q[query] = 1
            number += 1


@inlined_kernel
def knn_step(rows, tables, word_V, query_W, bound, after_2, step, scratch, work, dist_K, id_K):
    """Offer the rows that one step meets to a heap; return how many were looked up in the mask, and codes read.

    The codes of table 0 are adjacent and cheap to read: only near ones count, about as many as sketches would leave.
    """
    tested = 0
    read = 0
    place_2 = scratch.place_2
    width = tables.width_T[step.table]
    value = query_substring(query_W, tables.low_T[step.table], width)
    sketch = query_sketch(query_W, tables.sketch_T4[step.table])
    mask = (ONE << np.uint64(step.reach)) - ONE
    while mask < ONE << np.uint64(width) and scratch.stop_1[0] == 0:
        mask, kept, probes = look_up(rows, tables, step.table, value, mask, scratch)
        work.probes_Q[step.query] += probes
        place_2[0] = 0
        place_2[1] = scratch.from_P[0]
        while place_2[0] < kept:
            farthest = max(np.int64(min(bound, dist_K[0])), step.reach)
            size, barred, seen = dismiss(rows, tables, word_V, query_W, sketch, farthest, step, kept, scratch)
            work.candidates_Q[step.query] += seen
            tested += barred + size
            read += size if step.table > 0 else 0
            for candidate in range(size):
                row = scratch.row_C[candidate]
                dist = candidate_distance(rows, row, query_W)
                if dist > np.uint64(min(bound, dist_K[0])):
                    continue
                read += step.table == 0
                if not met_before(rows, tables, row, query_W, scratch.seen_T):
                    offer_run(rows, word_V, row, np.int32(dist), after_2, dist_K, id_K)
    return tested, read


@kernel
def steps_cost(step, goal, count_TS, mean_T, met_T, crowding, mask_ns, entry_ns):
    """Return the estimated cost of `step`, and of all steps from it on until everything within `goal` has been met.

    A table not probed yet is assumed to be as crowded around the query as the probed ones: `crowding` times the mean. A
    wider step of a probed table is assumed to meet as many entries as chance would give, or as many as its last step,
    whichever is more: in a crowd, each further differing bit brings no fewer codes, as long as few bits differ.
    """
    num_tables = len(mean_T)
    first = 0.0
    total = 0.0
    for ahead in range(step, max(step, goal) + 1):
        reach = ahead // num_tables
        if reach >= count_TS.shape[1]:
            break
        table = ahead % num_tables
        chance = count_TS[table, reach] * mean_T[table]
        entries = chance * crowding if met_T[table] < 0 else max(chance, met_T[table])
        total += count_TS[table, reach] * mask_ns + entries * entry_ns
        if ahead == step:
            first = total
    return first, total


@kernel
def candidate_distance(rows, row, query_W):
    """Return the distance of a row from the query."""
    if rows.num_words == 1:
        return popcount(load_word(rows.code_bytes, row) ^ query_W[0])
    return row_distance(rows.code_bytes, rows.num_words, row, query_W)


@kernel
def price_radius(rows_, tables_, count_TS, query_QW, radius, reach_T, every, picks, prices_, price_Q):
    """Estimate what answering each query from the tables costs.

    Codes are sampled only if they can decide: the price without reading them is below `prices.scan_ns`, a scan for one
    query, but would be above `prices.shared_scan_ns`, a query's share of a batch's scan, if all candidates were near.
    """
    rows, tables, prices = Rows(*rows_), TableArrays(*tables_), Prices(*prices_)
    for query in range(len(query_QW)):
        candidates = count_candidates(tables, count_TS, query_QW[query], reach_T, every)
        price = prices.lookups_ns + candidates * prices.candidate_ns
        dearest = price + candidates * (prices.read_ns + prices.near_ns)
        if price < prices.scan_ns and dearest > prices.shared_scan_ns:
            read, near = inspect_candidates(
                rows, tables, count_TS, query_QW[query], radius, reach_T, every, picks, candidates
            )
            price += read * prices.read_ns + near * prices.near_ns
        price_Q[query] = price


@kernel
def count_candidates(tables, count_TS, query_W, reach_T, every):
    """Estimate from the bucket sizes how many candidates the tables hold for a query.

    Steps of up to `every` masks are counted in full; larger ones from a sample of one mask in `every`, at least 16.
    """
    total = 0.0
    state = query_W[0] | ONE
    for table in range(len(reach_T)):
        value = query_substring(query_W, tables.low_T[table], tables.width_T[table])
        for reach in range(reach_T[table] + 1):
            samples, share = sampled(count_TS[table, reach], every)
            mask = (ONE << np.uint64(reach)) - ONE
            for _ in range(samples):
                if share < 1.0:
                    state, mask = random_mask(state, reach, np.uint64(tables.width_T[table]))
                place = tables.begin_T[table] + np.int64(value ^ mask)
                total += (np.int64(tables.offset_O[place + 1]) - np.int64(tables.offset_O[place])) / share
                mask = next_mask(mask)
    return total


@kernel
def sampled(masks, every):
    """Return how many of a step's masks to sample, and their share of all."""
    samples = masks if masks <= every else max(masks // every, 16)
    return samples, samples / masks


@kernel
def inspect_candidates(rows, tables, count_TS, query_W, radius, reach_T, every, picks, candidates):
    """Estimate how many of the candidates that `count_candidates` counted are read, and how many are near.

    Uses the same sample of buckets, and of their entries `picks`, evenly spread. Candidates in table 0 do not count as
    read, because their codes are adjacent.
    """
    offset_O = tables.offset_O
    total = 0.0
    read = 0.0
    near = 0.0
    spacing = max(candidates / picks, 1.0)
    next_pick = spacing / 2
    state = query_W[0] | ONE
    for table in range(len(reach_T)):
        value = query_substring(query_W, tables.low_T[table], tables.width_T[table])
        sketch = query_sketch(query_W, tables.sketch_T4[table])
        for reach in range(reach_T[table] + 1):
            samples, share = sampled(count_TS[table, reach], every)
            mask = (ONE << np.uint64(reach)) - ONE
            for _ in range(samples):
                if share < 1.0:
                    state, mask = random_mask(state, reach, np.uint64(tables.width_T[table]))
                place = tables.begin_T[table] + np.int64(value ^ mask)
                size = (np.int64(offset_O[place + 1]) - np.int64(offset_O[place])) / share
                while total + size > next_pick:
                    entry = np.int64(offset_O[place]) + np.int64((next_pick - total) * share)
                    entry = min(entry, np.int64(offset_O[place + 1]) - 1)
                    far, row = entry_row(tables, table, entry, sketch)
                    if far <= np.uint64(radius - reach):
                        read += spacing if table > 0 else 0.0
                        if candidate_distance(rows, row, query_W) <= np.uint64(radius):
                            near += spacing
                    next_pick += spacing
                total += size
                mask = next_mask(mask)
    return read, near


@kernel
def entry_row(tables, table, entry, sketch):
    """Return the sketch distance and the row of an entry of a table's list; table 0 has no sketches: 0."""
    if table > 0:
        word = load_word(tables.entry_bytes, (table - 1) * tables.num_distinct + entry)
        far = popcount((word >> np.uint64(tables.row_bits)) ^ sketch)
        return far, np.int64(word & ((ONE << np.uint64(tables.row_bits)) - ONE))
    return np.uint64(0), np.int64(tables.start_D[entry]) if len(tables.start_D) else np.int64(entry)


@kernel
def random_mask(state, ones, width):
    """Return the random generator's next state (xorshift) and a mask with `ones` of `width` bits set."""
    mask = np.uint64(0)
    while popcount(mask) < np.uint64(ones):
        state ^= state << np.uint64(13)
        state ^= state >> np.uint64(7)
        state ^= state << np.uint64(17)
        mask |= ONE << ((state >> np.uint64(20)) % width)
    return state, mask
