"""A recipe, by the papers' names or written out, as a flat list of stages. Data, no torch.

Gradual unfreezing is expanded here, one `Stage` a sub-step, from the top layer down; a layerwise
stage from below.
"""

from collections.abc import Sequence
from dataclasses import replace

from xdray.config import Config, StudentConfig
from xdray.config_recipe import LAYERED, RecipeConfig, StageConfig, StageSettings, TermConfig
from xdray.errors import ConfigError
from xdray.stages import LAST, Stage, Term, layer_groups

_LABELS = TermConfig(loss="labels", split="train")


def plan_stages(config: Config, num_teacher_layers: int) -> list[Stage]:
    """Expand the config's recipe into sub-steps.

    Raises ConfigError for a teacher layer that is not there or a group that the student lacks.
    """
    recipe = config.recipe
    layer = num_teacher_layers // 2 if recipe.layer is None else recipe.layer
    plan: list[Stage] = []
    for stage in _recipe_stages(recipe, config.task.kind == "encoding"):
        terms = [
            its for term in stage.terms for its in _terms(term, layer, num_teacher_layers, config)
        ]
        plan += _sub_steps(stage, tuple(terms), config)
    if not plan:
        raise ConfigError(
            f"recipe: '{recipe.name}' has no stage for task.kind: {config.task.kind}, which has no "
            "labels; take universal, or write stages out"
        )
    return plan


def label_stage(config: Config, loss: str, epochs: int) -> list[Stage]:
    """The plan of a control without hidden or logit targets: one stage, all layers, no early end.

    loss: "labels" (no teacher) or "hard_labels" (the teacher's best tags).
    """
    split = "train" if loss == "labels" else "transfer"
    term = TermConfig.model_validate({"loss": loss, "split": split})
    stage = StageConfig(name=loss, terms=[term], epochs=epochs, patience=epochs)
    return _sub_steps(stage, (_term(term, None),), config)


def finetune_stage(config: Config) -> Stage:
    """Return the one stage that fine-tunes a teacher on the labels (P1 section 2.5, step 0)."""
    settings = config.teacher.finetune
    assert settings is not None
    return Stage(
        stage="finetune",
        name="finetune",
        terms=(_term(_LABELS, None),),
        trainable=("head", "encoder", *(() if settings.freeze_embeddings else ("embedding",))),
        epochs=settings.epochs,
        patience=settings.epochs,
        learning_rate=settings.learning_rate,
        schedule="cosine",
        batch_tokens=settings.batch_tokens,
        new_head=False,
    )


def _recipe_stages(recipe: RecipeConfig, no_head: bool) -> list[StageConfig]:
    """Stages of a named recipe (P1 section 4, table 3), overrides applied; or those written out."""
    stages = _named_stages(recipe) if recipe.stages is None else recipe.stages
    if no_head and recipe.stages is None:
        stages = [its for its in stages if all(term.loss in LAYERED for term in its.terms)]
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
    if recipe.name == "universal":
        every = TermConfig(loss="hidden", split="transfer", layers="all")
        relations = TermConfig(loss="relations", split="transfer")
        representation = StageConfig(name="representation", terms=[every, relations])
        unfreeze = True
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


def _terms(term: TermConfig, default_layer: int, num_layers: int, config: Config) -> list[Term]:
    """One term, or one for each pair of layers that it names."""
    if term.loss not in LAYERED:
        return [_term(term, None)]
    pieces = config.tokens.pieces
    if term.layers is None:
        layer = default_layer if term.loss == "hidden" else num_layers
        layer = layer if term.layer is None else term.layer
        _check_layer(layer, num_layers, term.loss)
        return [_term(term, layer, pieces=pieces)]
    if config.student.kind == "bilstm":
        raise ConfigError("recipe: `layers` needs a student with layers, student.kind is 'bilstm'")
    top, first = config.student.layers, 0 if term.loss == "hidden" else 1
    if top > num_layers:
        raise ConfigError(
            f"recipe: layers: all of a student with {top} layers, the teacher has {num_layers}"
        )
    pairs = term.layers
    if pairs == "all":  # the top of the teacher (METHOD.md 3.1)
        pairs = {layer: num_layers - top + layer for layer in range(first, top + 1)}
    for mine, layer in pairs.items():
        _check_layer(layer, num_layers, term.loss)
        if not first <= mine <= top:
            raise ConfigError(
                f"recipe: layers: student layer {mine} of a {term.loss} term, the student has "
                f"layers {first} to {top}"
            )
    return [
        _term(term, layer, LAST if mine == top else mine, pieces) for mine, layer in pairs.items()
    ]


def _check_layer(layer: int, num_layers: int, loss: str) -> None:
    if not (0 if loss == "hidden" else 1) <= layer <= num_layers:
        first = "0 (embeddings)" if loss == "hidden" else "1"
        raise ConfigError(
            f"recipe.layer = {layer}: the teacher has layers {first} to {num_layers}"
            + ("" if loss == "hidden" else f" for a term on {loss}")
        )


def _term(
    term: TermConfig, layer: int | None, student_layer: int = LAST, pieces: str = "first"
) -> Term:
    normalise = term.normalise
    if normalise is None:
        normalise = term.loss == "attention" or (
            term.layers is not None and (term.loss, term.distance) == ("hidden", "mse")
        )
    return Term(
        loss=term.loss,
        split=term.split,
        weight=term.weight,
        distance=term.distance,
        temperature=term.temperature or 1.0,
        layer=layer,
        tokens=term.tokens,
        student_layer=student_layer,
        pieces=pieces,
        heads=term.heads,
        relation_heads=term.relation_heads,
        normalise=normalise,
    )


def _sub_steps(stage: StageConfig, terms: tuple[Term, ...], config: Config) -> list[Stage]:
    """One sub-step for all groups, or one for each group that is freed, from the top."""
    groups = _trainable_groups(stage, terms, config.student)
    training = config.training
    epochs = stage.epochs or training.epochs
    partial = stage.partial_epochs or training.partial_epochs or epochs
    if stage.layerwise:
        return _layer_steps(stage, terms, config)
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
    if all(term.loss in LAYERED for term in terms):
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


def _layer_steps(stage: StageConfig, terms: tuple[Term, ...], config: Config) -> list[Stage]:
    """One sub-step for each student layer, from below, on its own terms; the ones below frozen."""
    top = config.student.layers
    steps: list[Stage] = []
    for layer in range(1, top + 1):
        mine = {LAST if layer == top else layer, *([0] if layer == 1 else [])}
        its = tuple(term for term in terms if term.student_layer in mine)
        if not its:
            raise ConfigError(
                f"recipe stage '{stage.name}': layerwise, but no term is of student layer {layer}; "
                "use layers: all"
            )
        mapped = any(term.loss == "hidden" for term in its)
        free = [*(["projection"] if mapped else []), f"layer_{layer}"]
        free += ["embedding"] if layer == 1 else []
        alone = stage.model_copy(update={"layerwise": False, "trainable": free})
        (step,) = _sub_steps(alone, its, config)
        steps.append(replace(step, name=f"{stage.name} layer {layer}"))
    return steps
