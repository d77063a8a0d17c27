"""The teacher: any Hugging Face encoder with the task's head, loaded, fingerprinted, forwarded.

B sentences, T tokens, W width of the hidden states, C classes. Layer 0 is the output of the
embeddings, layer l that of encoder layer l.
"""

import copy
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from xdray.encoders import captured_qkv
from xdray.errors import ClusterError, ConfigError
from xdray.learner import logits_of, model_inputs, quiet_transformers
from xdray.task import Task
from xdray.tokenised import Signal, layer_of
from xdray.weights import loading, model_folder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FASTER = 1.3
"""bfloat16 is taken where it is so many times faster: below, a second look could say otherwise."""
OF_A_LAYER = re.compile(r"\blayers?\.\d+\.")


@dataclass
class Teacher:
    """A loaded teacher. On CPUs for several threads at once, on a GPU for one."""

    model: PreTrainedModel
    label_mapping: list[int]
    """Position of each of our labels among the teacher's."""
    device: str
    oom_halvings: int = 0
    """Batches that the device's memory could not hold and that went on as two halves."""
    most_tokens: int | None = None
    """B x T that has not been too much so far; None: no batch has."""

    @property
    def width(self) -> int:
        """W."""
        return int(self.model.config.hidden_size)

    @property
    def num_layers(self) -> int:
        """Encoder layers."""
        return int(self.model.config.num_hidden_layers)

    def width_of(self, signal: Signal) -> int:
        """Values a token of a signal."""
        return self.width if isinstance(signal, int) else 3 * self.width

    def check_layers(self, layers: Sequence[Signal]) -> None:
        """Raise ConfigError for a layer that the teacher lacks."""
        for signal in layers:
            layer = layer_of(signal)
            if not 0 <= layer <= self.num_layers:
                raise ConfigError(
                    f"layer {layer}: the teacher has layers 1 to {self.num_layers}, and 0 for the "
                    "output of its embeddings; name one of these"
                )

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        layers: Sequence[Signal] = (),
        types: Tensor | None = None,
    ) -> tuple[Tensor, dict[Signal, Tensor]]:
        """(B, T) ids and mask -> logits in our label order, {signal: (B, T, W or 3 W of qkv)}.

        Logits are (B, T, C), or (B, C) where a sentence has one row. types: 1 in the second text of
        a pair.

        Logits are float32, hidden states of the model's own dtype; both stay on its device, and
        hold anything on padding. A batch too large for the GPU's memory is halved by rows, later
        ones of its size from the start. Raises ClusterError where one sentence is too large.
        """
        self.check_layers(layers)
        fits = self.most_tokens is None or ids.numel() <= self.most_tokens
        if fits or len(ids) == 1:
            try:
                return self._forward(ids, mask, layers, types)
            except torch.OutOfMemoryError as error:
                if len(ids) == 1:
                    raise ClusterError(
                        f"the teacher on {self.device}: one sentence of {ids.shape[1]} tokens does "
                        "not fit its memory; set a lower tokens.max_length, teacher.dtype: "
                        "bfloat16, or take a larger GPU"
                    ) from error
                self.most_tokens = ids.numel() // 2
            # beyond the handler, which kept alive all that the failed pass had allocated
            if self.device.startswith("cuda"):
                torch.cuda.empty_cache()
        self.oom_halvings += 1
        half = len(ids) // 2
        parts = [
            self.forward(ids[at], mask[at], layers, None if types is None else types[at])
            for at in (slice(half), slice(half, None))
        ]
        hidden = {layer: torch.cat([part[1][layer] for part in parts]) for layer in layers}
        return torch.cat([part[0] for part in parts]), hidden

    def _forward(
        self, ids: Tensor, mask: Tensor, layers: Sequence[Signal], types: Tensor | None
    ) -> tuple[Tensor, dict[Signal, Tensor]]:
        ids, mask = (its.to(self.device, torch.int64) for its in (ids, mask))
        inputs = model_inputs(
            self.model, ids, mask, None if types is None else types.to(self.device)
        )
        asked = [layer_of(signal) for signal in layers if not isinstance(signal, int)]
        with torch.inference_mode(), captured_qkv(self.model, asked) as found:
            out = self.model(**inputs, output_hidden_states=bool(layers))
            logits = logits_of(out)[..., self.label_mapping].float()
        states: dict[Signal, Tensor] = {
            its: out.hidden_states[its] if isinstance(its, int) else found[layer_of(its)]
            for its in layers
        }
        return logits, states


