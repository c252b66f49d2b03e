"""Two Ray nodes as processes; one with a replica of each group is lost while queries continue. Run by a test."""

import sys

import numpy as np
import ray
from ray.cluster_utils import Cluster

from hashlight.engine.collection.collection import Collection
from hashlight.pipelines.serving.ray_servers import RayServers
from tests.engine.service.conftest import Load, eventually
from tests.pipelines.serving.test_ray_cluster import routed


def main(path):
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 80_000_000})
    second = nodes.add_node(num_cpus=2, object_store_memory=80_000_000)
    nodes.wait_for_nodes()
    ray.init(address=nodes.address, log_to_driver=False)
    collection = Collection.open(path)
    queries = np.ascontiguousarray(collection.shards[0].codes_NW[:5]).astype(np.uint64)
    expected = collection.search(queries, 5).ids
    with RayServers(path, groups=2, replicas=2, cpus=0.5) as cluster, routed(cluster) as router:

        def well():
            return [replica["state"] for replica in router.stats()["replicas"]] == ["connected"] * 4

        def ask():
            answer = router.search(queries, 5, allow_partial=False)
            np.testing.assert_array_equal(answer.ids, expected)

        eventually(well)
        homes = {place: actor["pid"] for place, actor in cluster.health().items()}

        def moved():
            try:
                return sorted(
                    group for (group, n), actor in cluster.health().items() if actor["pid"] != homes[group, n]
                )
            except ray.exceptions.RayActorError:
                return []

        with Load(ask, threads=2) as load:
            load.wait_for(10)
            nodes.remove_node(second, allow_graceful=False)
            load.wait_for(10)
            # One replica of each group was there.
            eventually(lambda: moved() == [0, 1])
            eventually(well)
            load.wait_for(10)
        assert load.errors == [], load.errors
    ray.shutdown()
    nodes.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
