"""The config: frozen pydantic sections, every field with its meaning, unit and default.

`configfile.load_config(path, overrides)` is the one way in. Paths are taken from where the command
was typed, or from --workspace. Rules that need the teacher's or the data's header are in
`checks.check_plan`. P1 is XtremeDistil (ACL 2020), P2 XtremeDistilTransformers (2021).
"""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from xdray.config_cluster import ClusterConfig, Count, check_count
from xdray.config_data import DataConfig, Section, TokensConfig
from xdray.config_export import ExportConfig
from xdray.config_recipe import RecipeConfig
from xdray.config_search import SearchConfig
from xdray.hidden import CODEC_NAMES


class RunConfig(Section):
    """Where a run lives, and its seed."""

    folder: str
    """The run folder itself: everything that the run makes, the targets store apart."""
    seed: int = Field(default=0, ge=0)
    """Of initialisation, dropout, batch order and bootstrap."""
    start_from: str | None = None
    """Another run folder: its finished stages serve here if they would come out the same."""


class TaskConfig(Section):
    """What is learnt."""

    kind: str = "tagging"
    """tagging: one tag a word (named entities). classification: one class, or several, of a text or
    a pair. regression: a number. answering: a span of a context (SQuAD). encoding: no head, hidden
    states only. Each is a file of xdray/tasks."""
    labels: list[str] | None = None
    """Tags (IOB2) or classes in the order of their ids. null: read from the data (ClassLabel
    features; for tags, the sorted types of train)."""
    multi_label: bool = False
    """classification: a text has any number of the classes."""
    window: int | None = Field(default=None, gt=0)
    """answering: words of a context that are read at once; null: what fits tokens.max_length."""
    overlap: int | None = Field(default=None, ge=0)
    """answering: words that two windows share; null: half of them."""
    max_answer: int = Field(default=30, gt=0)
    """answering: tokens of an answer at most."""
    null_answers: bool = False
    """answering: some questions have no answer in their context (SQuAD 2.0)."""
    null_margin: float | None = None
    """answering: an answer is given where its score beats that of no answer by more than this;
    null: chosen on dev with null_answers, else one is always given."""

    @model_validator(mode="after")
    def _of_its_kind(self) -> "TaskConfig":
        for name, kind in (
            ("multi_label", "classification"),
            ("null_answers", "answering"),
            ("window", "answering"),
            ("overlap", "answering"),
            ("null_margin", "answering"),
        ):
            if getattr(self, name) and self.kind != kind:
                raise ValueError(f"`{name}` is of {kind}, task.kind is '{self.kind}'")
        if self.window is not None and self.overlap is not None and self.overlap >= self.window:
            raise ValueError(f"overlap = {self.overlap}, expected less than window = {self.window}")
        return self


class FinetuneConfig(Section):
    """How a teacher is fine-tuned on the labels (P1 section 2.5, step 0)."""

    encoder: str
    """The pre-trained encoder: a Hub name, a folder, or "package:NAME/FOLDER" (in a Python
    package)."""
    epochs: int = Field(default=3, gt=0)
    """At most so many; the best by dev is kept."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak, after warm-up."""
    batch_tokens: int = Field(default=512, gt=0)
    """Tokens a step, padding included."""
    freeze_embeddings: bool = True
    """Leave the token embeddings as they are: faster, and their SVD stays that of the encoder."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """While it is fine-tuned; null: what the encoder's own config says, in `evaluate_suite` 0.1."""
    fresh: bool = False
    """Start from random weights: `encoder` needs to hold a config.json and a tokenizer only."""

    @model_validator(mode="after")
    def _learns_embeddings(self) -> "FinetuneConfig":
        if self.fresh and self.freeze_embeddings:
            raise ValueError("fresh: true with freeze_embeddings: true would keep random ones")
        return self


