"""Generated text for the quickstart and the tests: labelled and unlabelled, in several languages.

Sentences come from the patterns of `sample.txt` beside this file, names from Faker. What makes the
text hard for a student that sees the labels alone:
- a name belongs to one side by its hash: those of train are never in dev or test, some of dev and
  test are in no other text, and a third of all names are in the transfer text only;
- people, places, organisations, storms and ships share names, so context must decide;
- train knows three quarters of the patterns and of the alternatives in each;
- one name in ten has a typing mistake, one sentence in ten no capitals.
The text depends on the seed and, through its names, on the version of Faker; both are in the
manifest, which is written last.
"""

import dataclasses
import hashlib
import json
import random
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdray.errors import ConfigError

MANIFEST = "sample.json"
PATTERNS = Path(__file__).with_suffix(".txt")
NAME_DRAWS = 2500  # from each provider of Faker; most lists are seen whole
# Names by per cent of their hash: train has those below the first number, dev and test those below
# the second; of these, transfer text shares the ones below the third, and all above the second.
TRAIN_NAMES, HELD_NAMES, KNOWN_HELD_NAMES = 35, 65, 50


@dataclass(frozen=True)
class SampleSizes:
    """Sentences of each split, over all languages."""

    train: int = 800
    dev: int = 320
    test: int = 1600
    transfer: int = 8000


@dataclass(frozen=True)
class _Names:
    """Names of one language that a split may use, each a single word."""

    first: tuple[str, ...]
    last: tuple[str, ...]
    places: tuple[str, ...]

    def keep(self, kept: Callable[[str], bool]) -> "_Names":
        """Return those that pass."""
        lists = dataclasses.astuple(self)
        return _Names(*(tuple(name for name in names if kept(name)) for names in lists))


@dataclass(frozen=True)
class _Language:
    """The patterns of a language; `locale` and `place` are Faker's words for it."""

    code: str
    locale: str
    place: str
    organisation: list[str]
    opening: list[str]
    sentence: list[str]


def write_sample(folder: str, seed: int = 0, sizes: SampleSizes | None = None) -> dict[str, Any]:
    """Write the quickstart's text: `train|dev|test/LANGUAGE.conll` and `transfer/LANGUAGE.txt`.

    Returns the manifest (settings and languages). Does nothing when the folder holds
    that text already. Raises ConfigError when Faker, the source of the names, is not installed.
    """
    try:
        import faker
    except ImportError as error:
        raise ConfigError(
            "sample: Faker is not installed, the names come from it; "
            "pip install 'xdray[quickstart]'"
        ) from error
    settings = {"kind": "quickstart", "seed": seed, "faker": faker.VERSION}
    return _write(folder, settings, sizes or SampleSizes(), lambda: _faker_names(seed), 0.1, 0.4)


def tiny_corpus(folder: str, seed: int = 0, sizes: SampleSizes | None = None) -> dict[str, Any]:
    """Write a small text in the same layout, for tests: en and de, made-up names, no mistakes.

    The ending of a name tells what it names, so that a small model learns it in seconds.
    """
    sizes = sizes or SampleSizes(train=160, dev=60, test=60, transfer=320)
    settings = {"kind": "tiny", "seed": seed}
    return _write(folder, settings, sizes, lambda: _made_up_names(seed), 0.0, 0.0)


