"""What people use instead, each as its own documentation recommends. Not part of the package.

Adapters: `DistilTrainer` is transformers' Trainer with a loss (its documentation overrides
`compute_loss`); TextBrewer 0.2.1 gets its two adaptors, its optimiser, batches as dicts, and the
student's forward pass under autocast as Trainer has it. It runs on today's torch without a change.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_cosine_schedule_with_warmup,
    pipeline,
)

BATCH = 64


def pipeline_rate(model: str, texts: Sequence[str], batch: int, dtype: Any) -> float:
    """Sentences a second of transformers' token-classification pipeline, in the order of texts."""
    loaded = AutoModelForTokenClassification.from_pretrained(model, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    tagger: Any = pipeline(
        "token-classification", model=loaded, tokenizer=tokenizer, device="cpu", batch_size=batch
    )
    tagger(list(texts[:batch]))
    started = time.perf_counter()
    tagger(list(texts))
    return len(texts) / (time.perf_counter() - started)


def vectors_rate(model: str, texts: Sequence[str], dtype: Any) -> float:
    """Sentences a second of sentence-transformers' encode on the same encoder, mean of tokens."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    encoder = Transformer(model, model_args={"dtype": dtype})
    width = encoder.get_word_embedding_dimension()
    encode = SentenceTransformer(modules=[encoder, Pooling(width)], device="cpu").encode
    encode(list(texts[:BATCH]), batch_size=BATCH)
    started = time.perf_counter()
    encode(list(texts), batch_size=BATCH)
    return len(texts) / (time.perf_counter() - started)


class Distillation(nn.Module):
    """Hidden states (MSE) and logits (KL) of a teacher, forwarded again at each step."""

    def __init__(self, teacher: Any, layer: int) -> None:
        """Take a teacher in eval mode, in its own dtype."""
        super().__init__()
        self.teacher, self.layer = teacher, layer

    @torch.no_grad()
    def tell(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden states and logits."""
        out = self.teacher(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            output_hidden_states=True,
        )
        return out.hidden_states[self.layer].float(), out.logits.float()


def losses(told: tuple[Tensor, Tensor], output: Any, mask: Tensor) -> Tensor:
    """MSE to hidden states and KL to logits, on real tokens."""
    real = mask.bool()
    hidden = nn.functional.mse_loss(output.hidden_states[-1][real].float(), told[0][real])
    found, wanted = (its[real].float() for its in (output.logits, told[1]))
    kl = nn.functional.kl_div(found.log_softmax(-1), wanted.softmax(-1), reduction="batchmean")
    return hidden + kl


class DistilTrainer(Trainer):
    """Trainer whose loss asks the teacher."""

    told: Distillation

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """See `losses`."""
        output = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            output_hidden_states=True,
        )
        return losses(self.told.tell(inputs), output, inputs["attention_mask"])


def train_with_trainer(
    student: Any,
    teacher: Any,
    layer: int,
    tokenizer: Any,
    ids: Sequence[list[int]],
    rate: float,
    epochs: int,
    bfloat16: bool,
    after_epoch: Callable[[], bool] | None = None,
) -> float:
    """Seconds of transformers' Trainer; sentences of like length in a batch, as it offers.

    after_epoch: called at the end of each epoch, its time left out; True ends the training.
    """
    clock = _Clock(after_epoch)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            num_train_epochs=epochs,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            train_sampling_strategy="group_by_length",
            bf16=bfloat16,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        rows: Any = [{"input_ids": row, "labels": [0] * len(row)} for row in ids]
        trainer = DistilTrainer(
            model=student,
            args=settings,
            train_dataset=rows,
            data_collator=DataCollatorForTokenClassification(tokenizer),
            callbacks=[clock],
        )
        trainer.told = Distillation(teacher, layer)
        trainer.train()
    return clock.seconds


class _Clock(TrainerCallback):
    """Counts the seconds of training, those of `after_epoch` left out."""

    def __init__(self, after_epoch: Callable[[], bool] | None) -> None:
        self.after_epoch, self.seconds, self.started = after_epoch, 0.0, 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.seconds += time.perf_counter() - self.started
        if self.after_epoch is not None:
            control.should_training_stop = self.after_epoch()
            kwargs["model"].train()
        self.started = time.perf_counter()
        return control