class TeacherConfig(Section):
    """The big model."""

    model: str | None = None
    """A model fine-tuned for the task: a folder or a Hub name. null: fine-tune one as `finetune`
    says, in the run folder."""
    labels: list[str] | None = None
    """Names of its labels in the order of its ids, where its config.json has only LABEL_0 ..."""
    finetune: FinetuneConfig | None = None
    """How to make the teacher when `model` is null."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward pass. auto: bfloat16 where the processor or GPU multiplies it faster."""
    replicas: Count = "auto"
    """Teacher actors. auto: one a GPU, else as many as the CPUs allow (resources.py), and none for
    2,000 sentences or fewer on a machine that would have one: they are forwarded in the job's own
    process. [least, most]: the pool grows and shrinks with the nodes that are there."""
    gpus_per_replica: int = Field(default=1, gt=0)
    """GPUs of one node that an actor lays the teacher's layers over, where one does not hold it."""
    batch_tokens: int | Literal["auto"] = "auto"
    """Tokens a forward pass, padding too. auto: 768 on CPUs, 16,384 on GPUs; fewer at need."""

    @model_validator(mode="after")
    def _one_origin(self) -> "TeacherConfig":
        if (self.model is None) == (self.finetune is None):
            raise ValueError(
                "name either `model` (fine-tuned) or `finetune` (make one), one of them"
            )
        if self.labels is not None and self.model is None:
            raise ValueError(
                "`labels` names those of a `model` that has only LABEL_0 ...; one that is "
                "fine-tuned here has the task's, leave `labels` out"
            )
        check_count("replicas", self.replicas, 1)
        if self.batch_tokens != "auto" and self.batch_tokens < 1:
            raise ValueError(f"batch_tokens is {self.batch_tokens}, expected 'auto' or 1 and more")
        return self


class TargetsConfig(Section):
    """What the teacher said, on disk."""

    store: str = "targets"
    """Folder or URI of the store; shared by runs."""
    delivery: Literal["stored", "streamed"] = "stored"
    """stored: the teacher runs once, students read its targets from the store. streamed: nothing is
    kept; teacher actors feed the students while they learn, once more each epoch."""
    codec: str = "int8"
    """Of hidden states: float32, float16, int8 with one scale a token, or pca<k>, e.g. pca128: the
    k leading directions of each shard's states, in a stream each block's. Logits are float32."""
    shard_sentences: int = Field(default=4096, ge=16)
    """Sentences a shard at most, the unit of work, of commit and of loss; fewer where they are of
    more than about 32 tokens, since all that the teacher says of a shard is in memory at once."""

    @field_validator("codec")
    @classmethod
    def _known(cls, codec: str) -> str:
        if not re.fullmatch(CODEC_NAMES, codec):
            raise ValueError(f"'{codec}', expected float32, float16, int8 or pca<k>, e.g. pca128")
        return codec


