"""The plan: which layers learn from which split by which loss, in order. Data, no torch.

A recipe (by the papers' names, or written out in the config) becomes a flat list of `Stage`s:
gradual unfreezing is expanded here, one `Stage` a sub-step, from the top layer down.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from xdray.config import Config, StudentConfig
from xdray.config_recipe import RecipeConfig, StageConfig, StageSettings, TermConfig
from xdray.errors import ConfigError
from xdray.storage import fingerprint


@dataclass(frozen=True, kw_only=True)
class Term:
    """One loss on one split, everything worked out."""

    loss: str
    split: str
    weight: float
    distance: str
    temperature: float
    layer: int | None
    tokens: str
    """"first": of each word; "all": special tokens aside."""

    @property
    def name(self) -> str:
        """How logs and the report call it: "hidden", "logits", "labels", "hard_labels"."""
        return self.loss

    @property
    def long_name(self) -> str:
        """The same where a stage has several terms of one loss."""
        return self.loss if self.layer is None else f"{self.loss} {self.layer}"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One sub-step: its terms, and the groups of layers that train."""

    stage: str
    name: str
    terms: tuple[Term, ...]
    trainable: tuple[str, ...]
    epochs: int
    patience: int
    learning_rate: float
    schedule: str
    batch_tokens: int
    new_head: bool

    @property
    def by_dev(self) -> bool:
        """Whether the best state is the task's on dev (stages with labels), else its own loss."""
        return any(term.loss == "labels" for term in self.terms)

    @property
    def trains_head(self) -> bool:
        """Whether a term stands above the head, so that tags mean something afterwards."""
        return any(term.loss != "hidden" for term in self.terms)

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that it reads; an epoch is a pass over the first."""
        return tuple(sorted({term.split for term in self.terms}, reverse=True))

    @property
    def layers(self) -> tuple[int, ...]:
        """Teacher layers that its terms imitate."""
        return tuple(sorted({term.layer for term in self.terms if term.layer is not None}))


def layer_groups(student: StudentConfig) -> tuple[str, ...]:
    """Groups of the student's layers from the top down, the order of unfreezing (P1 table 4)."""
    if student.kind == "bilstm":
        return ("head", "projection", "encoder", "embedding")
    layers = tuple(f"layer_{number}" for number in range(student.layers, 0, -1))
    return ("head", "projection", *layers, "embedding")


def plan_stages(config: Config, num_teacher_layers: int) -> list[Stage]:
    """Expand the config's recipe into sub-steps.

    Raises ConfigError for a teacher layer that is not there or a group that the student lacks.
    """
    recipe = config.recipe
    layer = num_teacher_layers // 2 if recipe.layer is None else recipe.layer
    plan: list[Stage] = []
    for stage in _recipe_stages(recipe):
        terms = tuple(_term(term, layer, num_teacher_layers) for term in stage.terms)
        plan += _sub_steps(stage, terms, config)
    return plan


def label_stage(config: Config, loss: str, epochs: int) -> list[Stage]:
    """The plan of a control without hidden or logit targets: one stage, all layers, no early end.

    loss: "labels" (no teacher) or "hard_labels" (the teacher's best tags).
    """
    split = "train" if loss == "labels" else "transfer"
    term = TermConfig.model_validate({"loss": loss, "split": split})
    stage = StageConfig(name=loss, terms=[term], epochs=epochs, patience=epochs)
    return _sub_steps(stage, (_term(term, 0, 0),), config)


def finetune_stage(config: Config) -> Stage:
    """Return the one stage that fine-tunes a teacher on the labels (P1 section 2.5, step 0)."""
    settings = config.teacher.finetune
    assert settings is not None
    return Stage(
        stage="finetune",
        name="finetune",
        terms=(_term(_LABELS, 0, 0),),
        trainable=("head", "encoder", *(() if settings.freeze_embeddings else ("embedding",))),
        epochs=settings.epochs,
        patience=settings.epochs,
        learning_rate=settings.learning_rate,
        schedule="cosine",
        batch_tokens=settings.batch_tokens,
        new_head=False,
    )


def needed_layers(stages: Sequence[Stage]) -> tuple[int, ...]:
    """Teacher layers that a plan imitates."""
    return tuple(sorted({layer for stage in stages for layer in stage.layers}))


def chain_keys(stages: Sequence[Stage], base: dict[str, Any]) -> list[str]:
    """Key of each stage: the hash of `base` (student, data, targets ...), itself and all before.

    Two runs whose first stages have equal keys end these stages with the same weights.
    """
    keys: list[str] = []
    previous = fingerprint(base)
    for stage in stages:
        previous = fingerprint({"previous": previous, "stage": asdict(stage)})
        keys.append(previous)
    return keys