def autocast_forward(student: Any) -> None:
    """Each forward pass in bfloat16, its outputs float32, as accelerate does it for Trainer.

    One context around the whole training would keep the first step's bfloat16 weights for ever.
    """
    forward = student.forward

    def under_autocast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            output = forward(*args, **kwargs)
        output.logits = output.logits.float()
        output.hidden_states = tuple(its.float() for its in output.hidden_states)
        return output

    student.forward = under_autocast


@torch.no_grad()
def cached_batches(
    teacher: Any, layer: int, collate: Any, rows: Sequence[Any], chosen: Sequence[Any]
) -> list[dict[str, Any]]:
    """Batches with what the teacher says, as TextBrewer takes them for `teacher_cache`."""
    told = Distillation(teacher, layer)
    batches = []
    for numbers in chosen:
        batch = collate([rows[number] for number in numbers])
        hidden, logits = told.tell(batch)
        cache = {"logits": logits, "hidden": hidden}
        batches.append({"teacher": batch, "student": batch, "teacher_cache": cache})
    return batches


def train_with_textbrewer(
    student: Any,
    teacher: Any,
    layer: int,
    tokenizer: Any,
    ids: Sequence[list[int]],
    rate: float,
    epochs: int,
    bfloat16: bool,
    after_epoch: Callable[[], bool] | None = None,
    cached: Callable[[float], object] | None = None,
) -> float:
    """Seconds of TextBrewer's GeneralDistiller: KD on logits, MSE on one hidden layer.

    Batches of sentences of like length, a cosine schedule. Ends early where after_epoch returns
    True, whose time is left out. cached: the teacher is asked once, before, for all batches, which
    stay in memory; called with the seconds that this took, not counted in those returned.
    """
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    if bfloat16:
        autocast_forward(student)
    padded = DataCollatorForTokenClassification(tokenizer)
    rows = [{"input_ids": row, "labels": [0] * len(row)} for row in ids]

    def collate(some: Any) -> dict[str, Tensor]:  # a plain dict: others it takes for sequences
        return {name: its for name, its in padded(some).items() if name != "labels"}

    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    chosen = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]
    loader: Any = DataLoader(
        rows,  # type: ignore[arg-type]
        batch_sampler=_Reshuffled(chosen),  # type: ignore[arg-type]
        collate_fn=collate,
    )
    if cached is not None:
        begun = time.perf_counter()
        loader = cached_batches(teacher, layer, collate, rows, list(_Reshuffled(chosen)))
        cached(time.perf_counter() - begun)

    def adaptor(layer: int) -> Callable[[Any, Any], dict[str, Any]]:
        def adapt(batch: Any, output: Any) -> dict[str, Any]:
            mask, is_cache = batch["attention_mask"], type(output) is dict
            return {
                "logits": (output["logits"] if is_cache else output.logits).float(),
                "logits_mask": mask,
                "hidden": [(output["hidden"] if is_cache else output.hidden_states[layer]).float()],
                "inputs_mask": mask,
            }

        return adapt

    match = {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse", "weight": 1}
    seconds, started = 0.0, time.perf_counter()

    def epoch_ends(*args: Any) -> None:
        nonlocal seconds, started
        seconds += time.perf_counter() - started
        if after_epoch is not None and after_epoch():
            raise _Reached
        student.train()
        started = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        distiller: Any = GeneralDistiller(
            train_config=TrainingConfig(
                output_dir=folder, device="cpu", ckpt_frequency=1, log_dir=None
            ),
            distill_config=DistillationConfig(
                temperature=1,
                kd_loss_type="ce",
                hard_label_weight=0,
                intermediate_matches=[match],
            ),
            model_T=teacher,
            model_S=student,
            adaptor_T=adaptor(layer),
            adaptor_S=adaptor(-1),
        )
        distiller.save_and_callback = epoch_ends  # its own writes the weights first
        with contextlib.suppress(_Reached), distiller:
            distiller.train(
                torch.optim.AdamW(student.parameters(), lr=rate, fused=True),
                loader,
                num_epochs=epochs,
                scheduler_class=get_cosine_schedule_with_warmup,
                scheduler_args={
                    "num_warmup_steps": 0,
                    "num_training_steps": epochs * len(chosen),
                },
                output_hidden_states=True,
                return_dict=True,
            )
    return seconds


class _Reshuffled:
    """Batches in another order each epoch, the same in every run."""

    def __init__(self, batches: Sequence[list[int]]) -> None:
        self.batches, self.generator = batches, torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(len(self.batches), generator=self.generator)
        return (self.batches[number] for number in order.tolist())

    def __len__(self) -> int:
        return len(self.batches)


class _Reached(Exception):
    """The score is there."""
