"""The drawings of the page on how it works: the multi-index, the planner, the life of a query, the list of versions."""

from __future__ import annotations

from svg import BLUE, LINE, ORANGE, PALE_BLUE, PALE_ORANGE, PALE_TEAL, SOFT, TEAL, Card, headed

WIDTH = 760


def multi_index() -> Card:
    """Show why two codes that are close agree, or nearly, in some substring."""
    query = "0110 1001 1100 0101"
    stored = "0010 1001 1110 0100"
    card = headed(
        WIDTH,
        500,
        "The multi-index: near codes meet in some table",
        "16 bits in four substrings here; 64 bits in three or four in practice",
        "A query and a stored code differ in three of four substrings by one bit each and are equal in one, where the "
        "table of that substring leads from the query to the stored code.",
    )
    card.text(18, 92, "query", bold=True)
    card.text(18, 140, "stored", bold=True)
    card.text(676, 112, "distance", fill=ORANGE, bold=True)
    card.text(676, 132, "3 bits", fill=ORANGE, bold=True)
    for part, (ours, theirs) in enumerate(zip(query.split(), stored.split(), strict=True)):
        for bit, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            x = 90 + part * 148 + bit * 32
            for y, value in ((72, a), (120, b)):
                card.box(x, y, 28, 30, fill=PALE_ORANGE if a != b else PALE_TEAL, radius=4)
                card.text(x + 14, y + 21, value, anchor="middle", bold=a != b)
    for part, value in enumerate(query.split()):
        x = 90 + part * 148
        card.path([(x + 62, 156), (x + 62, 192)], tip=True)
        card.box(x, 198, 124, 196, fill="#ffffff", edge=LINE)
        card.text(x + 62, 218, f"table {part + 1}", anchor="middle", bold=True)
        number = int(value, 2)
        for row in range(5):
            shown = max(0, min(number - 2, 11)) + row
            own = shown == number
            card.box(x + 8, 230 + row * 31, 108, 26, fill=PALE_TEAL if own else "#f6f8fa", radius=4)
            card.text(x + 16, 248 + row * 31, f"{shown:04b}", size=13, bold=own, fill=TEAL if own else SOFT)
            card.text(
                x + 108, 248 + row * 31, "stored" if own and part == 1 else "· · ·", size=12, fill=SOFT, anchor="end"
            )
    card.lines(
        18,
        424,
        "Three bits that differ cannot be in all four substrings: one is equal (here the second), and its bucket has\n"
        "the stored code. In general, codes at distance r agree to within r // 4 bits somewhere, so a few buckets of\n"
        "each table hold every answer. These are compared bit by bit. Nothing is missed, and nearly nothing is read.",
    )
    return card


def planner() -> Card:
    """Show how tables or a scan are chosen."""
    card = headed(
        WIDTH,
        400,
        "The planner: tables or a scan, whichever is cheaper",
        "Decided for each shard and query, from costs that were measured on this machine",
        "A query goes to an estimate of lookups and candidates; then to tables if they are cheaper, else to a scan. A "
        "k-nearest query on tables widens its radius step by step and goes over to a scan if that has become cheaper.",
    )
    card.titled(30, 84, 150, 70, "a query", "radius 8, or\n10 nearest", fill=PALE_BLUE)
    card.path([(180, 119), (222, 119)], tip=True)
    card.titled(
        228,
        74,
        226,
        108,
        "estimate",
        "buckets to look up\n+ candidates in them\nagainst: all rows of a scan",
        fill=PALE_BLUE,
    )
    card.path([(454, 105), (500, 105)], tip=True, stroke=TEAL)
    card.titled(506, 74, 228, 70, "tables", "a few buckets: microseconds", fill=PALE_TEAL)
    card.path([(341, 182), (341, 300), (500, 300)], tip=True, stroke=ORANGE)
    card.text(352, 242, "wide radius, many neighbours,", size=13, fill=ORANGE)
    card.text(352, 260, "small shard, few rows left by a filter", size=13, fill=ORANGE)
    card.titled(506, 266, 228, 70, "scan", "every code, at memory's speed", fill=PALE_ORANGE)
    card.path([(666, 144), (666, 260)], tip=True, stroke=SOFT, dashed=True)
    card.text(655, 172, "k nearest: the radius grows", size=12, fill=SOFT, anchor="end")
    card.text(655, 188, "until k are found, or a scan", size=12, fill=SOFT, anchor="end")
    card.text(655, 204, "has become cheaper", size=12, fill=SOFT, anchor="end")
    card.text(
        18,
        378,
        "Both give the same answers to the byte. An explanation says which one answered, and what it cost.",
        fill=SOFT,
    )
    return card