def _write(
    folder: str,
    settings: dict[str, Any],
    sizes: SampleSizes,
    names: Callable[[], dict[str, _Names]],
    noise: float,
    shared: float,
) -> dict[str, Any]:
    """Write all files, the manifest last; `noise` and `shared` are shares of the names."""
    source = Path(__file__).read_bytes() + PATTERNS.read_bytes()
    generator = hashlib.sha256(source).hexdigest()[:16]  # another one writes another text
    settings = {**settings, "sizes": dataclasses.asdict(sizes), "generator": generator}
    root = Path(folder)
    if (found := _manifest(root)).get("settings") == settings:
        return found
    languages, pools = _languages(), names()
    try:
        (root / MANIFEST).unlink(missing_ok=True)
        for split, total in dataclasses.asdict(sizes).items():
            (root / split).mkdir(parents=True, exist_ok=True)
            for position, (code, pool) in enumerate(pools.items()):
                rows = total // len(pools) + (position < total % len(pools))
                writer = _Writer(languages[code], pool, split, settings["seed"], noise, shared)
                writer.write(root / split, rows)
        made = {"settings": settings, "languages": list(pools)}
        unfinished = root / f"{MANIFEST}.tmp"
        unfinished.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(root / MANIFEST)
    except OSError as error:
        raise ConfigError(f"{folder}: the sample text cannot be written there: {error}") from error
    return made


def _manifest(root: Path) -> dict[str, Any]:
    """Return what was written here before; nothing where that is unknown."""
    try:
        return json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _languages() -> dict[str, _Language]:
    """Read the patterns; their form is told at the top of the file."""
    languages: dict[str, _Language] = {}
    language = _Language("", "", "", [], [], [])
    for line in PATTERNS.read_text(encoding="utf-8").splitlines():
        kind, _, value = line.partition(" ")
        if kind == "language":
            code, locale, place = value.split()
            language = _Language(code, locale, place, [], [], [])
            languages[language.code] = language
        elif kind and kind != "#":
            getattr(language, kind).append(value)
    return languages


