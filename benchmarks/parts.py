"""Parts of the benchmark: each measures ours, a bare loop and peers in turns, and gives ratios.

A bare loop is the limit: the same model, dtype and threads on batches that lie in memory.
"""

import functools
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import peers
from benchmarks.codecs import measure_codecs
from benchmarks.harness import (
    Found,
    Settings,
    own_places,
    run_config,
    scratch,
    take_turns,
    timed,
)
from benchmarks.simulated import SleepingTeacher, share_of_ideal
from xdray.annotation import annotate
from xdray.batch_plan import BatchPlan
from xdray.checks import check_plan
from xdray.cluster import Cluster, map_shards
from xdray.corpus import read_shard
from xdray.distillation import (
    annotate_all,
    make_lesson,
    make_teacher,
    settled,
    train,
)
from xdray.learner import Wanted
from xdray.learning import Scorer, start_student, transfer_sources
from xdray.loader import Loader
from xdray.modeling_bilstm import BiLstmConfig, BiLstmForTokenClassification
from xdray.padding import pad, token_budget_batches
from xdray.recipes import plan_stages
from xdray.resources import ResourcePlan, Resources
from xdray.runs import open_run
from xdray.sessions import LocalSession
from xdray.splits import read_corpus
from xdray.stages import needed_layers
from xdray.starts import prepare_start
from xdray.teacher import DTYPES, best_dtype, load_teacher
from xdray.tokens import load_tokenizer, pad_id_of
from xdray.workers import keep_few_shapes

ROOT = Path(__file__).resolve().parents[1]
BARE_BATCHES = (768, 1024, 2048)
"""Tokens a batch of the bare teacher loop: it counts with the best of them."""


def _seconds_of(command: Sequence[str], folder: Path = ROOT) -> float:
    """Seconds of a command in a folder; its output is thrown away. Raises where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options: dict[str, Any] = {"capture_output": True, "text": True}
    return timed(
        lambda: subprocess.run(command, check=True, env=environment, cwd=folder, **options)
    )


def measure_start(settings: Settings) -> Found:
    """Seconds of `import xdray`, of a plan, and of a whole tiny run in a new process."""
    job = [sys.executable, str(ROOT / "jobs" / "distill.py")]

    def tiny() -> float:
        with scratch() as folder:
            sample = [sys.executable, "-m", "xdray", "sample", "tiny", "sample/tiny"]
            _seconds_of(sample, folder)
            return _seconds_of([*job, str(ROOT / settings.tiny_config)], folder)

    found = take_turns(
        {
            "import_s": lambda: _seconds_of([sys.executable, "-c", "import xdray"]),
            "plan_start_s": lambda: _seconds_of(
                [*job, settings.config, *settings.overrides, "--plan"]
            ),
            "tiny_run_s": tiny,
        },
        settings.repeats,
    )
    return Found(ratios=dict(found))


def measure_paper_shape(settings: Settings) -> Found:
    """An E 50 H 200 student of 88.5 k pieces beside a teacher of mBERT's shape, random weights."""
    from transformers import BertConfig, BertForTokenClassification

    from xdray.graphs import write_onnx
    from xdray.quantization import quantize
    from xdray.runtimes import OnnxModel

    labels = {number: str(number) for number in range(7)}
    teacher: Any = BertForTokenClassification(BertConfig(vocab_size=119_547, id2label=labels))
    shape = BiLstmConfig(
        vocab_size=88_500, embedding_size=50, hidden_size=200, id2label=labels, dropout=0.0
    )
    student: Any = BiLstmForTokenClassification(shape)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (teacher, student)]
    found = Found(ratios={"paper_shape_parameters": sizes[0] / sizes[1]})
    with scratch() as folder:
        runtimes: dict[str, Any] = {}
        for name, its in (("teacher", teacher.eval()), ("student", student.eval())):
            its.save_pretrained(folder / name)
            for kind in ("onnx", "int8"):
                graph = folder / name / f"{kind}.onnx"
                if kind == "onnx":
                    write_onnx(its, graph)
                else:
                    quantize(graph.with_name("onnx.onnx"), graph, "dynamic")
                runtimes[f"{name} {kind}"] = OnnxModel(folder / name, graph, settings.threads)
        models: dict[str, Any] = {
            "teacher float32": teacher,
            "teacher bfloat16": BertForTokenClassification(teacher.config).bfloat16().eval(),
            "student torch": student,
            "student bfloat16": BiLstmForTokenClassification(shape).bfloat16().eval(),
            **runtimes,
        }
        for name in [its for its, model in models.items() if not _runs(model)]:
            del models[name]
            found.notes.append(f"{name}: this processor does not run it")
        for length in (32, 128):
            for batch in (1, 32, 128):
                turns = 1 if batch * length > 4096 else settings.repeats  # half a minute a call
                rates = _rates(models, batch, length, turns)
                found.figures[f"sentences/s, batch {batch}, length {length}"] = {
                    name: float(f"{rate:.4g}") for name, rate in rates.items()
                }
                if length == 32 and batch < 128:
                    best = max(rates["student torch"], rates["student onnx"])
                    key = f"paper_shape_float32_batch_{batch}"
                    found.ratios[key] = best / rates["teacher float32"]
                    key = f"paper_shape_int8_batch_{batch}"
                    found.ratios[key] = rates["student int8"] / rates["teacher float32"]
    found.notes.append(
        "paper shape: random weights; the teacher in float32 PyTorch, the student in the faster of "
        "PyTorch and ONNX float32, or in ONNX int8 with dynamic quantisation"
    )
    return found


