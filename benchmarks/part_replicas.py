"""Scheduling alone, on a teacher that only sleeps."""

from pathlib import Path

from benchmarks.harness import Found, Settings, run_config
from benchmarks.simulated import SleepingTeacher, share_of_ideal
from xdray.cluster import Cluster, map_shards
from xdray.resources import ResourcePlan, Resources


def measure_replicas(settings: Settings) -> Found:
    """Scheduling alone: shards over 1 .. 64 simulated replicas on this machine."""
    found = Found()
    batches = 32  # of a shard: 4,096 sentences of 32 tokens in batches of 4,096 tokens
    for replicas in settings.replicas:
        shards = replicas * 16
        config = run_config(settings, Path("none"))
        cluster_config = config.cluster.model_copy(update={"num_cpus": replicas + 1})
        plan = ResourcePlan(
            replicas=replicas,
            cpus_per_replica=1,
            gpus_per_replica=0,
            threads_per_replica=1,
            workers=0,
            cpus_per_worker=1,
            gpus_per_worker=0,
            threads_per_worker=1,
            reader_cpus=1,
            available=Resources(replicas + 1, 0, "this machine"),
        )
        with Cluster(cluster_config) as cluster:
            receipts = list(
                map_shards(
                    cluster,
                    SleepingTeacher,
                    {"seconds": settings.batch_seconds},
                    [batches] * shards,
                    plan,
                )
            )
        assert len({its["replica"] for its in receipts}) == replicas
        share = share_of_ideal(receipts, settings.batch_seconds * batches)
        found.figures[f"{replicas} replicas, share of ideal"] = share
        print(f"  {replicas} replicas: {share:.3f} of ideal", flush=True)
        found.ratios[f"replicas_{replicas}_over_ideal"] = share
    found.notes.append(
        f"replicas: shards of {batches} batches of {settings.batch_seconds * 1000:.0f} ms, 16 a "
        "replica, one turn, counted from when each replica has done one until one of them may find "
        "none left"
    )
    return found