def query() -> Card:
    """Show the rooms that a query passes, and where answers come together."""
    card = headed(
        WIDTH,
        470,
        "The life of a query",
        "From a program to the kernels of each shard, and back",
        "A client sends a query to a gateway, which checks it, turns an image into a code and asks one server of each "
        "group; every shard answers by tables or a scan; answers merge by distance and id on the way back.",
    )
    card.titled(24, 76, 200, 64, "1  client", "program, page, curl", fill=PALE_BLUE)
    card.path([(224, 108), (266, 108)], tip=True)
    card.box(272, 66, 464, 158, fill="#ffffff", edge=LINE, radius=8)
    card.text(724, 212, "gateway", fill=SOFT, anchor="end", bold=True)
    card.titled(288, 78, 136, 64, "2  door", "keys, limits", fill=PALE_BLUE)
    card.path([(424, 108), (436, 108)], tip=True)
    card.titled(442, 78, 128, 64, "3  API", "body to query", fill=PALE_BLUE)
    card.path([(570, 108), (582, 108)], tip=True)
    card.titled(588, 78, 136, 64, "4  asking", "image to code", fill=PALE_BLUE)
    card.path([(656, 142), (656, 164), (560, 164)], tip=True)
    card.titled(402, 150, 152, 64, "5  routing", "one of each group", fill=PALE_BLUE)
    for group, x in enumerate((100, 316, 532)):
        card.path([(478, 214), (478, 244), (x + 88, 244), (x + 88, 262)], tip=True)
        card.box(x, 268, 176, 132, fill="#ffffff", edge=LINE, radius=8)
        card.text(x + 12, 290, f"6  shards of group {group + 1}", bold=True, size=13)
        for copy in range(3):
            card.box(x + 12 + copy * 52, 302, 46, 40, fill=PALE_TEAL, radius=4)
            card.text(x + 35 + copy * 52, 327, f"{group * 3 + copy + 1}", anchor="middle", fill=TEAL, bold=True)
        card.text(x + 12, 366, "7  tables or a scan,", size=13, fill=SOFT)
        card.text(x + 12, 384, "filters, deleted rows", size=13, fill=SOFT)
    card.lines(
        18,
        430,
        "8  Answers merge by (distance, id): shards, then groups. The order never depends on who answers first.\n"
        "    A group that does not answer in time is named in the coverage; a radius answer is then an error.",
    )
    return card


def versions() -> Card:
    """Show that a version is a list of shards, and that only the name of the live one is replaced."""
    card = headed(
        WIDTH,
        430,
        "A version is a list",
        "Shards are never changed; a write adds files and one new list, then replaces one name",
        "Version 1 lists shards A and B; version 2 adds shard C; version 3 has rows of A deleted; version 4 merges A "
        "and C into D. CURRENT names version 4. Version 2 is kept by a tag.",
    )
    columns = {
        "version 1": (["A", "B"], "created"),
        "version 2": (["A", "B", "C"], "rows added"),
        "version 3": (["A", "B", "C"], "7 rows of A deleted"),
        "version 4": (["B", "D"], "A and C merged"),
    }
    places = {"A": 250, "B": 298, "C": 346, "D": 346}
    for number, (name, (shards, what)) in enumerate(columns.items()):
        x = 24 + number * 184
        live = number == 3
        card.titled(x, 150, 160, 66, name, what, fill=PALE_TEAL if live else PALE_BLUE, edge=TEAL if live else "none")
        card.path([(x + 80, 216), (x + 80, max(places[shard] for shard in shards))], stroke=LINE)
        for shard in shards:
            y = places[shard]
            card.box(x + 16, y, 128, 36, fill=PALE_ORANGE if shard == "D" else "#f6f8fa", edge=LINE, radius=4)
            card.text(x + 28, y + 23, f"shard {shard}", bold=True, size=13)
            if number == 2 and shard == "A":
                card.text(x + 138, y + 23, "less 7", size=12, fill=ORANGE, anchor="end")
    card.box(576, 80, 160, 36, fill=TEAL)
    card.text(656, 103, "CURRENT", fill="#ffffff", anchor="middle", bold=True)
    card.path([(656, 116), (656, 144)], tip=True, stroke=TEAL)
    card.box(208, 80, 160, 36, fill="#f6f8fa", edge=LINE)
    card.text(288, 103, "tag: before-cleanup", fill=BLUE, anchor="middle", size=13)
    card.path([(288, 116), (288, 144)], tip=True, stroke=BLUE)
    card.text(
        18, 414, "A reader keeps the version it opened. Rolling back is one more version with an old list.", fill=SOFT
    )
    return card


DRAWINGS = {
    "multi-index.svg": multi_index,
    "planner.svg": planner,
    "query.svg": query,
    "versions.svg": versions,
}