class StudentConfig(Section):
    """The small model."""

    kind: Literal["bilstm", "transformer", "encoder"] = "bilstm"
    """bilstm: P1. transformer: ELECTRA's factorised encoder, loads without code of ours. encoder:
    some layers of a pre-trained one, `start`, with its width and heads."""
    embedding: int = Field(default=50, gt=0)
    """Width E of the token embeddings; drives size (P1 table 16)."""
    hidden: int = Field(default=200, gt=0)
    """bilstm: units H per direction; transformer: width. Drives latency (P1 table 16)."""
    layers: int = Field(default=1, gt=0)
    """LSTM or Transformer layers (P1: one LSTM layer)."""
    start: str = "teacher"
    """encoder: what its weights are of: the teacher, or another encoder with the teacher's tokens
    (a folder, a Hub name or "package:NAME/FOLDER")."""
    start_layers: list[int] | None = None
    """encoder: layers of `start`, from 1, that become the student's, in this order; null: `layers`
    of them, evenly spaced up to the last."""
    heads: int | None = Field(default=None, gt=0)
    """Attention heads (transformer); null: one for each 32 of `hidden`."""
    intermediate: int | None = Field(default=None, gt=0)
    """Width of the feed-forward part. transformer: null: 4 times `hidden`. encoder: so many units
    of those of `start` are kept, with the largest weights; null: all."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """null: 0.2 (P1 table 13: the best), of an encoder its own."""
    pooling: Literal["max", "mean", "last"] = "max"
    """bilstm, one answer a sentence: which states its head sees. max: of each unit over tokens
    (V1); last: where both directions have read all (V2)."""
    embedding_init: Literal["svd", "random", "aligned"] = "svd"
    """svd: of the teacher's embeddings (P1 table 7: +1.2 over random). An encoder keeps those of
    `start`; aligned: the teacher's, brought into their basis by least squares."""
    projection: Literal["gelu_head", "gelu", "linear"] = "gelu_head"
    """From the student's width to the teacher's. gelu: GELU after it (P1; under MSE its floor of
    -0.17 cuts off what the teacher has below). gelu_head: hidden losses see the linear map, GELU
    stands between it and the head. linear: neither. A Transformer's head does not see the
    projection: for it gelu_head is linear."""

    @property
    def num_heads(self) -> int:
        """Attention heads, the default worked out."""
        return self.heads or max(1, self.hidden // 32)

    @model_validator(mode="after")
    def _shape(self) -> "StudentConfig":
        for name, kind in (
            ("heads", "transformer"),
            ("start_layers", "encoder"),
        ):
            if getattr(self, name) is not None and self.kind != kind:
                raise ValueError(f"`{name}` is of kind {kind}, student.kind is '{self.kind}'")
        if self.intermediate is not None and self.kind == "bilstm":
            raise ValueError("`intermediate` is of a Transformer, student.kind is 'bilstm'")
        if self.start != "teacher" and self.kind != "encoder":
            raise ValueError(f"`start` is of kind encoder, student.kind is '{self.kind}'")
        if self.start_layers is not None and len(self.start_layers) != self.layers:
            raise ValueError(f"start_layers = {self.start_layers}, but layers = {self.layers}")
        if self.kind == "transformer" and self.hidden % self.num_heads:
            raise ValueError(
                f"student.heads = {self.num_heads} does not divide student.hidden = {self.hidden}; "
                f"{_divisors(self.hidden)} do"
            )
        return self


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, min(number, 32) + 1) if number % n == 0)


class TrainingConfig(Section):
    """How the student is trained; a stage may set epochs, patience, rate and batch for itself."""

    workers: Count = "auto"
    """Ray Train workers. 0: in this process. auto: 0 where there is no more than one accelerator,
    else one a GPU. In a search each trial has so many; auto: one process a trial. [least, most]:
    as many as there is room for, fewer when nodes die; steps and rates stay the same."""
    epochs: int = Field(default=10, gt=0)
    """At most so many passes of a stage over its split; with unfreezing, of its last sub-step."""
    partial_epochs: int | None = Field(default=None, gt=0)
    """The same for sub-steps in which lower layers are still frozen; null: as `epochs`."""
    patience: int = Field(default=3, gt=0)
    """Epochs without a better score before a sub-step ends (V1: 5)."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak (P1: 1e-3 at batch 512)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """cosine: down to `final_rate` of the peak over the sub-step's planned steps."""
    batch_tokens: int = Field(default=1024, gt=0)
    """Tokens a step over all workers, padding included."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of a sub-step's planned steps in which the rate rises from 0."""
    final_rate: float = Field(default=0.01, ge=0, le=1)
    """Rate at the end of a cosine, as a share of the peak."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled (AdamW); embeddings, biases and norms are left out."""
    clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient; null: none."""
    accumulation: int = Field(default=1, gt=0)
    """Batches whose gradients make one step."""
    autocast: Literal["auto", "none", "bfloat16"] = "auto"
    """bfloat16: matrix products of forward and backward pass in bfloat16, losses in float32. auto:
    where the processor or GPU multiplies it faster."""
    held_out: float = Field(default=0.02, gt=0, lt=0.5)
    """Share of the transfer sentences, by id hash, on which hidden and logit stages are scored;
    about 1,000 and 65,536 tokens at most."""
    transfer_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the transfer sentences that is learnt from, by id hash: a smaller one is part of a
    larger one. The teacher reads all of them."""
    train_share: float = Field(default=1.0, gt=0, le=1)
    """The same for the labelled sentences."""
    window_tokens: int = Field(default=2**19, gt=0)
    """Tokens of transfer sentences in memory at once, at most, but for one block: up to 1,024
    sentences of a shard. They are shuffled and batched."""
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    """Between resumable checkpoints."""
    max_failures: int = Field(default=3, ge=0)
    """Restarts of dead workers before the run ends."""


