"""Generated text: what is kept apart, what repeats, what the labels mean."""

import builtins
import json
import re
import unicodedata
from pathlib import Path

import pytest

from xdray.errors import ConfigError
from xdray.sample import SampleSizes, tiny_corpus, write_sample

SIZES = SampleSizes(train=160, dev=80, test=160, transfer=400)
LANGUAGES = ["de", "en", "es", "fr", "it", "nl", "pt", "sv"]


def plain(word: str) -> str:
    """In lower case, without accents: what an uncased tokenizer makes of it."""
    parts = unicodedata.normalize("NFKD", word.lower())
    return "".join(letter for letter in parts if not unicodedata.combining(letter))


def sentences(folder: Path, split: str) -> list[list[tuple[str, str]]]:
    """(word, tag) lists of a split, read by hand."""
    found = []
    for file in sorted((folder / split).glob("*.conll")):
        for block in file.read_text(encoding="utf-8").split("\n\n"):
            if block:
                pairs = [line.split("\t") for line in block.splitlines()]
                found.append([(word, tag) for word, tag in pairs])
    return found


def fixed_words(folder: Path) -> set[str]:
    """Words of patterns, also those inside organisations: all that are O or Faker cannot make."""
    import xdray.sample

    text = Path(xdray.sample.__file__).with_suffix(".txt").read_text(encoding="utf-8")
    return {plain(word) for word in re.findall(r"\w+", text)}


def names(folder: Path, split: str) -> set[str]:
    """Words of entities that no pattern holds."""
    words = {plain(word) for rows in sentences(folder, split) for word, tag in rows if tag != "O"}
    return words - fixed_words(folder)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("faker")
    folder = tmp_path_factory.mktemp("sample")
    write_sample(str(folder), seed=3, sizes=SIZES)
    return folder


def test_every_split_has_its_sentences_in_eight_languages(sample):
    for split, total in (("train", 160), ("dev", 80), ("test", 160)):
        assert sorted(file.stem for file in (sample / split).iterdir()) == LANGUAGES
        assert len(sentences(sample, split)) == total
    lines = [f.read_text(encoding="utf-8").splitlines() for f in (sample / "transfer").iterdir()]
    assert [len(part) for part in lines] == [50] * 8


def test_names_of_dev_and_test_are_never_in_train(sample):
    held = names(sample, "dev") | names(sample, "test")
    assert len(held) > 100
    assert not names(sample, "train") & held


def test_transfer_text_has_names_that_no_labelled_text_has(sample):
    text = " ".join(f.read_text(encoding="utf-8") for f in (sample / "transfer").iterdir())
    words = {plain(word) for word in re.findall(r"\w+", text)} - fixed_words(sample)
    labelled = names(sample, "train") | names(sample, "dev") | names(sample, "test")
    assert len(words - labelled) > 100
    assert words & names(sample, "test")


def test_one_word_names_are_of_more_than_one_type(tmp_path):
    pytest.importorskip("faker")
    write_sample(str(tmp_path), sizes=SampleSizes(train=8, dev=8, test=2000, transfer=8))
    kinds: dict[str, set[str]] = {}
    for rows in sentences(tmp_path, "test"):
        for word, tag in rows:
            if tag.startswith("B-"):
                kinds.setdefault(plain(word), set()).add(tag)
    shared = [word for word, tags in kinds.items() if len(tags) > 1]
    assert len(shared) > 0.2 * len(kinds)


def test_tags_are_iob2(sample):
    for rows in sentences(sample, "test"):
        before = "O"
        for _, tag in rows:
            assert tag == "O" or tag[:2] in {"B-", "I-"}
            if tag.startswith("I-"):
                assert before[2:] == tag[2:]
            before = tag


def test_nothing_of_a_pattern_is_left_over(sample):
    for file in sorted(sample.rglob("*.*")):
        if file.name != "sample.json":
            assert not re.search(r"[\[\]{}|]", file.read_text(encoding="utf-8")), file


def test_same_seed_writes_the_same_bytes_and_another_seed_does_not(sample, tmp_path):
    contents = {}
    for seed in (3, 4):
        write_sample(str(tmp_path / str(seed)), seed=seed, sizes=SIZES)
        files = sorted((tmp_path / str(seed)).rglob("*.conll"))
        contents[seed] = [file.read_bytes() for file in files]
    assert contents[3] == [file.read_bytes() for file in sorted(sample.rglob("*.conll"))]
    assert contents[3] != contents[4]


def test_text_that_is_there_is_left_alone_and_unfinished_text_is_not(tmp_path):
    tiny_corpus(str(tmp_path), seed=1)
    file = tmp_path / "train" / "en.conll"
    written = file.read_text(encoding="utf-8")
    file.write_text("edited", encoding="utf-8")
    tiny_corpus(str(tmp_path), seed=1)
    assert file.read_text(encoding="utf-8") == "edited"
    (tmp_path / "sample.json").write_text('{"settings": {"ki', encoding="utf-8")
    tiny_corpus(str(tmp_path), seed=1)
    assert file.read_text(encoding="utf-8") == written


def test_other_settings_write_other_text(tmp_path):
    tiny_corpus(str(tmp_path), seed=1)
    before = (tmp_path / "test" / "de.conll").read_bytes()
    tiny_corpus(str(tmp_path), seed=2)
    assert (tmp_path / "test" / "de.conll").read_bytes() != before
    assert json.loads((tmp_path / "sample.json").read_text())["settings"]["seed"] == 2


def test_ending_tells_the_type_of_a_tiny_name(tiny_text):
    endings = {"na": "PER", "rik": "PER", "burg": "LOC|ORG", "ford": "LOC|ORG"}
    seen = set()
    for split in ("train", "test"):
        for rows in sentences(tiny_text, split):
            for word, tag in rows:
                end = next((end for end in endings if word[4:] == end), None)
                if tag != "O" and end:
                    assert tag[2:] in endings[end].split("|")
                    seen.add(end)
    assert seen == set(endings)


def test_missing_faker_is_named_with_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def without_faker(name, *args, **kwargs):
        if name == "faker":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_faker)
    with pytest.raises(ConfigError, match=r"xdray\[quickstart\]"):
        write_sample(str(tmp_path))


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written there"):
        tiny_corpus(str(tmp_path / "file"))
