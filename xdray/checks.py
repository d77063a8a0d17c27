"""What a run is refused for before anything starts: all that headers and names of files tell.

No torch, and ray only when RAY_ADDRESS names a cluster.
"""

from collections.abc import Sequence
from pathlib import Path

from xdray.cluster import plan_resources
from xdray.config import Config
from xdray.config_data import DataConfig, SourceConfig
from xdray.corpus import places_of_sources
from xdray.errors import ConfigError
from xdray.header import ModelHeader, check_length, read_header
from xdray.hidden import directions_of
from xdray.kinds import load_task
from xdray.labels import LabelSet, label_set_of
from xdray.places import Place
from xdray.readers import class_names
from xdray.reading import own_tokenizer
from xdray.recipes import plan_stages
from xdray.stages import Stage
from xdray.task import Task
from xdray.tokens import fingerprint, load_tokenizer
from xdray.weights import check_model
from xdray.workspace import check_kept


def check_plan(config: Config) -> ModelHeader:
    """Check what needs the teacher's header or the data's; returns the header.

    Raises ConfigError: a layer that the teacher lacks, an embedding wider than its own, sentences
    longer than it can read, labels that differ from the data's, files that are missing or are of
    two splits, more actors or workers than there is room for, results where Ray deletes them.
    """
    check_kept("run.folder", config.run.folder)
    if config.targets.delivery == "stored":
        check_kept("targets.store", config.targets.store)
    name = config.teacher.model or (config.teacher.finetune and config.teacher.finetune.encoder)
    header = read_header(str(name))
    _check_models(config)
    check_student(config, header)
    check_length(header, config.tokens.max_length)
    task = load_task(config)
    check_losses(config, task, header)
    check_aligned(config, header)
    check_tokenizer(config, header)
    _check_codec(config, header)
    _check_labels(config, task, header)
    _check_files(config.data)
    plan_resources(config, None)
    return header


def _check_models(config: Config) -> None:
    """Refuse folders whose weights are pickles, or that only their own code could load."""
    finetune = config.teacher.finetune
    if finetune is None:
        check_model(str(config.teacher.model))
    else:
        check_model(finetune.encoder, weights=not finetune.fresh)
    if config.student.start != "teacher":
        check_model(config.student.start)


def check_student(config: Config, header: ModelHeader) -> None:
    """Raise ConfigError for stages and embeddings that this teacher cannot serve."""
    stages = plan_stages(config, header.num_layers)
    _check_heads(config, header, stages)
    if config.student.kind == "encoder":
        _check_encoder(config, header)
    elif (
        config.student.embedding_init == "svd" and config.student.embedding > header.embedding_width
    ):
        raise ConfigError(
            f"student.embedding = {config.student.embedding} is wider than the teacher's own "
            f"embeddings ({header.embedding_width}), whose SVD it starts from; narrow it, or set "
            "student.embedding_init: random"
        )


def _check_heads(config: Config, header: ModelHeader, stages: Sequence[Stage]) -> None:
    """Compare the heads of attention and relation terms with both sides'."""
    student = config.student
    terms = [term for stage in stages for term in stage.terms]
    losses = {term.loss for term in terms} & {"attention", "relations"}
    if not losses:
        return
    if student.kind == "bilstm":
        raise ConfigError(f"recipe: {losses} losses need a student with attention, not a bilstm")
    width, heads = student.hidden, student.num_heads
    if student.kind == "encoder":
        its = header if student.start == "teacher" else read_header(student.start)
        width, heads = its.width, its.num_heads
    for term in terms:
        same = term.heads == "same" and heads != header.num_heads
        if term.loss == "attention" and same:
            raise ConfigError(
                f"recipe: an attention term compares {heads} heads of the student with "
                f"{header.num_heads} of the teacher; set heads: average in it, give the student as "
                "many (student.heads), or use a relations term"
            )
        asked = term.relation_heads or 1
        if term.loss == "relations" and (width % asked or header.width % asked):
            raise ConfigError(
                f"recipe: relation_heads = {term.relation_heads} does not divide both widths, "
                f"{width} of the student and {header.width} of the teacher"
            )


def _check_encoder(config: Config, header: ModelHeader) -> None:
    student = config.student
    there = header if student.start == "teacher" else read_header(student.start)
    asked = student.start_layers or [student.layers]
    if not all(1 <= layer <= there.num_layers for layer in asked):
        raise ConfigError(
            f"student.layers = {student.layers}, start_layers = {student.start_layers}: "
            f"{there.model} has layers 1 to {there.num_layers}"
        )
    if (student.intermediate or 0) > there.intermediate:
        raise ConfigError(
            f"student.intermediate = {student.intermediate}: {there.model} has "
            f"{there.intermediate} feed-forward units a layer"
        )


