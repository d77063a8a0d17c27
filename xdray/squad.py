"""SQuAD's JSON (1.1 and 2.0): questions, each with its context and answers."""

import functools
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from xdray.errors import CorpusError
from xdray.places import open_place, reading
from xdray.sentences import TextPair
from xdray.strict_json import parse_json


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Answer(_Part):
    text: str
    answer_start: int


class _Asked(_Part):
    question: str
    id: str | int
    answers: list[_Answer] | None = None


class _Paragraph(_Part):
    context: str
    qas: list[_Asked]


class _Article(_Part):
    paragraphs: list[_Paragraph]


class _File(_Part):
    data: list[_Article]


@functools.lru_cache(maxsize=2)
def squad_questions(path: str) -> list[tuple[TextPair, dict[str, Any] | None, str]]:
    """Read a whole file: SQuAD's JSON cannot be read in parts.

    (question, context), answers as lists `text` and `answer_start` (None: the file has no answers
    there), id. Raises CorpusError.
    """
    with reading(path), open_place(path) as file:
        data = parse_json(file.read())
    try:
        whole = _File.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise CorpusError(
            f"{path}: {where} is {first['input']!r:.60}: {first['msg'].lower()}; expected SQuAD's "
            "layout: data, paragraphs, context, qas, question, id, answers, text, answer_start"
        ) from error
    return [
        (TextPair(asked.question, paragraph.context), _answers(asked), str(asked.id))
        for article in whole.data
        for paragraph in article.paragraphs
        for asked in paragraph.qas
    ]


def _answers(asked: _Asked) -> dict[str, Any] | None:
    if asked.answers is None:
        return None
    return {
        "text": [answer.text for answer in asked.answers],
        "answer_start": [answer.answer_start for answer in asked.answers],
    }