def _runs(model: Any) -> bool:
    """Whether this processor has all products of a model in its dtype."""
    ids = torch.ones(1, 2, dtype=torch.int64)
    try:
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=ids)
    except RuntimeError:
        return False
    return True


def _rates(models: dict[str, Any], batch: int, length: int, repeats: int) -> dict[str, float]:
    """Sentences a second of each, in turns."""
    ids = torch.randint(5, 80_000, (batch, length))
    mask = torch.ones_like(ids)

    def rate(model: Any) -> Callable[[], float]:
        def measure() -> float:
            with torch.inference_mode():
                model(input_ids=ids, attention_mask=mask)
                calls, started = 0, time.perf_counter()
                while (seconds := time.perf_counter() - started) < 0.5:
                    model(input_ids=ids, attention_mask=mask)
                    calls += 1
            return calls * batch / seconds

        return measure

    silent: Callable[[str], None] = lambda text: None  # noqa: E731
    return take_turns({k: rate(its) for k, its in models.items()}, repeats, silent)


def measure_teacher(settings: Settings) -> Found:
    """The teacher's pass, start-up apart, beside a bare loop and transformers' pipeline."""
    model = str(run_config(settings, Path("none")).teacher.model)
    found, facts = Found(), []
    dtype = best_dtype("cpu")
    with scratch() as folder:
        config = run_config(settings, folder, f"data.transfer.sentences={settings.sentences}")
        with open_run(config, True) as run:
            corpus = read_corpus(run)
        sentences = [s for shard in corpus.transfer.shards for s in read_shard(shard)]
        contents = [sentence.content for sentence in sentences]
        texts = [str(content) for content in contents]
        layers = needed_layers(plan_stages(config, check_plan(config).num_layers))

        def ours() -> float:
            shutil.rmtree(folder / "targets", ignore_errors=True)
            scored = {split: [] for split in ("dev", "test")}
            shards = corpus.transfer.shards
            with open_run(config, True) as run, Cluster(config.cluster) as cluster:
                its = annotate(run, cluster, model, corpus.task, layers, shards, scored).facts
            facts.append(its)
            return its["sentences_per_second"]

        encoded = corpus.task.encode(load_tokenizer(model), contents)
        lengths = encoded.offsets[1:] - encoded.offsets[:-1]
        keep_few_shapes(training=True)
        teacher = load_teacher(model, corpus.task, DTYPES[dtype])
        batches = {
            budget: [
                pad(encoded.ids, encoded.offsets, rows, 0)[:2]
                for rows in token_budget_batches(lengths, budget)
            ]
            for budget in BARE_BATCHES
        }

        one_thread = functools.partial(torch.set_num_threads, 1)
        pool = ThreadPoolExecutor(settings.threads, initializer=one_thread)

        def forward(batch: Any) -> None:
            teacher.forward(*batch, layers)

        def bare(budget: int, side_by_side: bool, share: int = 1) -> float:
            some = batches[budget][::share]
            each = pool.map if side_by_side else map
            seconds = timed(lambda: list(each(forward, some)))
            return sum(len(ids) for ids, _ in some) / seconds

        ways = {
            f"{budget} tokens a batch{', batches side by side' * side_by_side}": (
                budget,
                side_by_side,
            )
            for budget in BARE_BATCHES
            for side_by_side in (False, True)
        }
        tried = take_turns(
            {name: functools.partial(bare, *way, share=4) for name, way in ways.items()}, 2
        )
        best = max(tried, key=lambda name: tried[name])
        some = texts[: settings.pipeline_sentences]
        by_length = sorted(some, key=len)
        rates = take_turns(
            {
                "teacher pass, sentences/s": ours,
                f"bare loop, {best}, sentences/s": functools.partial(bare, *ways[best]),
                f"pipeline, batch 64, {dtype}, sentences/s": lambda: peers.pipeline_rate(
                    model, some, 64, DTYPES[dtype]
                ),
                f"pipeline, batch 64, sorted, {dtype}, sentences/s": lambda: peers.pipeline_rate(
                    model, by_length, 64, DTYPES[dtype]
                ),
                "pipeline, batch 1, float32, sentences/s": lambda: peers.pipeline_rate(
                    model, some[::4], 1, torch.float32
                ),
                f"sentence-transformers' encode, batch 64, {dtype}, sentences/s": lambda: (
                    peers.vectors_rate(model, some, DTYPES[dtype])
                ),
            },
            settings.repeats,
        )
        pool.shutdown()
    pass_rate, bare_rate, same, in_order, default, _ = rates.values()
    found.figures |= rates
    start = min(its["seconds"] - its["rows"] / its["sentences_per_second"] for its in facts)
    tokens = facts[-1]["tokens"] / facts[-1]["rows"]
    found.figures |= {
        "teacher pass, real tokens/s": pass_rate * tokens,
        "teacher pass, padding share": facts[-1]["padding"],
        "teacher pass, start-up of Ray and actor, s": start,
        "rows from which the pass with its start beats the pipeline, batch 64": start
        / (1 / same - 1 / pass_rate)
        if pass_rate > same
        else None,
    }
    found.ratios = {
        "teacher_over_bare_loop": pass_rate / bare_rate,
        "teacher_over_pipeline_same_dtype": pass_rate / max(same, in_order),
        "teacher_over_pipeline_default": pass_rate / default,
    }
    found.notes.append(
        f"teacher pass: {len(contents)} sentences, logits and layers {list(layers)} stored as "
        f"{config.targets.codec}; its rate is from the second shard on. Bare loop: {dtype}, "
        "tokenised before, sorted by length over all sentences, nothing kept, the fastest of "
        f"{', '.join(f'{name}: {rate:.0f}/s' for name, rate in tried.items())} (a quarter of the "
        "batches). Pipelines end in entities, the same-dtype ratio is to the faster of both orders"
    )
    return found


