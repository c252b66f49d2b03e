"""The costs that the planner uses in every test, so that no plan depends on how busy the machine is."""

from hashlight.engine.indexes.multi_index.planner import Costs

FIXED_COSTS = Costs(word_ns=0.1, load_ns=0.25, near_lookup_ns=5.0, far_lookup_ns=16.0, candidate_ns=0.6, near_ns=25.0)
