"""The config's sections on text: where it lies, how much of it, how it is cut into tokens.

`config` has the other sections and joins them; it is what other modules import.
"""

from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)


class Section(BaseModel):
    """A part of the config: frozen, keyword-only, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what pydantic would read as 0 or 1."""
        if (
            isinstance(value, bool)
            and cls.model_fields[str(info.field_name)].annotation is not bool
        ):
            raise ValueError(f"{str(value).lower()} is a truth value, expected another type")
        return value


class SourceConfig(Section):
    """One source of text: files, or a Hub data set by name."""

    path: str | None = None
    """A file, a glob, or a URI that pyarrow reads."""
    hub: str | None = None
    """A data set of the Hub by name, or a local folder that `datasets` loads. Instead of `path`."""
    subsets: list[str] | None = None
    """The configurations of the Hub data set, one after the other; null: its default one."""
    split: str | None = None
    """The split of the Hub data set."""
    format: Literal["auto", "parquet", "jsonl", "text", "conll", "tsv", "table", "squad"] = "auto"
    """auto: by the file's ending (.parquet .jsonl .txt .conll .tsv .json). text: one sentence a
    line. conll: word first, tag last, blank line between sentences. tsv: the reference's, words TAB
    tags. table: columns between tabs, quotes are text (GLUE's files). squad: SQuAD's JSON (.json),
    read whole."""
    language: str | None = None
    """A code for all sentences, or taken from the path: "{stem}" (en.txt), "{parent}"
    (en/train.parquet), "{subset}" (Hub). null: the column `language`, else "und"."""
    words: str = "tokens"
    """Column with the list of words (Parquet, JSONL, Hub)."""
    tags: str = "ner_tags"
    """Column with the list of tags, as names or as ClassLabel ids."""
    text: str = "text"
    """Column with raw text, where there is no column of words."""
    pair: str | None = None
    """Column with a second text, read together with the first (premise and hypothesis, question and
    context); null: none."""
    label: str = "label"
    """Column with the class, number or answers of a text; for tasks other than tagging."""
    header: bool = True
    """Of a table: its first line names the columns; else they are "1", "2" ..."""
    short_rows: Literal["refuse", "empty"] = "refuse"
    """Of a table, a row with fewer columns than the first: an error, or read as an empty sentence:
    dropped and counted (GLUE's QQP has some)."""
    rows: list[int | None] | None = Field(default=None, min_length=2, max_length=2)
    """Only these rows of each file: the first and the one after the last, counted from 0, null: to
    the end. Cuts one file into splits."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_place(self) -> "SourceConfig":
        if (self.path is None) == (self.hub is None):
            raise ValueError("name either `path` (files) or `hub` (a data set), one of them")
        if self.hub is None and (self.subsets or self.split):
            raise ValueError("`subsets` and `split` go with `hub`, this source has a `path`")
        if self.hub is not None and self.split is None:
            raise ValueError("a `hub` source needs its `split`")
        if self.hub is not None and self.format != "auto":
            raise ValueError("`format` goes with `path`, this source is a `hub` data set")
        if self.format != "table" and (not self.header or self.short_rows != "refuse"):
            raise ValueError("header: false and `short_rows` go with format: table")
        return self

    @model_validator(mode="after")
    def _some_rows(self) -> "SourceConfig":
        if self.rows is not None:
            first, stop = self.rows
            if first is None or first < 0 or (stop is not None and stop <= first):
                raise ValueError(
                    f"rows = {self.rows}, expected the first row from 0 and a later one (or null)"
                )
        return self

    @property
    def row_range(self) -> tuple[int, int | None] | None:
        """The same as `rows`."""
        return None if self.rows is None else (self.rows[0] or 0, self.rows[1])


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


Sources = Annotated[list[SourceConfig], BeforeValidator(_as_list)]


class TransferConfig(Section):
    """The unlabelled text, and how much of each language."""

    sources: Sources = Field(min_length=1)
    """Files or data sets; labels in them are not read."""
    cap: int | None = Field(default=None, gt=0)
    """At most so many sentences a language, drawn by seed; null: all."""
    caps: dict[str, int] = {}
    """The same for single languages, in place of `cap`."""
    sentences: int | None = Field(default=None, gt=0)
    """At most so many in all, shared out by `alpha`; null: all that the caps leave."""
    alpha: float = Field(default=1.0, ge=0, le=1)
    """Languages get shares of `sentences` by count ** alpha: 1 natural, 0 equal. No sentence is
    taken twice: a language smaller than its share is taken whole."""

    @model_validator(mode="before")
    @classmethod
    def _from_sources(cls, value: Any) -> Any:
        if isinstance(value, str | list):
            return {"sources": cast("Any", value)}
        if not isinstance(value, dict) or not {"path", "hub"} & value.keys():
            return value
        values = cast("dict[str, Any]", value)
        if "sources" in values:
            raise ValueError("name `sources`, or one source's `path` or `hub`, not both")
        source = {key: its for key, its in values.items() if key not in cls.model_fields}
        own = {key: its for key, its in values.items() if key in cls.model_fields}
        return {"sources": source, **own}

    @model_validator(mode="after")
    def _alpha_shares_something(self) -> "TransferConfig":
        if self.alpha < 1 and self.sentences is None:
            raise ValueError(f"alpha = {self.alpha} shares out `sentences`: set that, or no alpha")
        return self


class DataConfig(Section):
    """Labelled and unlabelled text."""

    train: Sources = []
    """Labelled sentences to learn from (D_l of the papers); a task of kind encoding has none."""
    dev: Sources = []
    """Labelled sentences by which every choice is made."""
    test: Sources = []
    """Labelled sentences, scored once at the end."""
    transfer: TransferConfig
    """Unlabelled sentences for the teacher (D_u of the papers)."""
    scheme: Literal["IOB2", "IOB1", "BIOES"] = "IOB2"
    """How the labelled files write entities; read into IOB2."""

    @model_validator(mode="after")
    def _splits_apart(self) -> "DataConfig":
        for name, other in (("dev", "test"), ("train", "dev"), ("train", "test")):
            for source in getattr(self, name):
                if source in getattr(self, other):
                    where = source.path or source.hub
                    raise ValueError(
                        f"data.{name} and data.{other} both read '{where}'; "
                        "scores would be of text that was learnt from or chosen by"
                    )
        return self


class TokensConfig(Section):
    """From words to tokens (subwords)."""

    words: Literal["punctuation", "whitespace"] = "punctuation"
    """How raw text is split into words. punctuation: at white space, each punctuation mark and each
    CJK character a word of its own. Labelled text keeps the words it has."""
    max_length: int = Field(default=128, ge=8)
    """Tokens a sentence, special tokens included (P1: 32). Longer ones are cut at the last word
    that fits whole, and counted; words cut off are scored as O."""
    vocabulary: Literal["pruned", "full"] = "pruned"
    """pruned: the student knows the tokens seen in train and transfer text (P1 section 2.1: needed
    for 35x). full: the whole vocabulary."""
    tokenizer: str | None = None
    """Of the student: a folder, a Hub name or package:NAME/FOLDER. null: that of student.start,
    else the teacher's. Where it is not the teacher's, targets are those of stretches of text that
    both cut alike."""
    pieces: Literal["first", "mean"] = "first"
    """With another tokenizer, what a hidden loss compares of a stretch: its first tokens' states,
    or the means of all."""
