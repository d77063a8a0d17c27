"""Planning for a cluster that is not there: its nodes, and who sits where."""

import re

import pytest

from tests.test_resources import config, machine
from xdray.errors import ClusterError
from xdray.fleet import (
    TYPE_LABEL,
    Nodes,
    read_fleet,
    resources_of,
    seats,
    selects,
    unseen_labels,
)
from xdray.resources import fit_plan

H100 = {TYPE_LABEL: "H100"}


def test_nodes_are_read():
    assert read_fleet("4x8xH100 + 16x32cpu+1x2xA100-80Gx24cpu") == [
        Nodes(4, 64, 8, "H100"),
        Nodes(16, 32, 0, ""),
        Nodes(1, 24, 2, "A100-80G"),
    ]
    there = resources_of(read_fleet("4x8xH100+16x32cpu"))
    assert (there.cpus, there.gpus) == (4 * 64 + 16 * 32, 32)


@pytest.mark.parametrize(
    "text", ["", "4x8", "0x8xH100", "4x0xH100", "H100", "4x8xH100+", "4*8xH100"]
)
def test_what_is_no_cluster_is_refused(text):
    with pytest.raises(ClusterError, match=r"--cluster: .* expected NODESxGPUSxTYPE"):
        read_fleet(text)


def seated(text, at_once=False, **sections):
    fleet = read_fleet(text)
    rows = seats(fleet, fit_plan(config(**sections), None, resources_of(fleet)), at_once)
    return [(int(row["teacher actors"]), int(row["training workers"])) for row in rows]


def test_one_actor_and_one_worker_a_gpu_and_none_on_nodes_without():
    assert seated("16x32cpu+4x8xH100") == [(0, 0), (32, 32)]


def test_an_actor_over_several_gpus_stays_on_one_node():
    assert seated("4x8xH100", teacher={"gpus_per_replica": 4}) == [(8, 32)]
    with pytest.raises(ClusterError, match=re.escape("2 actor(s) of 1 CPU and 16 GPU(s) find no")):
        seated("4x8xH100", teacher={"gpus_per_replica": 16})


def test_labels_say_which_nodes_may_be_used():
    cluster = {"teacher_labels": {TYPE_LABEL: "L4"}, "training_labels": H100}
    sections = {"cluster": cluster, "teacher": {"replicas": 4}, "training": {"workers": 8}}
    assert seated("1x8xH100+2x4xL4", **sections) == [(0, 8), (4, 0)]
    with pytest.raises(ClusterError, match=r"4 actor.s. .* on nodes with .* L4"):
        seated("3x8xH100", **sections)


def test_of_a_stream_both_sit_side_by_side():
    targets = {"delivery": "streamed"}
    assert seated("2x8xH100", at_once=True, targets=targets) == [(14, 2)]
    assert seated("2x8xH100", targets=targets) == [(14, 2)]


def test_without_gpus_actors_go_where_cpus_are():
    plan = fit_plan(config(teacher={"replicas": 10}), None, machine(40))
    rows = seats(read_fleet("1x8xH100+2x4cpu"), plan, False)
    assert [row["teacher actors"] for row in rows] == ["2", "8"]


@pytest.mark.parametrize(
    ("selector", "picked"),
    [
        ("L4", {"L4"}),
        ("!L4", {"A10G", "H100", ""}),
        ("in(L4, A10G)", {"L4", "A10G"}),
        ("!in(L4,A10G)", {"H100", ""}),
    ],
)
def test_a_label_is_selected_as_ray_does(selector, picked):
    assert {name for name in ("L4", "A10G", "H100", "") if selects(selector, name)} == picked


def test_a_selector_of_several_types_seats_on_each_of_them():
    sections = {
        "cluster": {"teacher_labels": {TYPE_LABEL: "!H100"}, "training_labels": H100},
        "teacher": {"replicas": 6},
        "training": {"workers": 8},
    }
    assert seated("1x8xH100+1x4xL4+1x4xA10G", **sections) == [(0, 8), (4, 0), (2, 0)]


def test_of_a_range_as_many_are_seated_as_the_labelled_nodes_hold():
    sections = {"cluster": {"training_labels": H100}, "training": {"workers": [4, 32]}}
    assert seated("1x8xH100+3x8xL4", **sections)[0][1] == 8
    sections["training"] = {"workers": [9, 32]}
    with pytest.raises(ClusterError, match=r"worker.* on nodes with .* H100"):
        seated("1x8xH100+3x8xL4", **sections)


def test_labels_of_which_the_fleet_says_nothing_are_named():
    labels = {
        "teacher_labels": {"pool": "teacher", TYPE_LABEL: "L4"},
        "training_labels": {"a": "b"},
    }
    plan = fit_plan(config(cluster=labels), None, resources_of(read_fleet("1x8xL4")))
    assert unseen_labels(plan) == ["a", "pool"]