@contextmanager
def _prepared(settings: Settings, sentences: int, *changes: str) -> Iterator[dict[str, Any]]:
    """A run with its teacher's pass done: all that training takes."""
    with scratch() as folder:
        config = run_config(settings, folder, f"data.transfer.sentences={sentences}", *changes)
        with open_run(config, True) as run, Cluster(config.cluster) as cluster:
            header = check_plan(config)
            stages = plan_stages(config, header.num_layers)
            corpus = read_corpus(run)
            teacher = make_teacher(run, cluster, corpus)
            targets = annotate_all(run, cluster, corpus, teacher, needed_layers(stages))
            words = corpus.splits["train"].sentences
            start = prepare_start(
                config, run.path("start"), teacher, corpus.task, targets.transfer, words
            )
            yield {
                "run": run,
                "cluster": cluster,
                "corpus": corpus,
                "teacher": teacher,
                "targets": targets,
                "stages": stages,
                "header": header,
                "start": start,
                "lesson": make_lesson(run, corpus, targets, header, start, stages, ""),
            }


def _epoch_seconds(rows: list[dict[str, Any]], stage: str) -> float:
    """Seconds of the later epochs of a stage, scoring and saving among them."""
    history = next(row["history"] for row in rows if row["name"] == stage)
    return (history[-1]["seconds"] - history[0]["seconds"]) / (len(history) - 1)