def _check_files(data: DataConfig) -> None:
    """Refuse text that is missing, and text that two labelled splits read."""
    owners: dict[tuple[str, str | None, str | None], list[tuple[str, Place]]] = {}
    for split in ("train", "dev", "test"):
        for _, place in places_of_sources(getattr(data, split), f"data.{split}"):
            path = place.path if "://" in place.path else str(Path(place.path).resolve())
            known = owners.setdefault((path, place.subset, place.split), [])
            for owner, other in known:
                if owner != split and _overlap(place, other):
                    raise ConfigError(
                        f"data.{owner} and data.{split} both read {place}; scores would be of text "
                        "that was learnt from or chosen by"
                    )
            known.append((split, place))
    places_of_sources(data.transfer.sources, "data.transfer")


def _overlap(place: Place, other: Place) -> bool:
    """Whether two sources read some of the same rows of a file."""
    (first, stop), (start, end) = (its.rows or (0, None) for its in (place, other))
    return (end is None or first < end) and (stop is None or start < stop)


def check_losses(config: Config, task: Task, header: ModelHeader) -> None:
    """Raise ConfigError for terms that a task without classes has not."""
    if task.has_classes:
        return
    terms = [term for stage in plan_stages(config, header.num_layers) for term in stage.terms]
    for term in terms:
        if term.loss == "hard_labels" or (term.loss, term.distance) == ("logits", "kl"):
            raise ConfigError(
                f"recipe: a {term.loss} term by {term.distance} needs classes, task.kind is "
                f"'{task.kind}'; use logits with distance: mse"
            )
    if config.evaluation.hard_labels:
        raise ConfigError(f"evaluation.hard_labels needs classes, task.kind is '{task.kind}'")


def _check_codec(config: Config, header: ModelHeader) -> None:
    directions = directions_of(config.targets.codec)
    if directions is not None and directions >= header.width:
        raise ConfigError(
            f"targets.codec: {config.targets.codec}: the teacher's layers have {header.width} "
            "directions; name fewer, or take int8"
        )


def check_aligned(config: Config, header: ModelHeader) -> None:
    """Raise ConfigError for embeddings that have no basis to come into."""
    student = config.student
    if student.embedding_init != "aligned":
        return
    if student.kind != "encoder" or student.start == "teacher":
        raise ConfigError(
            "student.embedding_init: aligned brings the teacher's embeddings into the basis of "
            "another encoder's; it needs student.kind: encoder and student.start, an encoder with "
            "the teacher's tokens"
        )
    if own_tokenizer(config, header.model) is not None:
        raise ConfigError(
            "student.embedding_init: aligned needs the teacher's tokens, and student.start: "
            f"{student.start} has others"
        )


def check_tokenizer(config: Config, header: ModelHeader) -> None:
    """Raise ConfigError for a tokenizer of its own that the student cannot have."""
    student, start = config.student, config.student.start
    if config.tokens.tokenizer is None and (student.kind != "encoder" or start == "teacher"):
        return
    own = own_tokenizer(config, header.model)
    if own is None:
        return
    if student.kind == "encoder":
        its = header.model if start == "teacher" else start
        if fingerprint(load_tokenizer(its)) != fingerprint(load_tokenizer(own)):
            raise ConfigError(
                f"tokens.tokenizer: {own} cuts text into other tokens than student.start: {its}, "
                "whose embeddings the student has; leave tokens.tokenizer out"
            )
    elif student.embedding_init == "svd":
        raise ConfigError(
            "student.embedding_init: svd starts from the teacher's embeddings, whose tokens are "
            f"not those of {own}; set student.embedding_init: random"
        )
    terms = [term for stage in plan_stages(config, header.num_layers) for term in stage.terms]
    maps = sorted({term.loss for term in terms} & {"attention", "relations"})
    if maps:
        raise ConfigError(
            f"recipe: {maps[0]} compares tokens with each other one by one, and the student has "
            f"other tokens ({own}) than the teacher; use hidden and logits"
        )


def _check_labels(config: Config, task: Task, header: ModelHeader) -> None:
    """Compare the label sets that are known without reading text."""
    if not task.named_labels or config.teacher.model is None:
        return
    theirs = config.teacher.labels or header.tags
    if set(theirs) == set(header.tags) and tuple(theirs) != header.tags:
        raise ConfigError(
            f"teacher.labels: {list(theirs)}, but {config.teacher.model} says of itself that the "
            f"order is {list(header.tags)}; leave teacher.labels out"
        )
    known = list(task.labels.names) or label_names(config.data.train, task)
    if not known or not theirs:
        return
    labels = LabelSet(tuple(known))
    if task.gold == "tags" and config.data.scheme != "IOB2" and not task.labels:
        labels = label_set_of(set(known))  # ClassLabel names in the files' scheme, read into IOB2
    labels.mapping_from(theirs, f"teacher.model: {config.teacher.model}")


def label_names(sources: Sequence[SourceConfig], task: Task) -> list[str] | None:
    """Return the ClassLabel names of labelled sources, None where they carry none."""
    places = (place for _, place in places_of_sources(sources, "data.train"))
    found = (class_names(place, task.gold) for place in places)
    return next((names for names in found if names), None)