def load_teacher(model: str, task: Task, dtype: torch.dtype, device: str = "cpu") -> Teacher:
    """Load a model fine-tuned for a task from a folder, a Hub name or "package:NAME/FOLDER".

    Logits come in the order of the task's labels. Raises ConfigError for a folder that is no such
    model, weights that may not be loaded, and another label set. device "auto": its layers laid
    over all GPUs that this process sees.
    """
    folder = model_folder(model)
    try:
        with quiet_transformers():
            loaded, report = getattr(transformers, task.model_class).from_pretrained(
                folder,
                dtype=dtype,
                **loading(),
                output_loading_info=True,
                device_map="auto" if device == "auto" else None,
            )
    except Exception as error:  # over a damaged config.json transformers raises a dozen kinds
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{model}: no model for {task.kind} can be loaded from it: {reason:.500}; expected "
            "what save_pretrained writes"
        ) from error
    missing = [k for k in sorted(report["missing_keys"]) if task.has_gold or "pooler" not in k]
    if missing:  # an encoder alone does without the pooler above it
        raise ConfigError(
            f"{model}: its weights lack {', '.join(missing[:3])}: an encoder without a fine-tuned "
            f"head for {task.kind}; name it as teacher.finetune.encoder, or a fine-tuned one as "
            "teacher.model"
        )
    beyond = [key for key in sorted(report["unexpected_keys"]) if OF_A_LAYER.search(key)]
    if beyond:
        raise ConfigError(
            f"{model}: its weights have {beyond[0]}, of a layer that its config.json has not; "
            "expected what save_pretrained writes"
        )
    if task.head_width is not None and loaded.num_labels != task.head_width:
        raise ConfigError(
            f"{model}: its head gives {loaded.num_labels} scores, a {task.kind} task takes "
            f"{task.head_width}"
        )
    mapping = list(range(len(task.labels)))
    if task.named_labels and not task.labels:
        mapping = list(range(len(header_of(loaded))))
    elif task.named_labels:
        mapping = task.labels.mapping_from(
            task.teacher_labels or header_of(loaded), f"teacher {model}"
        )
    if device == "auto":
        return Teacher(loaded.eval(), mapping, str(loaded.device))
    return Teacher(loaded.to(device).eval(), mapping, str(device))


def header_of(model: PreTrainedModel) -> list[str]:
    """Names of a loaded model's labels in the order of its ids. Raises ConfigError."""
    names: Any = model.config.id2label
    found = [names.get(index) for index in range(len(names))]
    if not all(isinstance(name, str) for name in found):
        raise ConfigError(
            f"{model.name_or_path}: config.json has id2label {names!r:.80}, expected a name for "
            "each id from 0"
        )
    return found


def embedding_table(model: str, task: Task) -> Tensor:
    """Return the token embeddings of a teacher: (V, W_embedding) float32."""
    table = load_teacher(model, task, torch.float32).model.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    return table.weight.detach().clone()


def default_device() -> str:
    """Return the GPU of this process where it has one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def best_dtype(device: str, width: int = 768) -> str:
    """Name of the dtype of the fastest forward pass there: a key of DTYPES.

    GPU: bfloat16 from compute capability 8. CPU: bfloat16 where a layer's feed-forward part of this
    width takes at most 1 / FASTER of the time, measured on one thread in its own CPU time, so that
    what else the machine does matters little: another dtype is another store.
    """
    if device.startswith("cuda"):
        if not torch.cuda.is_available():  # the GPUs are on other nodes: taken for recent ones
            return "bfloat16"
        return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float32"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = _layer_seconds(width)
    finally:
        torch.set_num_threads(threads)
    return "bfloat16" if seconds["float32"] >= FASTER * seconds["bfloat16"] else "float32"


def _layer_seconds(width: int) -> dict[str, float]:
    """Shortest of some runs of a feed-forward part on 256 tokens, by dtype, taken in turn."""
    layer = nn.Sequential(
        nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.LayerNorm(width)
    )
    layers = {name: copy.deepcopy(layer).to(dtype) for name, dtype in DTYPES.items()}
    tokens = {name: torch.ones(256, width, dtype=dtype) for name, dtype in DTYPES.items()}
    seconds = dict.fromkeys(DTYPES, float("inf"))
    with torch.inference_mode():
        for _ in range(12):
            for name, timed in layers.items():
                started = time.thread_time()
                timed(tokens[name])
                seconds[name] = min(seconds[name], time.thread_time() - started)
    return seconds
