"""A saved model's folder scored on a labelled split, in whatever runtime."""

import time
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig

from xdray.config import Config
from xdray.header import check_length, read_header, resolve_model
from xdray.kinds import load_task, with_labels
from xdray.labels import LabelSet
from xdray.learner import Learner, logits_of, model_inputs
from xdray.learning import Scorer
from xdray.saving import load_student
from xdray.sessions import LocalSession
from xdray.storage import join
from xdray.tokens import load_tokenizer
from xdray.weights import trusted


class SplitScorer:
    """Scores the models of one folder on one labelled split of a config, tokenised once."""

    def __init__(self, config: Config, folder: str, split: str, device: str | None = None) -> None:
        """folder: student or teacher; its labels are brought into the task's order.

        device: where models are scored; None: on a GPU where there is one.
        """
        task = load_task(config)
        own = config.teacher.model is not None and folder == config.teacher.model
        header = read_header(folder)
        check_length(header, config.tokens.max_length)
        names = (own and task.teacher_labels) or header.tags
        if not task.labels:
            task = with_labels(task, LabelSet(names))
        self.mapping = task.labels.mapping_from(names, folder) if task.named_labels else None
        saved = AutoConfig.from_pretrained(
            resolve_model(folder), local_files_only=True, trust_remote_code=trusted("remote_code")
        )
        self.task = task.as_saved(saved.to_dict())
        self._config, self._tokenizer = config, load_tokenizer(folder)
        self._session = LocalSession(None, device)
        self.scorer = self._scorer_of(split)
        self._dev = self.scorer if split == "dev" or not task.chooses else self._scorer_of("dev")

    def _scorer_of(self, split: str) -> Scorer:
        sentences = self.task.read(getattr(self._config.data, split), split).sentences
        return Scorer(sentences, self._tokenizer, self.task, self._session)

    def __call__(self, model: Any) -> dict[str, Any]:
        """Scores of a model in any runtime. What is chosen, a threshold, is chosen on dev."""
        task, scorer, learner = self.task, self.scorer, FinishedModel(model, self.mapping)
        said = self._dev.predict(learner) if task.chooses else []
        chosen = task.choose(self._dev.golds, said)  # one that is set, too
        decided = task.decide(scorer.predict(learner), chosen)
        return task.scores(scorer.golds, decided, scorer.languages)

    def logits(self, model: Any) -> NDArray[Any]:
        """Logits of the split, (N, C) or (S, C)."""
        return self.scorer.logits(FinishedModel(model, self.mapping))


class FinishedModel(Learner):
    """A saved model with a head, to be scored."""

    def __init__(self, model: Any, mapping: list[int] | None) -> None:
        """model: of transformers, or called like one.

        mapping: position of each of the task's labels among the model's.
        """
        super().__init__()
        self.model = model
        self.mapping = mapping

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_types: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """No hidden states, and logits (B, T, C) or (B, C)."""
        inputs = model_inputs(self.model, input_ids, attention_mask, token_types)
        logits = logits_of(self.model(**inputs))
        return logits[..., :0], logits if self.mapping is None else logits[..., self.mapping]

    def groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """Nothing of it trains."""
        return {}

    def reset_head(self, seed: int) -> None:
        """Nothing of it changes."""
        raise NotImplementedError


def score_model(config: Config, folder: str, split: str) -> dict[str, Any]:
    """Scores of any folder of a model for the task, student or teacher, with its tokenizer."""
    scorer = SplitScorer(config, folder, split)
    return scorer(load_student(resolve_model(folder), scorer.task.model_class))


def evaluate_model(config: Config, model: str | None, split: str) -> dict[str, Any]:
    """Score a model's folder (default: the run's student) on a labelled split of a config."""
    started = time.monotonic()
    place = model or join(config.run.folder, "student")
    scores = score_model(config, place, split)
    seconds = round(time.monotonic() - started, 2)
    result = {"model": place, "split": split, split: scores}
    return {"run_dir": config.run.folder, "seconds": seconds, **result}
