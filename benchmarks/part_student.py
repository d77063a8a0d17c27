"""A student's epoch beside a bare loop and peers, and on two workers beside one."""

import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import peers
from benchmarks.harness import (
    Found,
    Settings,
    epoch_seconds,
    pass_rate,
    run_config,
    take_turns,
    timed,
)
from benchmarks.prepared import Prepared, imitated_layer, prepared
from xdray.distillation import train
from xdray.learner import Wanted
from xdray.tokens import load_tokenizer

ONE_STAGE = (
    "recipe={name: epochs over the transfer text, layer: %d, stages: [{name: both, epochs: 3, "
    "terms: [{loss: hidden, split: transfer}, {loss: logits, split: transfer, distance: kl}]}]}"
)


def _bare_epoch(its: Prepared, batches: Sequence[Any], layer: int) -> float:
    """Seconds of an epoch in a plain loop on the same batches, all in memory."""
    student = its.student().train()
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3, fused=True)
    wanted = Wanted((-1,), ())
    bfloat16 = its.bfloat16

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


def measure_student(settings: Settings) -> Found:
    """A student's epoch beside a bare loop, and beside peers that ask the teacher each time."""
    recipe, layer = run_config(settings, Path("none")).recipe, imitated_layer(settings)
    staged = [its for its in recipe.stages or () if any(t.split == "transfer" for t in its.terms)]
    passes = sum(its.epochs or 1 for its in staged) or 1  # epochs that one teacher pass serves
    changes = [ONE_STAGE % layer, "tokens.vocabulary=full", "training.workers=0"]
    found = Found()
    with prepared(settings, settings.epoch_sentences, *changes) as its:
        batches, lesson = its.batches(1), its.lesson()
        ids, teacher = its.peer_ids(), its.peer_teacher()
        tokenizer = load_tokenizer(its.teacher)

        def ours() -> float:
            shutil.rmtree(lesson.folder, ignore_errors=True)
            return epoch_seconds(train(its.run, its.cluster, lesson)[0])

        def peer(train_with: Callable[..., float], **options: Any) -> float:
            """Seconds of the second of two epochs."""
            ends: list[float] = []

            def ended() -> bool:
                ends.append(time.perf_counter())
                return False

            student, bfloat16 = its.student().model, its.bfloat16
            train_with(student, teacher, layer, tokenizer, ids, 1e-3, 2, bfloat16, ended, **options)
            return ends[1] - ends[0]

        cached: list[float] = []

        turns = take_turns(
            {
                "epoch, s": ours,
                "bare epoch, s": lambda: _bare_epoch(its, batches, layer),
                "Trainer's epoch, s": lambda: peer(peers.train_with_trainer),
                "TextBrewer's epoch, s": lambda: peer(peers.train_with_textbrewer),
                "TextBrewer's epoch, the teacher cached in memory, s": lambda: peer(
                    peers.train_with_textbrewer, cached=cached.append
                ),
            },
            settings.repeats,
        )
        facts, training = its.targets.facts, its.run.config.training
    ours_s, bare_s, trainer_s, brewer_s, cached_s = found.take(turns).values()
    once = facts["rows"] / pass_rate(facts)
    told, cache_s = ours_s + once / passes, statistics.median(cached)
    started = ours_s + facts["seconds"] / passes
    found.figures |= {
        "teacher pass for these sentences, s": once,
        "epoch with its share of the pass, s": told,
        "the same, Ray's start counted": started,
        "over Trainer and TextBrewer, Ray's start counted": [
            round(peer_s / started, 2) for peer_s in (trainer_s, brewer_s)
        ],
        "TextBrewer's cache for these sentences, s": cache_s,
        "sentences/s of an epoch": facts["rows"] / ours_s,
        **{
            f"K epochs, ours over {name}'s re-forwarding (K = 1, 2, 4, 8, 16)": [
                round(peer_s * k / (once + ours_s * k), 2) for k in (1, 2, 4, 8, 16)
            ]
            for name, peer_s in (("Trainer", trainer_s), ("TextBrewer", brewer_s))
        },
    }
    found.ratios = {
        "student_epoch_over_bare_loop": bare_s / ours_s,
        "student_epoch_over_trainer": trainer_s / told,
        "student_epoch_over_textbrewer": brewer_s / told,
        "student_epoch_over_textbrewer_cached": (cached_s + cache_s / passes) / told,
    }
    found.notes.append(
        f"student: {facts['rows']} sentences of {facts['tokens'] / facts['rows']:.1f} tokens, "
        f"hidden and logits terms together; ours and the bare loop on the same batches of "
        f"{training.batch_tokens} tokens, peers in batches of {peers.BATCH} sentences of like "
        f"length, the teacher in {facts['dtype']} at each step, the student under the same "
        f"autocast; the second epoch is timed. Ours bears 1 of {passes} of the teacher's pass, so "
        "does TextBrewer with its cache (hidden states and logits of all batches in memory, "
        "padded); loading of models and tokenising left out of all. Ours learns from "
        f"{1 - training.held_out:.0%} of the sentences and scores the others in the time told"
    )
    return found


def measure_workers(settings: Settings) -> Found:
    """Two workers of one thread beside one of two."""
    found, stage = Found(), ONE_STAGE % imitated_layer(settings)
    with prepared(settings, settings.epoch_sentences, stage, "training.workers=1") as one:

        def train_on(workers: int, threads: int) -> Callable[[], float]:
            def measure() -> float:
                run, kept = one.run, one.run.config
                run.config = kept.model_copy(
                    update={
                        "training": kept.training.model_copy(update={"workers": workers}),
                        "cluster": kept.cluster.model_copy(update={"threads": threads}),
                    }
                )
                try:
                    lesson = one.lesson()
                    shutil.rmtree(lesson.folder, ignore_errors=True)
                    return epoch_seconds(train(run, one.cluster, lesson)[0])
                finally:
                    run.config = kept

            return measure

        turns = {
            "one worker, two threads, s": train_on(1, settings.threads),
            "two workers, one thread each, s": train_on(2, max(1, settings.threads // 2)),
        }
        first, second = found.take(take_turns(turns, settings.repeats)).values()
    found.ratios["student_two_workers_over_one"] = first / second
    return found