class EvaluationConfig(Section):
    """What is scored and reported."""

    metric: str | None = None
    """Decides on dev, and is the base of retention. null: the task's first (entity_f1, accuracy,
    spearman, f1)."""
    baseline: bool = True
    """Also train the same student without a teacher."""
    hard_labels: bool = False
    """Also train the same student on the teacher's best tags only."""
    bootstrap: int = Field(default=1000, ge=0)
    """Resamples of the test sentences for the 95 % intervals; 0: none."""
    latency: bool = True
    """Measure teacher and student at batch 1 and 32."""
    latency_length: int = Field(default=32, ge=3)
    """Tokens a sentence in that measurement (P1 table 16)."""


class Config(Section):
    """A run, whole."""

    run: RunConfig
    task: TaskConfig = TaskConfig()
    data: DataConfig
    tokens: TokensConfig = TokensConfig()
    teacher: TeacherConfig
    targets: TargetsConfig = TargetsConfig()
    student: StudentConfig = StudentConfig()
    recipe: RecipeConfig = RecipeConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    export: ExportConfig = ExportConfig()
    search: SearchConfig | None = None
    """Of `tune`; other jobs leave it aside."""

    @model_validator(mode="after")
    def _latency_fits(self) -> "Config":
        asked, longest = self.evaluation.latency_length, self.tokens.max_length
        if self.student.kind == "transformer" and self.evaluation.latency and asked > longest:
            raise ValueError(
                f"evaluation.latency_length = {asked}, but a transformer student reads at most "
                f"tokens.max_length = {longest}; lower it, or set evaluation.latency: false"
            )
        return self

    @model_validator(mode="after")
    def _labelled_text(self) -> "Config":
        for split in ("train", "dev", "test"):
            if bool(getattr(self.data, split)) == (self.task.kind == "encoding"):
                there = "is missing; it has no default"
                if self.task.kind == "encoding":
                    there = "is of labelled text, which task.kind: encoding does not read"
                raise ValueError(f"data.{split} {there}")
        if self.task.kind == "encoding" and (self.search or self.teacher.finetune):
            raise ValueError(
                "task.kind: encoding has no scores: no `search`, and a teacher by `model`"
            )
        return self

    @model_validator(mode="after")
    def _search_fits(self) -> "Config":
        if self.search is None:
            return self
        timed = "latency_ms" in self.search.objectives or self.search.max_latency_ms is not None
        if timed and not self.evaluation.latency:
            raise ValueError("search by latency needs evaluation.latency: true")
        if self.targets.delivery == "streamed":
            raise ValueError("search: trials share one store; set targets.delivery: stored")
        return self

    @model_validator(mode="after")
    def _workers(self) -> "Config":
        workers = self.training.workers
        check_count("training.workers", workers, 0)
        if isinstance(workers, list) and (self.search or self.targets.delivery == "streamed"):
            raise ValueError(
                f"training.workers is {workers}, expected a number: trials of a search and the "
                "readers of a stream (targets.delivery: streamed) stay as many as they began"
            )
        return self