class _Writer:
    """Draws the sentences of one language and split.

    Only `Random.random` is used: its numbers are the same on all machines.
    """

    def __init__(
        self, language: _Language, names: _Names, split: str, seed: int, noise: float, shared: float
    ) -> None:
        self.language, self.split, self.seed = language, split, seed
        self.noise, self.shared = noise, shared
        self.random = random.Random(f"{seed} {language.code} {split}").random
        self.names = names.keep(self._is_ours)
        if not all(dataclasses.astuple(self.names)):
            raise ConfigError(
                f"sample: no names for {split} in '{language.code}', expected first and last names "
                "and places; take another seed"
            )

    def write(self, folder: Path, rows: int) -> None:
        """Write the file of this language: raw text for transfer, else a word and a tag a line."""
        sentences = [self.sentence() for _ in range(rows)]
        if self.split == "transfer":
            name, text = f"{self.language.code}.txt", "".join(_raw(words) for words, _ in sentences)
        else:
            name, text = f"{self.language.code}.conll", "".join(_conll(*pair) for pair in sentences)
        (folder / name).write_text(text, encoding="utf-8")

    def sentence(self) -> tuple[list[str], list[str]]:
        """Return words and tags of a new sentence."""
        pattern = self._pick(self._known(self.language.sentence))
        if self.random() < 0.25:
            opening = self._pick(self._known(self.language.opening))
            pattern = f"{opening} : {pattern}"
        pattern = re.sub(r"\[(.*?)\]", self._alternative, pattern)
        words: list[str] = []
        tags: list[str] = []
        for part in re.findall(r"\{\w+\}|\w+|[^\w\s]", pattern):
            name, kind = self._fill(part)
            words += name
            tags += ["O"] * len(name) if kind is None else self._tags(kind, len(name))
        if self.random() < 0.85:
            words.append(".")
            tags.append("O")
        if self.noise and self.random() < self.noise:
            words = [word.lower() for word in words]
        return words, tags

    @staticmethod
    def _tags(kind: str, num_words: int) -> list[str]:
        return [f"B-{kind}", *[f"I-{kind}"] * (num_words - 1)]

    def _fill(self, part: str) -> tuple[list[str], str | None]:
        """Return the words that a part of a pattern stands for, and the type of entity they are."""
        if not part.startswith("{"):
            return [part], None
        kind = part[1:-1]
        if kind == "PER":
            form = self.random()
            first, last = self._pick(self.names.first), self._pick(self.names.last)
            name = [first, last] if form < 0.45 else [last] if form < 0.85 else [first]
            return [self._typed(word) for word in name], kind
        borrowed = self.random() < self.shared
        word = self._typed(self._pick(self.names.last if borrowed else self.names.places))
        if kind != "ORG":
            return [word], kind if kind == "LOC" else None
        form = self._pick(self._known(self.language.organisation))
        return form.format(word).split(), kind

    def _known(self, choices: Sequence[str]) -> Sequence[str]:
        """Return what the split may use: train the first three quarters, the others all."""
        return choices[: (3 * len(choices) + 3) // 4] if self.split == "train" else choices

    def _alternative(self, match: re.Match[str]) -> str:
        return self._pick(self._known(match[1].split("|")))

    def _pick(self, choices: Sequence[str]) -> str:
        return choices[int(self.random() * len(choices))]

    def _typed(self, name: str) -> str:
        """Return the name, now and then with a letter doubled, dropped or moved."""
        if self.random() >= self.noise:
            return name
        at = 1 + int(self.random() * (len(name) - 2))
        before, letter, after = name[:at], name[at], name[at + 1 :]
        swapped = before + after[:1] + letter + after[1:]
        typed = self._pick((before + letter + letter + after, before + after, swapped))
        return typed if self._is_ours(typed) else name

    def _is_ours(self, name: str) -> bool:
        """Whether this split may use the name: see the module's top."""
        share = _hash_percent(name, self.seed)
        if self.split == "train":
            return share < TRAIN_NAMES
        if self.split == "transfer":
            return share < KNOWN_HELD_NAMES or share >= HELD_NAMES
        return TRAIN_NAMES <= share < HELD_NAMES


def _hash_percent(name: str, seed: int) -> int:
    """Return 0 to 99, the same for spellings that differ in case and accents only."""
    letters = unicodedata.normalize("NFKD", name.casefold())
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return int.from_bytes(hashlib.sha256(f"{seed} {plain}".encode()).digest()[:4], "big") % 100


def _faker_names(seed: int) -> dict[str, _Names]:
    """Return names of one word by language; those that are words of a pattern are left out."""
    import faker

    taken = {word.casefold() for word in re.findall(r"\w+", PATTERNS.read_text(encoding="utf-8"))}
    names: dict[str, _Names] = {}
    for code, language in _languages().items():
        source = faker.Faker(language.locale, use_weighting=False)
        source.seed_instance(seed)
        lists = [
            sorted({name for name in (draw() for _ in range(NAME_DRAWS)) if name.isalpha()})
            for draw in (source.first_name, source.last_name, getattr(source, language.place))
        ]
        every = _Names(*(tuple(names) for names in lists))
        names[code] = every.keep(lambda name: len(name) > 3 and name.casefold() not in taken)
    return names


def _made_up_names(seed: int) -> dict[str, _Names]:
    """Return first names in -na, last names in -rik, places in -burg (de) or -ford (en)."""
    draw = random.Random(f"{seed} names").random

    def stems() -> set[str]:
        syllables = [onset + vowel for onset in "bdfgklmnprstvz" for vowel in "aeiou"]
        pairs = (divmod(int(draw() * len(syllables) ** 2), len(syllables)) for _ in range(60))
        return {(syllables[one] + syllables[two]).capitalize() for one, two in pairs}

    return {
        language: _Names(
            *(tuple(sorted(stem + end for stem in stems())) for end in ("na", "rik", place))
        )
        for language, place in (("de", "burg"), ("en", "ford"))
    }


def _raw(words: Sequence[str]) -> str:
    """Return a line of text as people write it."""
    return re.sub(r" ([,.:])", r"\1", " ".join(words)) + "\n"


def _conll(words: Sequence[str], tags: Sequence[str]) -> str:
    return "".join(f"{word}\t{tag}\n" for word, tag in zip(words, tags, strict=True)) + "\n"
