"""Replay searches over a table of trained students: how good a front do few trials find?

    python jobs/tune.py configs/study_embedding_hidden.yaml
    python benchmarks/search_replay.py runs/study_embedding_hidden --trials 8 --seeds 3

Score against parameters. The table is the whole grid; each algorithm may look at `--trials` of it.
"""

import argparse
import random
from pathlib import Path

from xdray.fronts import hypervolume, pareto_front
from xdray.proposals import make_proposer
from xdray.space import Choice, Fields, Space, trial_id
from xdray.trials import all_trials, objectives_of

OBJECTIVES = ["score", "parameters"]


def main() -> None:
    """Print a table: mean and each seed's share of the whole grid's hypervolume."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    trials = [trial for trial in all_trials(args.run) if trial["status"] == "finished"]
    table = {trial["id"]: objectives_of(trial, OBJECTIVES) for trial in trials}
    names = list(trials[0]["fields"])
    space = Space(
        {name: Choice(tuple(sorted({trial["fields"][name] for trial in trials}))) for name in names}
    )
    points = list(table.values())
    reference = (min(score for score, _ in points) - 0.01, max(size for _, size in points) * 1.05)
    whole = volume(points, reference)
    best = max(score for score, _ in points)
    front = {trials[k]["id"] for k in pareto_front(points, OBJECTIVES)}
    print(f"{len(points)} trained students, {len(front)} on the front, best score {best:.4f}")
    for algorithm in ("random", "tpe", "nsga2"):
        shares, bests, found = [], [], []
        for seed in range(args.seeds):
            seen = replay(space, algorithm, seed, args.trials, table)
            shares.append(volume([table[name] for name in seen], reference) / whole)
            bests.append(max(table[name][0] for name in seen))
            found.append(len(front & set(seen)))
        each = " ".join(f"{share:.3f}" for share in shares[:10])
        hits = sum(score == best for score in bests)
        print(
            f"{algorithm}: hypervolume {sum(shares) / len(shares):.3f} of the grid's ({each}), "
            f"{sum(found) / len(found):.1f} of the front, the best one in {hits} of {len(bests)}"
        )


def replay(
    space: Space, algorithm: str, seed: int, count: int, table: dict[str, list[float]]
) -> list[str]:
    """Ids of the `count` students that an algorithm looks at; repeats cost nothing."""
    proposer = make_proposer(space, algorithm, OBJECTIVES, seed)
    seen: list[str] = []
    rng = random.Random(seed)
    asked = 0
    while len(seen) < count:
        asked += 1
        fields: Fields | None = proposer.ask() if asked < 200 else space.draw(rng)
        assert fields is not None
        name = trial_id(fields)
        if name not in seen:
            seen.append(name)
        proposer.tell(fields, table[name])
    return seen


def volume(points: list[list[float]], reference: tuple[float, float]) -> float:
    """Hypervolume of (score, parameters) points."""
    return hypervolume([(score, size) for score, size in points], reference)


if __name__ == "__main__":
    main()
