"""The place that knows Ray: what is there, what fits, a pool of workers, a training run.

`plan_resources` works with nothing but the config, refuses what could never run (Ray itself would
wait for ever) and starts no Ray. A `Cluster` starts Ray when it is first needed. `map_shards` is
Ray Data, `fit_on_workers` is Ray Train. Errors of workers come home as they were raised: an
XdrayError as itself, anything else as a ClusterError that says where the traceback is.
"""

import contextlib
import functools
import itertools
import logging
import os
import pickle
import signal
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

from xdray.config import Config
from xdray.config_cluster import ClusterConfig
from xdray.console import stderr_without
from xdray.errors import ClusterError, XdrayError
from xdray.fleet import read_fleet, resources_of
from xdray.resources import ResourcePlan, Resources, check_address, fit_plan, machine_resources
from xdray.sessions import RaySession, Session
from xdray.signals import leave
from xdray.storage import join, system_of
from xdray.watching import Meters
from xdray.weights import passed_on
from xdray.workers import Ledger, PoolWorker, as_xdray_error, enter, last_line

MAX_WINDOW = 20_000  # items of one Ray Data job: the driver's memory, 1 ms each to hand over
SILENT_SECONDS = 4 * 3600.0  # without one finished shard; a job that hangs ends then
STARTS = 6  # of a group of workers that finds no room in ten minutes, or has no node left
SETTINGS = {  # read by Ray when it is imported or started; what the user has set stays
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else under `uv run` every worker installs anew
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # else each pool prints a harmless line as an ERROR
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker without GPUs sees none
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else what a worker prints is printed twice
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # cold images, slow disks
}


def available(config: ClusterConfig) -> Resources:
    """Return what can be given: this machine's, or where RAY_ADDRESS is set the cluster's.

    There `max_resources` is believed where set (a cluster that grows), else Ray is asked. `fleet`
    stands for a cluster that is only planned for. Raises ClusterError where no cluster answers, or
    `num_gpus` is more than this machine shows.
    """
    if config.fleet is not None:
        return resources_of(read_fleet(config.fleet))
    address, limits = os.environ.get("RAY_ADDRESS") or "local", config.max_resources or {}
    if address == "local":
        return machine_resources(config)
    if {"CPU", "GPU"} <= limits.keys():
        return Resources(int(limits["CPU"]), int(limits["GPU"]), "cluster.max_resources", True)
    return Resources.of_nodes(_ask(address), limits, f"the cluster at {address}")


def plan_resources(config: Config, shards: int | None) -> ResourcePlan:
    """Fit actors and workers to what is there; see `resources.fit_plan`."""
    return fit_plan(config, shards, available(config.cluster))


@functools.cache
def _ask(address: str) -> Any:
    """Ask a cluster once for its nodes, so that a run is planned the same throughout."""
    with Cluster(ClusterConfig.model_validate({})) as cluster:
        cluster.start()
        import ray

        return ray.nodes()