ONE_STAGE = (
    "recipe={name: epochs over the transfer text, layer: %d, stages: [{name: both, epochs: 3, "
    "terms: [{loss: hidden, split: transfer}, {loss: logits, split: transfer, distance: kl}]}]}"
)


def _bare_epoch(prepared: dict[str, Any]) -> float:
    """Seconds of an epoch in a plain loop on the same batches, all in memory."""
    lesson, config = prepared["lesson"], settled(prepared["run"])
    stage = lesson.stages[0]
    tokenizer = load_tokenizer(lesson.start)
    student = start_student(lesson, tokenizer).train()
    layer = stage.terms[0].layer
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3, fused=True)
    wanted = Wanted((-1,), ())
    bfloat16 = config.training.autocast == "bfloat16"
    batches = prepared["batches"]

    def epoch() -> None:
        """The second of two is timed: moments and kernels are made in the first."""
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                seen = student.observe(batch.input_ids, batch.attention_mask, None, wanted)
                hidden = seen.hidden[-1].flatten(0, 1)[batch.kept].float()
                logits = seen.logits.flatten(0, 1)[batch.kept].float()
                loss = nn.functional.mse_loss(hidden, batch.hidden[layer])
                loss = loss + nn.functional.kl_div(
                    logits.log_softmax(-1), batch.logits.softmax(-1), reduction="batchmean"
                )
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    epoch()
    return timed(epoch)


def _batches(prepared: dict[str, Any], epoch: int) -> list[Any]:
    """An epoch's batches as training reads them."""
    import numpy as np

    lesson = prepared["lesson"]
    training = lesson.config.training
    plan = BatchPlan(
        transfer_sources(lesson, 1)[0],
        lesson.stages[0].batch_tokens,
        training.window_tokens,
        seed=0,
        held_out=training.held_out,
    )
    ids = np.load(Path(lesson.start) / "student_ids.npy")
    pad_id = pad_id_of(load_tokenizer(lesson.start))
    return list(Loader(plan, lesson.stages[0].layers, pad_id, ids).batches(epoch))


def _peer_student(prepared: dict[str, Any]) -> Any:
    """The same student as a transformers model, on the teacher's whole vocabulary's ids."""
    lesson = prepared["lesson"]
    return start_student(lesson, load_tokenizer(lesson.start)).model


def _peer_ids(prepared: dict[str, Any]) -> list[list[int]]:
    """Token ids of the transfer text, the teacher's: the vocabulary is not pruned for peers."""
    corpus = prepared["corpus"]
    contents = [s.content for shard in corpus.transfer.shards for s in read_shard(shard)]
    encoded = corpus.task.encode(load_tokenizer(prepared["teacher"]), contents)
    bounds = zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)
    return [encoded.ids[first:last].tolist() for first, last in bounds]


