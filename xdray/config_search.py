"""The config's section on searches: which fields vary, what is wanted, how trials are run."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from xdray.config_data import Section

OBJECTIVES = ("score", "parameters", "bytes", "latency_ms")


class RangeConfig(Section):
    """Numbers between two bounds, both included."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    step: float | None = Field(default=None, gt=0)
    """Only low, low + step, ...; null: any number. Whole numbers throughout make whole values."""
    log: bool = False
    """Drawn evenly on a logarithmic scale; not with step."""

    @model_validator(mode="after")
    def _ordered(self) -> "RangeConfig":
        if self.low >= self.high:
            raise ValueError(f"low = {self.low:g} is not below high = {self.high:g}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log: true needs low above 0 and no step")
        return self


Domain = Annotated[
    Annotated[list[Any], Tag("[values]")] | Annotated[RangeConfig, Tag("[range]")],
    Discriminator(lambda given: "[values]" if isinstance(given, list) else "[range]"),
]


class SearchConfig(Section):
    """Which students to try, and which of them to keep."""

    space: dict[str, Domain]
    """Field by its dotted name, e.g. `student.hidden`, to a list of values or to low and high.
    Fields of student, recipe and training: the text and the teacher are the same for all trials."""
    algorithm: Literal["grid", "random", "tpe", "nsga2"] = "tpe"
    """grid: all combinations; random; tpe and nsga2: Optuna's, both for several objectives too."""
    trials: int = Field(default=16, gt=0)
    """At most so many; a finished search goes on from what is there when this is raised."""
    objectives: list[Literal["score", "parameters", "bytes", "latency_ms"]] = Field(
        default=["score"], min_length=1
    )
    """score: `evaluation.metric` on dev, the larger the better; the others, the smaller."""
    max_parameters: int | None = Field(default=None, gt=0)
    """Students with more are never trained."""
    max_bytes: int | None = Field(default=None, gt=0)
    """The same for bytes of the weights in float32."""
    max_latency_ms: float | None = Field(default=None, gt=0)
    """The same for the median time of a forward pass at batch 1 on this machine."""
    early_stopping: Literal["auto", "asha", "none"] = "auto"
    """asha: trials whose dev score is behind at a rung end there (Li et al. 2020). auto: asha for
    the score alone; with other objectives none, since small students are behind in score."""
    grace: float = Field(default=0.25, gt=0, lt=1)
    """Share of its planned epochs that every trial gets."""
    reduction: int = Field(default=3, gt=1)
    """One in so many goes on from a rung; the next rung is so many times later."""
    concurrent: int | Literal["auto"] = "auto"
    """Trials at once; auto: one for each `cluster.threads` CPUs (null: one CPU) or GPU share."""
    gpus_per_trial: float = Field(default=1.0, gt=0, le=1)
    """Share of a GPU that a trial holds, where there are GPUs."""
    retrain: dict[str, Any] = Field(default={})
    """Fields that change when the chosen student is made, e.g. more epochs; {}: it is taken from
    its trial as it is."""

    @model_validator(mode="after")
    def _something_to_do(self) -> "SearchConfig":
        empty = [name for name, domain in self.space.items() if domain == []]
        if not self.space or empty:
            raise ValueError(f"the space is empty{': ' + ', '.join(empty) if empty else ''}")
        if len(set(self.objectives)) != len(self.objectives):
            raise ValueError(f"objectives {self.objectives}: expected each once")
        if "score" not in self.objectives:
            raise ValueError(f"objectives {self.objectives}: expected `score` among them")
        if self.early_stopping == "asha" and len(self.objectives) > 1:
            raise ValueError(
                f"early_stopping: asha stops by score alone, objectives are {self.objectives}; "
                "leave it at auto"
            )
        if self.concurrent != "auto" and self.concurrent < 1:
            raise ValueError(f"concurrent is {self.concurrent}, expected 'auto' or 1 and more")
        return self
