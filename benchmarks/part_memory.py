"""Peak memory of whole jobs against the size of the corpus."""

import json
import os
import subprocess
import sys

from benchmarks.harness import ROOT, Found, Settings, own_places, scratch


def measure_memory(settings: Settings) -> Found:
    """Peak memory of the teacher's pass and of training over more and more text."""
    found = Found()
    config = settings.memory_config or settings.config
    job, peaks = [sys.executable, "benchmarks/memory.py", "--", sys.executable], {}
    for sentences in settings.memory_sentences:
        with scratch() as folder:
            changes = [
                *settings.memory_overrides,
                *own_places(settings, folder),
                f"data.transfer.sentences={sentences}",
            ]
            for part, verb in (("teacher", "annotate"), ("training", "distill")):
                out = subprocess.run(
                    [*job, f"jobs/{verb}.py", config, *changes],
                    check=True,
                    capture_output=True,
                    text=True,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                    cwd=ROOT,
                ).stdout
                lines = out[out.rindex("peak ") :].splitlines()
                peaks[part, sentences] = float(lines[0].split()[1])
                what = f"{part}, {sentences} sentences"
                found.figures[f"{what}, peak MiB"] = peaks[part, sentences]
                found.notes.append(f"memory: {what}: " + ", ".join(its.strip() for its in lines))
                print(f"  {found.notes[-1]}", flush=True)
            report = json.loads((folder / "run" / "report.json").read_text(encoding="utf-8"))
            found.figures[f"targets of {sentences} sentences, bytes"] = report["targets"]["bytes"]
    least, most = min(settings.memory_sentences), max(settings.memory_sentences)
    for part in ("teacher", "training"):
        key = f"memory_{most // 1000}k_over_{least // 1000}k_{part}"
        found.ratios[key] = peaks[part, most] / peaks[part, least]
    found.notes.append("memory: one run of each, no turns")
    return found
