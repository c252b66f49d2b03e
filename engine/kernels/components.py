"""Connected components of a graph whose edges arrive as a stream: union-find in one array.

Suffixes: M nodes, P edges in one chunk of the stream.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.kernels.compiling import kernel


@kernel
def join_edges(
    parent_M: NDArray[np.int64], degree_M: NDArray[np.int64], a_P: NDArray[np.int64], b_P: NDArray[np.int64]
) -> None:
    """Join the components of each edge's ends, and count the edges of each node.

    A component's root is its lowest node. Paths are halved as they are walked (Tarjan & van Leeuwen, 1984).
    """
    for edge in range(len(a_P)):
        a, b = a_P[edge], b_P[edge]
        degree_M[a] += 1
        degree_M[b] += 1
        while parent_M[a] != a:
            parent_M[a] = parent_M[parent_M[a]]
            a = parent_M[a]
        while parent_M[b] != b:
            parent_M[b] = parent_M[parent_M[b]]
            b = parent_M[b]
        if a < b:
            parent_M[b] = a
        else:
            parent_M[a] = b


@kernel
def find_roots(parent_M: NDArray[np.int64]) -> None:
    """Replace the parent of each node by its root; parents come before their children."""
    for node in range(len(parent_M)):
        parent_M[node] = parent_M[parent_M[node]]
