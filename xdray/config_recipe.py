"""The config's sections on recipes: losses, stages, and the plans that the papers name.

`config` joins them with the others; P1 is XtremeDistil (ACL 2020).
"""

import difflib
from typing import Annotated, Any, Literal, cast

from pydantic import Field, model_validator

from xdray.config_data import Section

RECIPES = (
    "labels",
    "joint_logits",
    "joint",
    "staged_joint",
    "staged_joint_unfreezing",
    "staged",
    "staged_unfreezing",
    "universal",
)


LAYERED = ("hidden", "attention", "relations")
MEAN_SQUARES = ("hidden", "attention", "logits")


class TermConfig(Section):
    """One loss on one split, with its weight."""

    loss: Literal["hidden", "attention", "relations", "logits", "labels", "hard_labels"]
    """hidden: a teacher layer (P1 L_RL); attention: the maps of its heads (P2); relations: of
    queries, of keys and of values among themselves (MiniLMv2), both in tagging among the tokens of
    words, special ones left out on both sides; logits: the teacher's scores
    (P1 L_LL); labels: gold (P1 L_CE); hard_labels: the teacher's best answer."""
    split: Literal["transfer", "train"]
    """Which sentences it is computed on."""
    weight: float = Field(default=1.0, gt=0)
    """In the sum of the stage's terms."""
    distance: Literal["mse", "kl"] = "mse"
    """hidden: mse, or kl over a softmax of both sides; logits: mse, or kl with temperature."""
    temperature: float | None = Field(default=None, gt=0)
    """Of a kl logit loss, times temperature squared; null: 1."""
    layer: int | None = None
    """Teacher layer that the student's last imitates (0: embedding output); null: recipe.layer, of
    attention and relations the last."""
    layers: Literal["all"] | Annotated[dict[int, int], Field(min_length=1)] | None = None
    """In place of `layer`: student layer to teacher layer, a term each. all: every layer of the
    student, and for hidden its embedding output, to as many of the teacher's last (P2)."""
    heads: Literal["same", "average"] = "same"
    """attention: both sides have as many heads; or maps are averaged over them."""
    relation_heads: int | None = Field(default=None, gt=0)
    """relations: heads that both sides' vectors are cut into; null: as many as divide both widths,
    12 at most."""
    normalise: bool | None = None
    """Divide by the variance of what is imitated, so that weights compare; null: with `layers`, and
    for attention."""
    tokens: Literal["all", "first", "mean"] = "all"
    """Which tokens a hidden or logit term compares. all: in tagging all but special ones (P1), else
    all. first: of each word, which alone decide its tag; in other tasks of each sentence, [CLS]
    (P2). mean: their mean over a sentence, for hidden terms."""

    @model_validator(mode="after")
    def _fits(self) -> "TermConfig":
        if self.temperature is not None and (self.loss != "logits" or self.distance != "kl"):
            raise ValueError(
                f"temperature = {self.temperature} goes with a kl logit loss, this term is "
                f"{self.loss} with {self.distance}; set distance: kl or drop temperature"
            )
        if (self.loss == "labels") != (self.split == "train"):
            expected = "train" if self.loss == "labels" else "transfer"
            raise ValueError(f"a {self.loss} term reads split '{expected}', not '{self.split}'")
        if self.tokens != "all" and self.loss == "labels":
            raise ValueError(f"tokens: {self.tokens} goes with a hidden or logit term, not labels")
        if self.tokens == "mean" and self.loss != "hidden":
            raise ValueError(f"tokens: mean goes with a hidden term, this one is {self.loss}")
        return self

    @model_validator(mode="after")
    def _fits_layers(self) -> "TermConfig":
        for name in ("layer", "layers"):
            if getattr(self, name) is not None and self.loss not in LAYERED:
                raise ValueError(
                    f"{name} = {getattr(self, name)} goes with {', '.join(LAYERED)}, this term is "
                    f"{self.loss}"
                )
        if self.layer is not None and self.layers is not None:
            raise ValueError("name `layer` or `layers`, one of them")
        if self.normalise and (self.distance == "kl" or self.loss not in MEAN_SQUARES):
            raise ValueError(f"normalise goes with mse, this term is {self.loss} {self.distance}")
        return self