def measure_student(settings: Settings) -> Found:
    """A student's epoch beside a bare loop, and beside peers that ask the teacher each time."""
    recipe = run_config(settings, Path("none")).recipe
    layer = recipe.layer or 4
    staged = [its for its in recipe.stages or () if any(t.split == "transfer" for t in its.terms)]
    passes = sum(its.epochs or 1 for its in staged) or 1  # epochs that one teacher pass serves
    changes = [ONE_STAGE % layer, "tokens.vocabulary=full", "training.workers=0"]
    found = Found()
    with _prepared(settings, settings.epoch_sentences, *changes) as prepared:
        run, lesson = prepared["run"], prepared["lesson"]
        prepared["batches"] = _batches(prepared, 1)
        ids, model = _peer_ids(prepared), str(prepared["teacher"])
        tokenizer = load_tokenizer(model)
        dtype = prepared["targets"].facts["dtype"]
        teacher = load_teacher(model, prepared["corpus"].task, DTYPES[dtype]).model
        bfloat16 = settled(run).training.autocast == "bfloat16"

        def ours() -> float:
            shutil.rmtree(lesson.folder, ignore_errors=True)
            rows = train(run, prepared["cluster"], lesson)
            return _epoch_seconds(rows, "both")

        def peer(train_with: Callable[..., float], **options: Any) -> float:
            """Seconds of the second of two epochs."""
            ends: list[float] = []

            def ended() -> bool:
                ends.append(time.perf_counter())
                return False

            student = _peer_student(prepared)
            train_with(student, teacher, layer, tokenizer, ids, 1e-3, 2, bfloat16, ended, **options)
            return ends[1] - ends[0]

        cached: list[float] = []

        seconds = take_turns(
            {
                "epoch, s": ours,
                "bare epoch, s": lambda: _bare_epoch(prepared),
                "Trainer's epoch, s": lambda: peer(peers.train_with_trainer),
                "TextBrewer's epoch, s": lambda: peer(peers.train_with_textbrewer),
                "TextBrewer's epoch, the teacher cached in memory, s": lambda: peer(
                    peers.train_with_textbrewer, cached=cached.append
                ),
            },
            settings.repeats,
        )
        facts = prepared["targets"].facts
    ours_s, bare_s, trainer_s, brewer_s, cached_s = seconds.values()
    once = facts["rows"] / (facts["sentences_per_second"] or facts["rows"] / facts["seconds"])
    told = ours_s + once / passes
    found.figures |= seconds | {
        "teacher pass for these sentences, s": once,
        "epoch with its share of the pass, s": told,
        "TextBrewer's cache for these sentences, s": statistics.median(cached),
        "sentences/s of an epoch": facts["rows"] / ours_s,
        "K epochs, ours over re-forwarding (K = 1, 2, 4, 8, 16)": [
            round(trainer_s * k / (once + ours_s * k), 2) for k in (1, 2, 4, 8, 16)
        ],
    }
    found.ratios = {
        "student_epoch_over_bare_loop": bare_s / ours_s,
        "student_epoch_over_trainer": trainer_s / told,
        "student_epoch_over_textbrewer": brewer_s / told,
        "student_epoch_over_textbrewer_cached": (cached_s + statistics.median(cached) / passes)
        / told,
    }
    found.notes.append(
        f"student: {facts['rows']} sentences, hidden and logits terms together; ours and the bare "
        f"loop on the same batches, peers in batches of {peers.BATCH} of like length, the teacher "
        f"in {dtype} at each step, the student under the same autocast; the second epoch is "
        f"timed. Ours bears 1 of {passes} of the teacher's pass, so does TextBrewer with its cache "
        "(hidden states and logits of all batches in memory, padded)"
    )
    return found