class Cluster:
    """Ray, started when first needed and shut down on leaving if it was started here."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config, self._started = config, False
        self._handler: Any = None
        self.meters = Meters()
        """Silent until Ray is there."""
        self.pools = weakref.WeakSet[Generator[Any]]()

    def __enter__(self) -> "Cluster":
        """Start nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the pools left open by an error, shut down the Ray that was started here."""
        for pool in list(self.pools):  # after the shutdown each would start a Ray to end itself in
            pool.close()
        if not self._started:
            return
        import ray._private.worker

        ray.shutdown()
        ray._private.worker._worker_logs_enabled = True
        self._started = False
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)

    def start(self) -> None:
        """Join the cluster that RAY_ADDRESS names, else start Ray on this machine; only once.

        A Ray that this process has already is used and left running. Workers' output is shown with
        RAY_LOG_TO_DRIVER=1, else it is in Ray's logs. Raises ClusterError when Ray does not start.
        """
        address = os.environ.get("RAY_ADDRESS") or "local"
        verbose = os.environ.get("RAY_LOG_TO_DRIVER") == "1"
        options = self._prepare(address)
        import ray._private.worker
        import ray.util.metrics

        self.meters = Meters(ray.util.metrics)
        if ray.is_initialized():
            return
        level = logging.INFO if verbose else logging.WARNING
        handler = signal.getsignal(signal.SIGTERM)  # which ray.init replaces
        try:
            with stderr_without(b"RAY_BACKEND_LOG_LEVEL"):  # a note that Ray read it
                ray.init(address=address, log_to_driver=verbose, logging_level=level, **options)
        except Exception as error:
            raise ClusterError(
                f"Ray at '{address}' does not start: {last_line(error)}; "
                "check RAY_ADDRESS and the free memory"
            ) from error
        self._started = True
        # whether it prints the deaths of workers; the switch that its debugger uses
        ray._private.worker._worker_logs_enabled = verbose
        if threading.current_thread() is threading.main_thread():
            self._handler = handler
            signal.signal(signal.SIGTERM, leave)

    def _prepare(self, address: str) -> dict[str, Any]:
        """Set what Ray reads from the environment; return the rest of the arguments of its init."""
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        source, environment = Path(__file__).resolve().parents[1], passed_on()
        if source.name != "site-packages":  # a source tree, which workers would not find
            paths = [str(source), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
            environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
        if address != "local":
            check_address(address)
            submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # brings its own working_dir
            return {} if submitted else {"runtime_env": {"env_vars": environment}}
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # of a Ray that only this process uses
        os.environ.update(environment)
        there = available(self._config)
        return {
            "num_cpus": there.logical_cpus,
            "num_gpus": there.gpus,
            "include_dashboard": False,
            "object_store_memory": int(self._config.object_store_gib * 2**30),
        }


def map_shards(
    cluster: Cluster,
    worker_class: Callable[..., Callable[[Any], dict[str, Any]]],
    worker_kwargs: dict[str, Any],
    items: Iterable[Any],
    plan: ResourcePlan,
    in_order: bool = False,
    threads: int = 1,
) -> Iterator[dict[str, Any]]:
    """Yield what `worker_class(**worker_kwargs)(item)` returns for each item, as they finish.

    in_order: as the items come; the pool works ahead as far as Ray's shared memory holds results.
    threads: items that an actor works on at once, where there are many; the worker must bear it.

    "index" is added, the item's number, and "tries", how often it was begun. A pool of
    `plan.replicas` actors; an item is the unit of work and is done again elsewhere when its actor
    dies. What a worker raises is raised here and ends the pool; so does an item that killed its
    actor three times, or a pool silent for four hours. Each 20,000 items have a pool of their own.
    """
    remaining = enumerate(items)
    while window := list(itertools.islice(remaining, MAX_WINDOW)):
        cluster.start()
        try:
            pool = _map(worker_class, worker_kwargs, window, plan, in_order, threads)
            cluster.pools.add(pool)
            for result in pool:
                if isinstance(result, XdrayError):
                    raise result
                yield result
        except XdrayError:
            raise
        except Exception as error:
            raise as_xdray_error(error, "the pool of workers", _logs()) from error


def _map(
    worker_class: Callable[..., Any],
    worker_kwargs: dict[str, Any],
    window: list[tuple[int, Any]],
    plan: ResourcePlan,
    in_order: bool,
    threads: int,
) -> Generator[Any]:
    """One Ray Data job: a block for each item, so that a free actor always takes the next one."""
    import ray.data

    if os.environ.get("RAY_LOG_TO_DRIVER") != "1":
        for handler in logging.getLogger("ray.data").handlers:
            if isinstance(handler, logging.StreamHandler):  # its file keeps all
                handler.setLevel(logging.CRITICAL)
    ledger = _make_ledger()
    rows = [{"item": pickle.dumps(pair)} for pair in window]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    settings = dataset.context
    settings.enable_progress_bars = False
    settings.print_on_execution_start = False
    settings.execution_no_progress_timeout_s = SILENT_SECONDS
    settings.execution_options.preserve_order = in_order
    # a task in reserve keeps an actor busy, but where items are few it may starve another actor
    in_flight = 2 if plan.replicas == 1 or len(window) > 8 * plan.replicas else 1
    receipts = dataset.map_batches(
        PoolWorker,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            min_size=plan.least_replicas or plan.replicas,
            max_size=plan.replicas,
            max_tasks_in_flight_per_actor=in_flight,
            max_concurrent_calls_per_actor=min(threads, in_flight),
            enable_true_multi_threading=True,
        ),
        num_cpus=plan.cpus_per_replica,
        num_gpus=plan.gpus_per_replica or None,
        label_selector=dict(plan.replica_labels) or None,
        fn_constructor_kwargs={
            "worker_class": worker_class,
            "worker_kwargs": worker_kwargs,
            "tries_of": lambda index: ray.get(ledger.tries.remote(index)),
            "count_try": lambda index: ray.get(ledger.begin.remote(index)),
            "count_end": ledger.end.remote,
            "folder": str(Path.cwd()),
            "logs": _logs(),
        },
    )
    found: Any = receipts.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    try:
        for batch in found:
            yield from (pickle.loads(row) for row in batch["receipt"].to_pylist())
    finally:
        ray.kill(ledger)  # Ray keeps one for ever when a process that knew it was killed


def _make_ledger() -> Any:
    """Start a ledger on the driver's node: it dies with the driver and not before."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Ledger).remote()