_LABELS = TermConfig(loss="labels", split="train")


def _recipe_stages(recipe: RecipeConfig) -> list[StageConfig]:
    """Stages of a named recipe (P1 section 4, table 3), overrides applied; or those written out."""
    stages = _named_stages(recipe) if recipe.stages is None else recipe.stages
    names = [stage.name for stage in stages]
    for name in recipe.overrides:
        if name not in names:
            raise ConfigError(
                f"recipe.overrides: no stage '{name}' in recipe '{recipe.name}', it has {names}"
            )
    return [_override(stage, recipe.overrides.get(stage.name)) for stage in stages]


def _named_stages(recipe: RecipeConfig) -> list[StageConfig]:
    hidden = TermConfig(loss="hidden", split="transfer")
    logits = TermConfig(
        loss="logits",
        split="transfer",
        distance=recipe.distance,
        temperature=recipe.temperature,
    )
    unfreeze = recipe.name.endswith("_unfreezing")
    representation = StageConfig(name="representation", terms=[hidden])
    if recipe.name == "labels":
        return [StageConfig(name="labels", terms=[_LABELS])]
    if recipe.name == "joint_logits":
        return [StageConfig(name="joint", terms=[_LABELS, logits])]
    if recipe.name == "joint":
        return [StageConfig(name="joint", terms=[_LABELS, logits, hidden])]
    if recipe.name.startswith("staged_joint"):
        joint = StageConfig(name="joint", terms=[_LABELS, logits], unfreeze=unfreeze)
        return [representation, joint]
    return [
        representation,
        StageConfig(name="logits", terms=[logits], unfreeze=unfreeze),
        StageConfig(name="labels", terms=[_LABELS], unfreeze=unfreeze, new_head=recipe.new_head),
    ]


def _override(stage: StageConfig, settings: StageSettings | None) -> StageConfig:
    if settings is None:
        return stage
    return stage.model_copy(update=settings.model_dump(exclude_none=True))


def _term(term: TermConfig, default_layer: int, num_layers: int) -> Term:
    layer = None
    if term.loss == "hidden":
        layer = default_layer if term.layer is None else term.layer
        if not 0 <= layer <= num_layers:
            raise ConfigError(
                f"recipe.layer = {layer}: the teacher has layers 0 (embeddings) to {num_layers}"
            )
    return Term(
        loss=term.loss,
        split=term.split,
        weight=term.weight,
        distance=term.distance,
        temperature=term.temperature or 1.0,
        layer=layer,
        tokens=term.tokens,
    )


def _sub_steps(stage: StageConfig, terms: tuple[Term, ...], config: Config) -> list[Stage]:
    """One sub-step for all groups, or one for each group that is freed, from the top."""
    groups = _trainable_groups(stage, terms, config.student)
    training = config.training
    epochs = stage.epochs or training.epochs
    partial = stage.partial_epochs or training.partial_epochs or epochs
    counts = range(1, len(groups) + 1) if stage.unfreeze else [len(groups)]
    return [
        Stage(
            stage=stage.name,
            name=f"{stage.name} +{groups[count - 1]}" if stage.unfreeze else stage.name,
            terms=terms,
            trainable=groups[:count],
            epochs=epochs if count == len(groups) else partial,
            patience=stage.patience or training.patience,
            learning_rate=stage.learning_rate or training.learning_rate,
            schedule=stage.schedule or training.schedule,
            batch_tokens=stage.batch_tokens or training.batch_tokens,
            new_head=stage.new_head and position == 0,
        )
        for position, count in enumerate(counts)
    ]


def _trainable_groups(
    stage: StageConfig, terms: Sequence[Term], student: StudentConfig
) -> tuple[str, ...]:
    """Groups from the top down that the terms reach, narrowed to those that the stage names."""
    reached = list(layer_groups(student))
    if all(term.loss == "hidden" for term in terms):
        reached.remove("head")
    if student.kind != "bilstm" and all(term.loss != "hidden" for term in terms):
        reached.remove("projection")  # serves hidden terms only, dropped at the end
    if stage.trainable is None:
        return tuple(reached)
    wanted: set[str] = set()
    for name in stage.trainable:
        expanded = [g for g in reached if g == name or (name == "encoder" and "layer_" in g)]
        if not expanded:
            raise ConfigError(
                f"recipe stage '{stage.name}': trainable names '{name}', which its losses do not "
                f"reach; they reach {', '.join(reached)}"
            )
        wanted.update(expanded)
    return tuple(group for group in reached if group in wanted)