def measure_workers(settings: Settings) -> Found:
    """Two workers of one thread beside one of two."""
    layer = run_config(settings, Path("none")).recipe.layer or 4
    stage = ONE_STAGE % layer
    found = Found()
    turns: dict[str, Any] = {}
    with _prepared(settings, settings.epoch_sentences, stage, "training.workers=1") as one:

        def train_on(workers: int, threads: int) -> Callable[[], float]:
            def measure() -> float:
                run = one["run"]
                config = run.config.model_copy(
                    update={
                        "training": run.config.training.model_copy(update={"workers": workers}),
                        "cluster": run.config.cluster.model_copy(update={"threads": threads}),
                    }
                )
                run.config, kept = config, run.config
                shutil.rmtree(one["lesson"].folder, ignore_errors=True)
                lesson = make_lesson(
                    run,
                    one["corpus"],
                    one["targets"],
                    one["header"],
                    one["start"],
                    one["stages"],
                    "",
                )
                try:
                    return _epoch_seconds(train(run, one["cluster"], lesson), "both")
                finally:
                    run.config = kept

            return measure

        turns = {
            "one worker, two threads, s": train_on(1, settings.threads),
            "two workers, one thread each, s": train_on(2, max(1, settings.threads // 2)),
        }
        seconds = take_turns(turns, settings.repeats)
    first, second = seconds.values()
    found.figures |= seconds
    found.ratios["student_two_workers_over_one"] = first / second
    return found


def measure_run(settings: Settings) -> Found:
    """Wall time to a dev score, from unlabelled text alone: all of ours, peers' training alone."""
    layer, found = run_config(settings, Path("none")).recipe.layer or 4, Found()
    changes = (
        f"data.transfer.sentences={settings.run_sentences}",
        "tokens.vocabulary=full",
        f"training.learning_rate={RUN_RATE}",
    )
    times: dict[str, list[float]] = {}
    with _prepared(settings, settings.run_sentences, *changes[1:], ONE_STAGE % layer) as prepared:
        for _ in range(settings.repeats):
            gc.collect()
            seconds, reached = _our_run(settings, [*changes, TWO_STAGES % layer])
            target = min(settings.dev_score, reached)
            print(f"  ours: dev {reached:.4f} after {seconds:.0f} s", flush=True)
            times.setdefault("xdray", []).append(seconds)
            for name in ("trainer", "textbrewer"):
                its, epochs = _peer_run(prepared, name, layer, settings.peer_epochs, target)
                print(f"  {name}: {its:.0f} s, {epochs}", flush=True)
                times.setdefault(name, []).append(its)
                found.figures.setdefault(f"{name}, dev after each epoch", []).append(epochs)
            found.figures.setdefault("dev score of ours", []).append(round(reached, 4))
    medians = {name: statistics.median(its) for name, its in times.items()}
    found.figures |= {f"{name}, s to the score": its for name, its in medians.items()}
    for name in ("trainer", "textbrewer"):
        found.ratios[f"run_over_{name}"] = medians[name] / medians["xdray"]
    found.notes.append(
        f"run: {settings.run_sentences} sentences without labels to dev "
        f"{settings.dev_score} or ours where that is less; ours from the start of the process to "
        "the report, its representation and logit stages (1 and 3 epochs); of peers the training "
        f"alone, hidden and logit losses together, a cosine over {settings.peer_epochs} epochs, "
        "the one that is there first (none: all of the longest, a lower bound); their tokenising, "
        "scoring and loading of the teacher left out"
    )
    return found


RUN_RATE = 2e-3
TWO_STAGES = (
    "recipe={name: representation and logits, layer: %d, stages: [{name: representation, "
    "epochs: 1, terms: [{loss: hidden, split: transfer}]}, {name: logits, epochs: 3, "
    "terms: [{loss: logits, split: transfer, distance: kl}]}]}"
)


def _our_run(settings: Settings, changes: Sequence[str]) -> tuple[float, float]:
    """Seconds of `jobs/distill.py` in a process of its own, and the student's dev score."""
    with scratch() as folder:
        own = [*settings.overrides, *own_places(settings, folder), *changes]
        seconds = _seconds_of([sys.executable, "jobs/distill.py", settings.config, *own])
        report = json.loads((folder / "run" / "report.json").read_text(encoding="utf-8"))
    return seconds, report["student"]["dev"][report["evaluation"]["metric"]]


def _peer_run(
    prepared: dict[str, Any], name: str, layer: int, lengths: Sequence[int], target: float
) -> tuple[float, dict[int, list[float]]]:
    """Seconds until a peer's dev score is the target, the best of some schedules; the scores."""
    model, corpus = str(prepared["teacher"]), prepared["corpus"]
    tokenizer = load_tokenizer(model)
    dtype = prepared["targets"].facts["dtype"]
    teacher = load_teacher(model, corpus.task, DTYPES[dtype]).model
    bfloat16 = settled(prepared["run"]).training.autocast == "bfloat16"
    scorer = Scorer(corpus.splits["dev"].sentences, tokenizer, corpus.task, LocalSession(None))
    train_with = getattr(peers, f"train_with_{name}")
    found: dict[int, list[float]] = {}
    seconds: dict[int, float] = {}
    for epochs in lengths:
        student = start_student(prepared["lesson"], load_tokenizer(str(prepared["start"])))
        scores = found.setdefault(epochs, [])

        def score(student: Any = student, scores: list[float] = scores) -> bool:
            scores.append(round(float(scorer(student)[corpus.task.metric]), 4))
            return scores[-1] >= target

        seconds[epochs] = train_with(
            student.model,
            teacher,
            layer,
            tokenizer,
            _peer_ids(prepared),
            RUN_RATE,
            epochs,
            bfloat16,
            score,
        )
        if scores[-1] >= target:
            break
    there = [seconds[epochs] for epochs in seconds if found[epochs][-1] >= target]
    return min(there, default=max(seconds.values())), found


def measure_replicas(settings: Settings) -> Found:
    """Scheduling alone: shards over 1 .. 64 simulated replicas on this machine."""
    found = Found()
    batches = 32  # of a shard: 4,096 sentences of 32 tokens in batches of 4,096 tokens
    for replicas in settings.replicas:
        shards = replicas * 16
        config = run_config(settings, Path("none"))
        cluster_config = config.cluster.model_copy(update={"num_cpus": replicas + 1})
        plan = ResourcePlan(
            replicas=replicas,
            cpus_per_replica=1,
            gpus_per_replica=0,
            threads_per_replica=1,
            workers=0,
            cpus_per_worker=1,
            gpus_per_worker=0,
            threads_per_worker=1,
            reader_cpus=1,
            available=Resources(replicas + 1, 0, "this machine"),
        )
        with Cluster(cluster_config) as cluster:
            receipts = list(
                map_shards(
                    cluster,
                    SleepingTeacher,
                    {"seconds": settings.batch_seconds},
                    [batches] * shards,
                    plan,
                )
            )
        assert len({its["replica"] for its in receipts}) == replicas
        share = share_of_ideal(receipts, settings.batch_seconds * batches)
        found.figures[f"{replicas} replicas, share of ideal"] = share
        print(f"  {replicas} replicas: {share:.3f} of ideal", flush=True)
        found.ratios[f"replicas_{replicas}_over_ideal"] = share
    found.notes.append(
        f"replicas: shards of {batches} batches of {settings.batch_seconds * 1000:.0f} ms, 16 a "
        "replica, counted from when each replica has done one until one of them may find none left"
    )
    return found


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
    return found


MEASURES: dict[str, Callable[[Settings], Found]] = {
    "start": measure_start,
    "paper_shape": measure_paper_shape,
    "teacher": measure_teacher,
    "student": measure_student,
    "workers": measure_workers,
    "run": measure_run,
    "replicas": measure_replicas,
    "codecs": measure_codecs,
    "memory": measure_memory,
}
