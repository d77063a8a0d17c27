"""Answering: where in a context the answer to a question stands (SQuAD 1.1 and 2.0).

A context longer than `task.window` words is read in overlapping windows; a window is a row of the
corpus, and the windows of a question are scored as one unit. Logits are (N, 2): start, end; those
of the first token, [CLS], say that the window holds no answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xdray.config import TaskConfig
from xdray.config_data import SourceConfig
from xdray.corpus import Labelled
from xdray.errors import ConfigError, CorpusError
from xdray.labels import LabelSet
from xdray.places import Row
from xdray.questions import Asked, answers_of, contexts_of, first_windows
from xdray.sentences import Content, Sentence, TextPair
from xdray.task import Task, head_of
from xdray.tokenised import Tokens
from xdray.tokens import Encoded, encode_texts
from xdray.windows import Windows

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from xdray.batches import Batch
    from xdray.stages import Term

WORDS_PER_TOKEN = 0.66
"""Of the room that is left beside a question of 40 tokens: most windows fit."""
QUESTION_TOKENS = 40
CANDIDATES = 20
"""Starts and ends of a window that are combined, the likeliest."""


@dataclass(frozen=True, slots=True)
class Said:
    """The best answer to a question, before it is decided whether there is one."""

    text: str
    margin: float
    """Score of the answer less that of no answer."""


class Answering(Task):
    """Extractive question answering; the second text of a pair is the context."""

    model_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    metrics: ClassVar[Mapping[str, str]] = {"f1": "Answer F1", "exact_match": "Exact match"}
    about: ClassVar[str] = (
        "F1 is over the words of the answer, as SQuAD scores it; both figures are means over "
        "questions, in percent."
    )
    noun: ClassVar[str] = "A question answering model"
    pipeline: ClassVar[str] = "question-answering"
    usage: ClassVar[str] = (
        "from transformers import AutoModelForQuestionAnswering, AutoTokenizer\n\n"
        'model = AutoModelForQuestionAnswering.from_pretrained("{folder}"{remote})\n'
        'tokenizer = AutoTokenizer.from_pretrained("{folder}"{remote})\n'
        'inputs = tokenizer("Who lives in Lyon?", "Anna lives in Lyon.", return_tensors="pt")\n'
        "start, end = (its.argmax() for its in model(**inputs)[:2])\n"
        'print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))'
    )
    sentence_logits: ClassVar[bool] = False
    named_labels: ClassVar[bool] = False
    head_width: ClassVar[int | None] = 2
    stretch_logits: ClassVar[str] = "logsumexp"
    schema: ClassVar[Sequence[tuple[str, pa.DataType]]] = (
        ("answer", pa.string()),
        ("start", pa.int32()),
        ("score", pa.float32()),
    )

    @classmethod
    def given_labels(cls, settings: TaskConfig) -> LabelSet:
        """Start and end, without a choice."""
        if settings.labels:
            raise ConfigError("task.labels: answering has answers for gold, no labels")
        return LabelSet(("start", "end"))

    @property
    def model_settings(self) -> dict[str, Any]:
        """Two scores a token, whatever head the encoder had before."""
        return {"num_labels": 2}

    @property
    def windows(self) -> Windows:
        """As the config says, else what fits `tokens.max_length`, half of it shared."""
        room = max(8, int((self.max_length - QUESTION_TOKENS) * WORDS_PER_TOKEN))
        size = self.settings.window or room
        overlap = self.settings.overlap
        return Windows(size, min(size - 1, size // 2 if overlap is None else overlap))

    def read(self, sources: Sequence[SourceConfig], split: str) -> Labelled:
        """Read windows; counts tell the questions too."""
        found = super().read(sources, split)
        questions = len({sentence.gold.question for sentence in found.sentences})
        return replace(found, counts={**found.counts, "questions": questions})

    def gold_of(self, here: str, row: Row, labels: LabelSet) -> Asked:
        """Check the answers against the context."""
        if not isinstance(row.content, TextPair) or not isinstance(row.whole, TextPair):
            raise CorpusError(
                f"{here}: one text, expected a question and its context; name their columns in the "
                "source's `text` and `pair`"
            )
        context, given = row.whole.second, row.gold
        if not isinstance(given, dict) or not {"text", "answer_start"} <= given.keys():
            raise CorpusError(
                f"{here}: answers {given!r:.60}, expected an object with lists `text` and "
                "`answer_start`"
            )
        answers = tuple(answers_of(here, given))
        for text, start in answers:
            if not text or context[start : start + len(text)] != text:
                raise CorpusError(
                    f"{here}: answer {text!r:.60} at {start} is not what the context has there "
                    f"({context[start : start + len(text)]!r:.60}); correct the file"
                )
        if not answers and not self.settings.null_answers:
            raise CorpusError(
                f"{here}: a question without an answer; set task.null_answers: true (SQuAD 2.0), "
                "or take it out"
            )
        return Asked(here, answers, row.offset)

    def encode(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        contents: Sequence[Content],
        spans: bool = False,
    ) -> Encoded:
        """Tokens of question and window, always with spans; too long ones lose the window's end."""
        return encode_texts(tokenizer, contents, self.max_length, cut_second=True, spans=True)

    def label_array(self, tokens: Tokens, sentences: Sequence[Sentence]) -> NDArray[np.int64]:
        """(S, 2) tokens at which the first answer that the window holds starts and ends; else 0."""
        result = np.zeros((len(sentences), 2), dtype=np.int64)
        for row, (sentence, spans) in enumerate(zip(sentences, contexts_of(tokens), strict=True)):
            assert isinstance(sentence.content, TextPair)
            window = sentence.content.second
            for text, start in sentence.gold.answers:
                begin = start - sentence.gold.offset
                end = begin + len(text)
                first = np.searchsorted(spans[:, 1], begin, side="right")
                last = np.searchsorted(spans[:, 0], end, side="left") - 1
                if begin >= 0 and end <= len(window) and first < len(spans) and last >= first:
                    # what the tokenizer drops (an accent written apart) may end an answer
                    rest = window[spans[last, 1] : end]
                    if spans[first, 0] <= begin and not any(map(str.isalnum, rest)):
                        result[row] = spans[first, 2], spans[last, 2]
                        break
        return result

    def unmarked(self, labels: NDArray[Any], sentences: Sequence[Sentence]) -> int:
        """Questions with an answer that no window holds whole."""
        asked = {its.gold.question for its in sentences if its.gold.answers}
        found = {its.gold.question for its, row in zip(sentences, labels, strict=True) if row.any()}
        return len(asked - found)

    def label_loss(self, logits: "Tensor", labels: "Tensor", batch: "Batch") -> "Tensor":
        """Cross-entropy over positions."""
        from xdray import losses

        padded, mask = batch.unflatten(logits)
        return losses.span_loss(padded[: len(labels)], labels, mask[: len(labels)])

    def logit_loss(
        self, term: "Term", logits: "Tensor", target: "Tensor", batch: "Batch"
    ) -> "Tensor":
        """Squared error a token; soft targets and hard labels over the positions of a window."""
        from xdray import losses

        if (term.loss, term.distance) == ("logits", "mse"):
            return super().logit_loss(term, logits, target, batch)
        ours, mask = batch.unflatten(logits)
        theirs, _ = batch.unflatten(target)
        if term.loss == "hard_labels":
            best = theirs.masked_fill(mask[..., None] == 0, -1e4).argmax(1)
            return losses.span_loss(ours, best, mask)
        return losses.soft_span_loss(ours, theirs, mask, term.temperature)

    def logit_count(self, term: "Term", batch: "Batch") -> int:
        """Tokens, or windows where a window is one distribution."""
        if (term.loss, term.distance) == ("logits", "mse"):
            return len(batch.kept)
        return len(batch.first)

    def decode(
        self, logits: NDArray[np.float32], tokens: Tokens, sentences: Sequence[Sentence]
    ) -> list[Said]:
        """Return the best answer to each question over its windows, in the questions' order."""
        best: dict[str, tuple[float, str]] = {}
        null: dict[str, float] = {}
        for sentence, scores, spans in zip(
            sentences, np.split(logits, tokens.offsets[1:-1]), contexts_of(tokens), strict=True
        ):
            question = sentence.gold.question
            score, text, _ = self._best_span(sentence, scores, spans)
            none = float(scores[0].sum())
            null[question] = min(null.get(question, none), none)
            best[question] = max(best.get(question, (-np.inf, "")), (score, text))
        return [Said(text, score - null[question]) for question, (score, text) in best.items()]

    def _best_span(
        self, sentence: Sentence, scores: NDArray[np.float32], spans: NDArray[np.int64]
    ) -> tuple[float, str, int]:
        """Score, text and first character (in the window) of the likeliest answer of a window."""
        if not len(spans):
            return -1e4, "", 0
        start, end = scores[spans[:, 2], 0], scores[spans[:, 2], 1]
        starts, ends = (np.argsort(-its)[:CANDIDATES] for its in (start, end))
        sums = start[starts][:, None] + end[ends][None, :]
        lengths = ends[None, :] - starts[:, None]
        sums = np.where((lengths >= 0) & (lengths < self.settings.max_answer), sums, -1e4)
        first, last = np.unravel_index(int(sums.argmax()), sums.shape)
        content = sentence.content
        assert isinstance(content, TextPair)
        begin, stop = int(spans[starts[first], 0]), int(spans[ends[last], 1])
        return float(sums[first, last]), content.second[begin:stop], begin

    def golds(self, sentences: Sequence[Sentence]) -> list[tuple[str, ...]]:
        """Right answers of each question; ("",) where there is none."""
        return [
            tuple(text for text, _ in sentence.gold.answers) or ("",)
            for sentence in first_windows(sentences)
        ]

    def units(self, sentences: Sequence[Sentence]) -> list[int]:
        """Question of each window, counted as they come up."""
        found: dict[str, int] = {}
        return [found.setdefault(its.gold.question, len(found)) for its in sentences]

    def languages(self, sentences: Sequence[Sentence]) -> list[str]:
        """Language of each question."""
        return [sentence.language for sentence in first_windows(sentences)]

    @property
    def chooses(self) -> bool:
        """The margin of no answer, where the config names none."""
        return self.settings.null_answers and self.settings.null_margin is None

    def choose(self, gold: Sequence[Any], predicted: Sequence[Any]) -> float | None:
        """Margin above which an answer is given, so that F1 on these questions is best."""
        if not self.chooses:
            return self.settings.null_margin
        order = np.argsort([-said.margin for said in predicted], kind="stable")
        given = self.statistics(gold, [said.text for said in predicted])[order, 1]
        withheld = self.statistics(gold, [""] * len(gold))[order, 1]
        gains = np.concatenate([[0.0], np.cumsum(given - withheld)])
        answered = int(gains.argmax())
        margins = np.array([said.margin for said in predicted])[order]
        if answered == 0:
            return float(margins[0]) if len(margins) else 0.0
        if answered == len(margins):
            return float(margins[-1]) - 1.0
        return float(margins[answered - 1 : answered + 1].mean())

    def saved(self, chosen: Any) -> dict[str, Any]:
        """With the margin that was chosen on dev, and how contexts were read."""
        read = {
            "window": self.windows.size,
            "overlap": self.windows.overlap,
            "max_answer": self.settings.max_answer,
        }
        return {**super().saved(chosen), "null_margin": chosen, "answering": read}

    def as_saved(self, values: Mapping[str, Any]) -> "Task":
        """With these, where they were saved and the config says nothing else."""
        given = dict(values.get("answering") or {})
        if self.settings.null_margin is None:
            given["null_margin"] = values.get("null_margin")
        return replace(self, settings=self.settings.model_copy(update=given))

    def decide(self, predicted: Sequence[Any], chosen: Any) -> list[str]:
        """Answers; "" where the margin is not above the chosen one."""
        return [said.text if chosen is None or said.margin > chosen else "" for said in predicted]

    def figures(self, gold: Sequence[Any], predicted: Sequence[Any]) -> dict[str, float]:
        """Torchmetrics' SQuAD scores, means over questions."""
        means = self._both(gold, predicted).mean(axis=0) if len(gold) else np.zeros(2)
        return dict(zip(("exact_match", "f1"), means.tolist(), strict=True))

    def statistics(self, gold: Sequence[Any], predicted: Sequence[Any]) -> NDArray[np.float64]:
        """(U, 2) a question, and its score in the metric."""
        column = 0 if self.metric == "exact_match" else 1
        return np.column_stack([np.ones(len(gold)), self._both(gold, predicted)[:, column]])

    def value(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean over questions."""
        return np.where(sums[..., 0] > 0, sums[..., 1] / np.maximum(sums[..., 0], 1), np.nan)

    def _both(self, gold: Sequence[Any], predicted: Sequence[Any]) -> NDArray[np.float64]:
        """(U, 2) exact match and F1 of each question."""
        from torchmetrics.functional.text import squad

        result = np.zeros((len(gold), 2))
        for row, (texts, said) in enumerate(zip(gold, predicted, strict=True)):
            answers = {"text": list(texts), "answer_start": [0] * len(texts)}
            found = squad([{"prediction_text": said, "id": "0"}], [{"answers": answers, "id": "0"}])
            result[row] = float(found["exact_match"]) / 100, float(found["f1"]) / 100
        return result

    def records(
        self, run: Any, tokenizer: "PreTrainedTokenizerFast", sentences: Sequence[Sentence]
    ) -> list[dict[str, Any]]:
        """Return the best answer over the windows of each pair, with where it starts."""
        if not all(isinstance(sentence.content, TextPair) for sentence in sentences):
            raise CorpusError(
                "a text alone, expected a question and its context; name the column of the context "
                "with --pair"
            )
        cuts = [
            (number, offset, replace(sentence, content=content))
            for number, sentence in enumerate(sentences)
            if isinstance(sentence.content, TextPair)
            for offset, content in self.windows.cut(sentence.content)
        ]
        windows = [window for _, _, window in cuts]
        tokens, _ = self.tokens(tokenizer, windows)
        logits = run(tokens)
        found: list[list[tuple[float, float, str, int]]] = [[] for _ in sentences]
        rows = np.split(logits, tokens.offsets[1:-1])
        for (owner, offset, window), scores, spans in zip(
            cuts, rows, contexts_of(tokens), strict=True
        ):
            score, text, start = self._best_span(window, scores, spans)
            found[owner].append((score, float(scores[0].sum()), text, offset + start))
        chosen = self.settings.null_margin
        records = []
        for sentence, its in zip(sentences, found, strict=True):
            score, _, text, start = max(its)
            margin = score - min(none for _, none, _, _ in its)
            if chosen is not None and margin <= chosen:
                text, start = "", 0
            said = {"answer": text, "start": start, "score": round(margin, 4)}
            records.append({**head_of(sentence), **said})
        return records


TASK = Answering