def fit_on_workers(
    cluster: Cluster,
    loop: Callable[[Any, Session], Any],
    loop_config: Any,
    plan: ResourcePlan,
    storage: str,
    name: str,
    max_failures: int,
) -> Any:
    """Run `loop(loop_config, session)` on `plan.workers` workers; return what rank 0 returns.

    One Ray Train run, kept under `storage` (a folder or URI that all nodes see) by `name`, which
    must tell runs apart: one that was interrupted goes on from its last checkpoint. Dead workers
    are started again `max_failures` times; an XdrayError of the loop is raised here as it was.
    """
    cluster.start()
    import ray.train
    from ray.train.torch import TorchTrainer

    (system, where), ledger = system_of(storage), _make_ledger()
    resources = {"CPU": plan.cpus_per_worker, "GPU": plan.gpus_per_worker}
    elastic = 0 < plan.least_workers < plan.workers
    num_workers = (plan.least_workers, plan.workers) if elastic else plan.workers
    trainer = TorchTrainer(
        _worker_loop,
        train_loop_config={
            "call": (loop, loop_config, ledger),
            "folder": str(Path.cwd()),
            "run_folder": join(storage, name),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers,
            use_gpu=plan.gpus_per_worker > 0,
            resources_per_worker={k: v for k, v in resources.items() if v},
            label_selector=dict(plan.worker_labels) or None,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=where,
            storage_filesystem=system,
            failure_config=ray.train.FailureConfig(max_failures, controller_failure_limit=STARTS),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    trainer._register_sigint_handler = lambda controller: None  # Ray's ends with status 0
    try:
        value = trainer.fit().return_value
        failure: Any = ray.get(ledger.error.remote())
    except Exception as error:
        raise as_xdray_error(error, f"run {name}", _logs()) from error
    finally:
        ray.kill(ledger)
    if failure is not None:
        raise failure
    return value


def _worker_loop(config: dict[str, Any]) -> Any:
    """Runs in each Ray Train worker."""
    import ray.train
    import ray.util.metrics
    from ray.train.torch import get_device

    loop, loop_config, ledger = config["call"]
    if ray.get(ledger.error.remote()) is not None:
        return None  # Ray Train starts again after any error; this one would come again
    context = ray.train.get_context()
    enter(config["folder"])
    rank, size, device = context.get_world_rank(), context.get_world_size(), str(get_device())
    with contextlib.ExitStack() as stack:
        meters = Meters(ray.util.metrics)
        session = RaySession(rank, size, device, config["run_folder"], ray.train, stack, meters)
        try:
            return loop(loop_config, session)
        except XdrayError as error:
            ray.get(ledger.fail.remote(error))
            if size == 1:
                return None
            raise  # frees the ranks that wait for this one


def _logs() -> str:
    """Folder of Ray's logs on the node where this runs."""
    import ray

    context = ray.get_runtime_context()
    return f"{context.get_temp_dir()}/{context.get_session_name()}/logs"
