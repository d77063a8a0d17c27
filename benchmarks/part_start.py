"""How long it takes to start: import, plan, a whole tiny run."""

from benchmarks.harness import ROOT, Found, Settings, scratch, seconds_of, take_turns


def measure_start(settings: Settings) -> Found:
    """Seconds of `import xdray`, of a plan, and of a whole tiny run in a new process."""
    job = str(ROOT / "jobs" / "distill.py")

    def tiny() -> float:
        with scratch() as folder:
            seconds_of(["-m", "xdray", "sample", "tiny", "sample/tiny"], folder)
            return seconds_of([job, str(ROOT / settings.tiny_config)], folder)

    found = Found()
    turns = take_turns(
        {
            "import_s": lambda: seconds_of(["-c", "import xdray"]),
            "plan_start_s": lambda: seconds_of(
                [job, settings.config, *settings.overrides, "--plan"]
            ),
            "tiny_run_s": tiny,
        },
        settings.repeats,
    )
    found.ratios = found.take(turns)
    return found