class StageSettings(Section):
    """What a stage may set for itself; null: the value of `training`."""

    epochs: int | None = Field(default=None, gt=0)
    """At most so many passes over the split; with unfreezing, of the last sub-step."""
    partial_epochs: int | None = Field(default=None, gt=0)
    """The same for each sub-step before the last, in which lower layers are still frozen; null: as
    `epochs`."""
    patience: int | None = Field(default=None, gt=0)
    """Epochs without a better score before a sub-step ends."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak, after warm-up."""
    schedule: Literal["cosine", "constant"] | None = None
    """Of the learning rate."""
    batch_tokens: int | None = Field(default=None, gt=0)
    """Tokens a step over all workers, padding included."""


class StageConfig(StageSettings):
    """One stage of a recipe written out."""

    name: str = Field(pattern=r"^[\w .,:+()-]{1,60}$")
    """Of the stage, its folder and its row in the report: letters, digits, spaces, `._,:+()-`."""
    terms: list[TermConfig] = Field(min_length=1)
    """What is minimised: the weighted sum of the terms' means."""
    unfreeze: bool = False
    """Gradual unfreezing: a sub-step for each group of layers, from the top; else all train."""
    layerwise: bool = False
    """A sub-step for each layer of a transformer, from below, on the terms of that layer, with the
    layers below frozen (P2's progressive transfer); needs terms with `layers`."""
    trainable: list[str] | None = None
    """Names of the groups of layers that train (head, projection, encoder, embedding); null: all
    that the terms reach."""
    new_head: bool = False
    """Start from a fresh head (P1 S3; the reference's later code keeps S2's)."""

    @model_validator(mode="after")
    def _by_layers(self) -> "StageConfig":
        if self.layerwise and (self.unfreeze or any(its.layers is None for its in self.terms)):
            raise ValueError("layerwise: true needs `layers` in each term, and no unfreeze")
        return self

    @model_validator(mode="after")
    def _something_frozen(self) -> "StageConfig":
        if self.unfreeze and self.trainable is not None and len(self.trainable) < 2:
            raise ValueError(
                f"unfreeze: true, but nothing is frozen: trainable is {self.trainable}; "
                "name two groups or more, or leave `trainable` out"
            )
        if self.unfreeze and all(term.loss in LAYERED for term in self.terms):
            raise ValueError(
                "unfreeze: true needs a term above the head (logits, labels): with hidden terms "
                "alone nothing is frozen (P1 table 4 trains S1 end to end)"
            )
        return self


class RecipeConfig(Section):
    """The stages, by name or written out."""

    name: str = "staged_unfreezing"
    """labels (P1 D0-S), joint_logits (D1), joint (D2), staged_joint (D3.1), staged_joint_unfreezing
    (D3.2), staged (D4.1), staged_unfreezing (D4.2), universal (P2: all layers first, with the
    relations of MiniLMv2 in place of attention maps); with `stages`, any name."""
    layer: int | None = None
    """Teacher layer that hidden terms imitate; null: the middle one (P1 table 8: nearly flat)."""
    distance: Literal["mse", "kl"] = "mse"
    """Of the logit terms of a named recipe."""
    temperature: float | None = Field(default=None, gt=0)
    """Of the kl logit terms of a named recipe."""
    new_head: bool = False
    """Whether S3 of a named recipe starts from a fresh head (P1)."""
    overrides: dict[str, StageSettings] = Field(default={})
    """Settings of single stages by their name (representation, logits, labels, joint), e.g.
    `representation: {epochs: 4}`."""
    stages: list[StageConfig] | None = None
    """The stages written out; null: those of `name`."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, list):
            return {"name": "custom", "stages": cast("Any", value)}
        return value

    @model_validator(mode="after")
    def _known(self) -> "RecipeConfig":
        if self.stages is None and self.name not in RECIPES:
            near = difflib.get_close_matches(self.name, RECIPES, 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"no recipe '{self.name}', there are {', '.join(RECIPES)}{hint}")
        if self.temperature is not None and self.distance == "mse":
            raise ValueError(
                f"recipe.temperature = {self.temperature} goes with recipe.distance: kl; "
                "an mse loss on logits has no temperature"
            )
        if self.stages is not None:
            names = [stage.name for stage in self.stages]
            if not names or len(set(names)) != len(names):
                raise ValueError(f"stages {names}: expected one or more, each name once")
        return self
