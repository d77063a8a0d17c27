"""Words to tokens: splitting, encoding, cutting, pruning. The tokenizers are trained here."""

import gc
import json
import re
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast, RobertaTokenizer

from xdray import wordpieces
from xdray.errors import ConfigError
from xdray.header import resolve_model
from xdray.tokens import (
    encode,
    fingerprint,
    is_first,
    load_tokenizer,
)
from xdray.vocabulary import compare_segmentation, prune_tokenizer
from xdray.words import split_words, words_of

PLACES = ["Northwick", "Eastham", "Port Lydia", "Žďár", "Новосёлово", "東山市", "Ελαιώνας"]
VERBS = ["visited", "left", "described", "rebuilt", "painted", "surveyed"]
NAMES = ["Anna Kovář", "Iwan Brook", "Мария Белова", "山本健", "Odile Ferrand-Roy"]
TEXT = [
    f"{name} {verb} the old harbour of {place} in {1800 + 7 * row}, it's said ({row}) ."
    for row, (name, verb, place) in enumerate(
        (name, verb, place) for name in NAMES for verb in VERBS for place in PLACES
    )
][::3]
SENTENCES = [tuple(text.split()) for text in TEXT]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
XLM = ["<s>", "<pad>", "</s>", "<unk>"]
SCRIPTS_WITHOUT_SPACES = {
    *("CJK", "HIRAGANA", "KATAKANA", "HENTAIGANA", "IDEOGRAPHIC", "HANGZHOU", "KANA", "MASU")
}
ANY_WORD = st.one_of(
    st.sampled_from(sorted({word for words in SENTENCES for word in words})),
    st.text(st.sampled_from("abehnrstzČж山東本9-.'￼\u200d\u0007"), max_size=12),
    st.sampled_from(["[SEP]", "</s>", "<new>", "\u0000", "x" * 150]),
)
ANY_SENTENCES = st.lists(st.lists(ANY_WORD, max_size=12), max_size=6)


def _template(cls, sep, tokenizer):
    return processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )


def _wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        TEXT, trainers.WordPieceTrainer(vocab_size=400, special_tokens=BERT, show_progress=False)
    )
    tokenizer.post_processor = _template("[CLS]", "[SEP]", tokenizer)
    tokenizer.add_tokens(["<new>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=77,
        padding_side="left",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace("ё", "е")]  # not what its class would set
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        TEXT,
        trainers.UnigramTrainer(
            vocab_size=400, special_tokens=XLM, unk_token="<unk>", show_progress=False
        ),
    )
    tokenizer.post_processor = _template("<s>", "</s>", tokenizer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        extra_special_tokens=["<new>"],
    )


def _byte_level(add_prefix_space=False):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=[*XLM, "<mask>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


TOKENIZERS = {"wordpiece": _wordpiece(), "unigram": _unigram()}
both = pytest.mark.parametrize("kind", list(TOKENIZERS))
examples = settings(deadline=None, derandomize=True, max_examples=60)


def _sentences(encoded):
    """Each sentence's (ids, word ids), as lists."""
    ends = list(zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True))
    return [(encoded.ids[a:b].tolist(), encoded.word_ids[a:b].tolist()) for a, b in ends]


def _used(tokenizer, sentences):
    used = np.zeros(len(tokenizer), bool)
    used[encode(tokenizer, sentences, 10_000).ids] = True
    return used


# -- words --


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  It's 10°C,\tin U.S.", "It ' s 10 ° C , in U . S ."),
        ("東京タワーは333m。", "東 京 タ ワ ー は 333m 。"),
        ("中国建设银行：500万元", "中 国 建 设 银 行 ： 500 万 元"),
        ("𠮷野家 𝒳y", "𠮷 野 家 𝒳y"),
        ("ｱﾊﾟｰﾄ", "ｱ ﾊ ﾟ ｰ ﾄ"),
        ("포드는 상원 ( 테네시 주 )", "포드는 상원 ( 테네시 주 )"),
        ("ประเทศไทย สวยงาม!", "ประเทศไทย สวยงาม !"),
        ("हिन्दी''में''।", "हिन्दी ' ' में ' ' ।"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("I❤\ufe0fNY 🙂🙂", "I ❤\ufe0f NY 🙂 🙂"),
        ("か\u3099き", "か\u3099 き"),
        (" \u3000\n", ""),
    ],
)
def test_punctuation_rule_splits_as_by_hand(text, words):
    assert [text[start:end] for start, end in split_words(text, "punctuation")] == words.split()


@given(st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=40))
@settings(deadline=None, derandomize=True, max_examples=500)
def test_punctuation_rule_equals_a_loop_over_characters(text):
    words, joins = [], False
    for character in text:
        category, name = unicodedata.category(character), unicodedata.name(character, "")
        is_alone = category in {"Lo", "Lm", "Nl"} and bool(
            SCRIPTS_WITHOUT_SPACES & set(re.split("[ -]", name))
        )
        if character.isspace():
            joins = False
        elif category[0] in "PS" or is_alone:
            words.append(character)
            joins = None  # only marks join
        elif joins or (joins is None and category[0] == "M"):
            words[-1] += character
        else:
            words.append(character)
            joins = True
    assert [text[start:end] for start, end in split_words(text, "punctuation")] == words


@given(st.text(max_size=30))
@examples
def test_whitespace_rule_equals_str_split(text):
    assert [text[start:end] for start, end in split_words(text, "whitespace")] == text.split()


def test_labelled_words_are_kept_and_text_is_split():
    labelled = ("U.S.", "e.g.")
    assert words_of(labelled, "punctuation") == ("U.S.", "e.g.")
    raw = "U.S. (e.g.)"
    assert words_of(raw, "whitespace") == ("U.S.", "(e.g.)")
    assert words_of(raw, "punctuation") == (*"U.S.(e.g.)",)


# -- loading --


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A Python package that cannot be imported, with a folder in it."""
    folder = tmp_path / "xdray_test_package" / "encoder"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (tmp_path / "xdray_test_module.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_a_package_folder_is_found_without_importing_the_package(package):
    assert resolve_model("package:xdray_test_package/encoder") == str(package)
    assert "xdray_test_package" not in sys.modules
    TOKENIZERS["wordpiece"].save_pretrained(package)
    assert len(load_tokenizer("package:xdray_test_package/encoder")) == len(TOKENIZERS["wordpiece"])


@pytest.mark.parametrize("name", ["org/model", "bert-base-cased", "relative/folder"])
def test_other_names_come_back_as_they_are(name):
    assert resolve_model(name) == name


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:xdray_test_package", "expected package:NAME/FOLDER"),
        ("package:xdray_test_package.sub/encoder", "expected package:NAME/FOLDER"),
        ("package:xdray_no_such/encoder", "no Python package 'xdray_no_such'"),
        ("package:xdray_test_package/decoder", "no such folder"),
        ("package:xdray_test_module/encoder", "it is a single file"),
    ],
)
def test_a_package_name_that_leads_nowhere_says_why(name, message):
    with pytest.raises(ConfigError, match=message):
        resolve_model(name)


def test_a_folder_without_a_tokenizer_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=f"{tmp_path}: no tokenizer could be loaded"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ConfigError, match=f"{tmp_path}/none: no such folder"):
        load_tokenizer(f"{tmp_path}/none")
    TOKENIZERS["unigram"].save_pretrained(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text()
    for damaged in (whole[: len(whole) // 2], whole.replace('"Unigram"', '"Other"')):
        (tmp_path / "tokenizer.json").write_text(damaged)
        with pytest.raises(ConfigError, match="no tokenizer could be loaded"):
            load_tokenizer(str(tmp_path))


def test_a_slow_tokenizer_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "canine"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CanineTokenizer"}')
    with pytest.raises(ConfigError, match="CanineTokenizer, expected a fast one"):
        load_tokenizer(str(tmp_path))


def _save_byte_level(folder, style):
    backend = _byte_level()
    if style == "RobertaTokenizer":
        model = json.loads(backend.to_str())["model"]
        merges: Any = [tuple(pair) for pair in model["merges"]]  # typed as strings, wants pairs
        tokenizer = RobertaTokenizer(model["vocab"], merges)
    else:
        if style == "split first":
            split = pre_tokenizers.Split("'", "merged_with_next")
            level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            backend.pre_tokenizer = pre_tokenizers.Sequence([split, level])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("style", ["RobertaTokenizer", "PreTrainedTokenizerFast", "split first"])
def test_words_of_a_byte_level_tokenizer_do_not_glue_together(tmp_path, style):
    _save_byte_level(tmp_path / "plain", style)
    plain = AutoTokenizer.from_pretrained(tmp_path / "plain")
    tokenizer = load_tokenizer(str(tmp_path / "plain"))
    words = ["visited", "the", "it's", "harbour", "Žďár", "harbour"]
    encoded = encode(tokenizer, [words], 100)
    for position, word in enumerate(words):
        ids = encoded.ids[encoded.word_ids == position].tolist()
        # The tokenizer as it was, on the word after a space: how it meets it inside a text.
        assert ids == plain.backend_tokenizer.encode(f" {word}", add_special_tokens=False).ids
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again(words, is_split_into_words=True)["input_ids"] == encoded.ids.tolist()
    assert fingerprint(load_tokenizer(str(tmp_path / "saved"))) == fingerprint(tokenizer)


def test_fingerprint_outlives_calls_and_files_but_no_change_of_rules(tmp_path):
    tokenizer = _wordpiece()
    before = fingerprint(tokenizer)
    tokenizer(TEXT[:3], truncation=True, max_length=9, padding="max_length")
    assert fingerprint(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    assert fingerprint(load_tokenizer(str(tmp_path))) == before
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    assert fingerprint(tokenizer) != before


# -- encoding --


@both
@given(sentences=ANY_SENTENCES)
@examples
def test_uncut_sentences_equal_those_of_transformers(kind, sentences):
    encoded = encode(TOKENIZERS[kind], sentences, 100_000)
    expected = []
    for words in sentences:
        one = TOKENIZERS[kind](words, is_split_into_words=True)
        expected.append((one["input_ids"], [-1 if w is None else w for w in one.word_ids()]))
    assert _sentences(encoded) == expected
    assert encoded.cut_words.tolist() == [0] * len(sentences)
    dtypes = [encoded.ids.dtype, encoded.word_ids.dtype, encoded.offsets.dtype]
    assert [*dtypes, encoded.cut_words.dtype] == [np.int32, np.int32, np.int64, np.int64]


@both
@given(sentences=ANY_SENTENCES, max_length=st.integers(3, 30))
@examples
def test_long_sentences_are_cut_after_the_last_whole_word(kind, sentences, max_length):
    tokenizer = TOKENIZERS[kind]
    encoded = encode(tokenizer, sentences, max_length)
    for words, (ids, word_ids), cut in zip(
        sentences, _sentences(encoded), encoded.cut_words, strict=True
    ):
        kept, kept_words, lost = [], [], 0
        for position, word in enumerate(words):
            one = tokenizer([word], is_split_into_words=True, add_special_tokens=False)["input_ids"]
            if lost or len(kept) + len(one) > max_length - 2:
                if not kept:  # the first word alone is too long: its first tokens
                    kept, kept_words = one[: max_length - 2], [position] * (max_length - 2)
                else:
                    lost += bool(one)
                continue
            kept, kept_words = kept + one, kept_words + [position] * len(one)
        assert ids == [tokenizer.cls_token_id, *kept, tokenizer.sep_token_id]
        assert word_ids == [-1, *kept_words, -1]
        assert cut == lost


def test_a_word_longer_than_all_room_keeps_its_first_tokens_and_is_not_counted():
    word = "9z" * 30
    assert len(TOKENIZERS["unigram"].tokenize(word)) > 20
    encoded = encode(TOKENIZERS["unigram"], [[word, "the", "\u0007"], ["the", word]], 10)
    (_, first), (_, second) = _sentences(encoded)
    assert first == [-1, *[0] * 8, -1]
    assert (set(second), second[-1]) == ({-1, 0}, -1)
    assert encoded.cut_words[1] == 1


def test_words_without_tokens_and_empty_sentences_have_no_first_token():
    encoded = encode(TOKENIZERS["wordpiece"], [["\u0007", "the", "\u0000"], [], ["\u0007"]], 20)
    assert [word_ids for _, word_ids in _sentences(encoded)] == [[-1, 1, -1], [-1, -1], [-1, -1]]
    assert is_first(encoded.word_ids).tolist() == [False, True, *[False] * 5]
    assert encoded.cut_words.tolist() == [0, 0, 0]
    nothing = encode(TOKENIZERS["wordpiece"], [], 20)
    assert (nothing.ids.tolist(), nothing.offsets.tolist()) == ([], [0])


def test_a_sentence_that_starts_where_another_ends_has_its_own_first_token():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_byte_level(True))  # no special tokens
    encoded = encode(tokenizer, [["the"], [], ["the", "harbour"], ["the"]], 20)
    assert encoded.word_ids.tolist() == [0, 0, *[1] * (len(encoded.ids) - 3), 0]
    first = is_first(encoded.word_ids, encoded.offsets)
    assert first.tolist() == [True] * 3 + [False] * (len(encoded.ids) - 4) + [True]


def test_more_sentences_than_fit_one_call_keep_their_order():
    sentences = (SENTENCES * 40)[:2500]
    many = _sentences(encode(TOKENIZERS["unigram"], sentences, 64))
    alone = {
        words: _sentences(encode(TOKENIZERS["unigram"], [words], 64))[0] for words in SENTENCES
    }
    assert many == [alone[words] for words in sentences]


def test_no_more_words_are_remembered_than_the_bound(monkeypatch):
    monkeypatch.setattr(wordpieces, "MOST_WORDS", 10)
    tokenizer = _wordpiece()
    words = [f"{a}{b}" for a in "abcdefg" for b in "hijklmn"]
    whole = wordpieces.tokens_of_words(tokenizer, words)
    known = wordpieces._KNOWN
    assert len(known[tokenizer][1]) == 49  # one call's words, however many
    assert wordpieces.tokens_of_words(tokenizer, words[:3] * 2) == whole[:3] * 2
    assert len(known[tokenizer][1]) == 3
    size = len(known)
    del tokenizer
    gc.collect()
    assert len(known) == size - 1


@both
def test_threads_share_what_is_remembered(kind, monkeypatch):
    monkeypatch.setattr(wordpieces, "MOST_WORDS", 10)
    sentences = [[f"{a}{b}" for b in "hijklmnopq"[: i % 9]] for i, a in enumerate(TEXT * 5)]
    alone = [_sentences(encode(TOKENIZERS[kind], [one], 99)) for one in sentences]
    with ThreadPoolExecutor(4) as pool:
        assert (
            list(pool.map(lambda s: _sentences(encode(TOKENIZERS[kind], [s], 99)), sentences))
            == alone
        )


def test_truncation_and_padding_left_in_a_tokenizer_cut_and_fill_nothing():
    tokenizer = _wordpiece()
    expected = _sentences(encode(tokenizer, SENTENCES, 50))
    tokenizer.backend_tokenizer.enable_truncation(7)
    tokenizer.backend_tokenizer.enable_padding(length=60)
    pruned = prune_tokenizer(tokenizer, np.ones(len(tokenizer), bool)).tokenizer.backend_tokenizer
    assert (pruned.truncation, pruned.padding) == (None, None)
    assert _sentences(encode(tokenizer, SENTENCES, 50)) == expected


def test_special_tokens_in_text_are_text_where_the_tokenizer_says_so():
    tokenizer = _wordpiece()
    words, before = ["the", "[SEP]"], fingerprint(tokenizer)
    as_token = encode(tokenizer, [words], 50).ids.tolist()
    assert as_token[-2:] == [tokenizer.sep_token_id] * 2
    tokenizer.split_special_tokens = True
    as_text = encode(tokenizer, [words], 50).ids.tolist()
    assert len(as_text) > len(as_token)
    assert as_text == tokenizer(words, is_split_into_words=True)["input_ids"]
    assert fingerprint(tokenizer) != before


def test_a_length_without_room_for_a_word_is_refused():
    with pytest.raises(ConfigError, match="max_length = 2: no room"):
        encode(TOKENIZERS["unigram"], SENTENCES, 2)


# -- pruning --


@both
@given(
    seen=st.lists(st.integers(0, len(SENTENCES) - 1), min_size=1, max_size=6),
    sentences=ANY_SENTENCES,
)
@settings(deadline=None, derandomize=True, max_examples=40)
def test_words_whose_tokens_are_all_kept_segment_as_before(kind, seen, sentences):
    teacher = TOKENIZERS[kind]
    pruned = prune_tokenizer(teacher, _used(teacher, [SENTENCES[row] for row in seen]))
    student_ids = pruned.student_ids
    for words in [*SENTENCES[::20], *sentences]:
        for word in words:
            ids = teacher([word], is_split_into_words=True)["input_ids"]
            if (student_ids[ids] >= 0).all():
                student = pruned.tokenizer([word], is_split_into_words=True)
                assert student["input_ids"] == student_ids[ids].tolist()


@both
def test_text_that_the_vocabulary_was_pruned_to_keeps_its_tokens(kind):
    teacher = TOKENIZERS[kind]
    pruned = prune_tokenizer(teacher, _used(teacher, SENTENCES[:9]))
    ours, theirs = (encode(one, SENTENCES[:9], 64) for one in (pruned.tokenizer, teacher))
    assert len(pruned.tokenizer) < 0.8 * len(teacher)
    assert pruned.teacher_ids[ours.ids].tolist() == theirs.ids.tolist()
    assert ours.word_ids.tolist() == theirs.word_ids.tolist()


@both
def test_pruned_ids_keep_the_tokens_and_order_of_the_teacher(kind):
    teacher = TOKENIZERS[kind]
    padded = np.concatenate([_used(teacher, SENTENCES[:9]), [True] * 6])  # a table with spare rows
    pruned = prune_tokenizer(teacher, padded)
    student = pruned.tokenizer
    names = student.convert_ids_to_tokens(list(range(len(student))))
    assert names == teacher.convert_ids_to_tokens(pruned.teacher_ids.tolist())
    assert (np.diff(pruned.teacher_ids) > 0).all()
    assert pruned.student_ids.shape == padded.shape
    assert pruned.student_ids[pruned.teacher_ids].tolist() == list(range(len(student)))
    assert (pruned.student_ids >= 0).sum() == len(student)
    for name in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(student, f"{name}_token") == getattr(teacher, f"{name}_token")
        ids = [getattr(one, f"{name}_token_id") for one in (student, teacher)]
        assert pruned.teacher_ids[ids[0]] == ids[1]
    assert pruned.teacher_ids[student.convert_tokens_to_ids("<new>")] == (
        teacher.convert_tokens_to_ids("<new>")
    )


@both
def test_single_characters_of_used_pieces_stay_in_both_forms(kind):
    teacher = TOKENIZERS[kind]
    vocabulary = teacher.get_vocab()
    mark = {"wordpiece": "##", "unigram": "\u2581"}[kind]
    pruned = prune_tokenizer(teacher, _used(teacher, [["harbour"]])).tokenizer.get_vocab()
    for character in "harbour":
        for form in (character, mark + character):
            assert (form in pruned) == (form in vocabulary)
    assert "ж" not in pruned


def test_a_dropped_lowest_score_does_not_make_the_unknown_token_cheaper():
    # "abcd" is ab + cd (-39). Unknown a + bcd costs -30 - 10 - 1; were q dropped, -20 - 10 - 1.
    scores = {"<unk>": 0.0, "ab": -20.0, "cd": -19.0, "bcd": -1.0, "q": -30.0, "zz": -2.0}
    scores |= {"b": -18.0, "c": -18.0, "d": -18.0}
    backend = Tokenizer(models.Unigram(list(scores.items()), unk_id=0))
    teacher = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    pruned = prune_tokenizer(teacher, _used(teacher, [["abcd"], ["bcd"]]))
    assert teacher.tokenize("abcd") == pruned.tokenizer.tokenize("abcd") == ["ab", "cd"]
    assert "zz" not in pruned.tokenizer.get_vocab()


UNNAMED = {
    "wordpiece": models.WordPiece({"zz": 0, "a": 1, "[UNK]": 2}, unk_token="[UNK]"),
    "unigram": models.Unigram([("zz", -1.0), ("a", -2.0), ("<unk>", -1.5)], unk_id=2),
}


@both
def test_an_unused_unknown_token_stays_and_stays_the_unknown_one(kind):
    teacher = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(UNNAMED[kind]))
    pruned = prune_tokenizer(teacher, np.array([False, True, False]))
    assert pruned.teacher_ids.tolist() == [1, 2]
    assert encode(pruned.tokenizer, [["a"], ["?"]], 9).ids.tolist() == [0, 1]


@pytest.mark.parametrize("style", ["BertProcessing", "RobertaProcessing", "Sequence"])
def test_every_kind_of_post_processor_gets_the_new_ids(style):
    teacher = _wordpiece()
    backend = teacher.backend_tokenizer
    # [CLS] and [SEP] are among the first ids, which pruning does not move; these two move.
    cls, sep = ("<new>", backend.token_to_id("<new>")), ("harbour", backend.token_to_id("harbour"))
    if style == "Sequence":
        ends = _template(cls[0], sep[0], backend)
        backend.post_processor = processors.Sequence([processors.ByteLevel(), ends])
    else:
        backend.post_processor = getattr(processors, style)(sep, cls)
    pruned = prune_tokenizer(teacher, _used(teacher, SENTENCES[:9]))
    expected = encode(teacher, SENTENCES[:2], 64)
    assert pruned.teacher_ids[encode(pruned.tokenizer, SENTENCES[:2], 64).ids].tolist() == (
        expected.ids.tolist()
    )
    assert (expected.ids[0], expected.ids[-1]) == (cls[1], sep[1])
    assert pruned.student_ids[cls[1]] != cls[1]
    raw = pruned.tokenizer(TEXT[0])["input_ids"]
    assert pruned.teacher_ids[raw].tolist() == teacher(TEXT[0])["input_ids"]


LOAD_ELSEWHERE = """
import json, sys
from transformers import AutoTokenizer
sentences = json.load(sys.stdin)
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(sentences, is_split_into_words=True)
    print(json.dumps([
        encoded["input_ids"], tokenizer.model_max_length, tokenizer.padding_side,
        tokenizer.model_input_names, tokenizer.special_tokens_map,
    ]))
assert "xdray" not in sys.modules
"""


def test_a_saved_pruned_tokenizer_is_the_same_in_a_process_without_xdray(tmp_path):
    folders, expected = [], []
    words = [list(words) for words in SENTENCES[::15]]
    for kind, types in {"wordpiece": ("electra", "bert"), "unigram": ("xlm-roberta", None)}.items():
        teacher = TOKENIZERS[kind]
        pruned = prune_tokenizer(teacher, _used(teacher, SENTENCES[:9])).tokenizer
        for model_type in types:
            folder = tmp_path / f"{kind}-{model_type}"
            pruned.save_pretrained(folder)
            if model_type:
                (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
            folders.append(str(folder))
            settings = [teacher.model_max_length, teacher.padding_side, teacher.model_input_names]
            ids = [ids for ids, _ in _sentences(encode(pruned, words, 1000))]
            expected.append([ids, *settings, teacher.special_tokens_map])
    run = subprocess.run(
        [sys.executable, "-c", LOAD_ELSEWHERE, *folders],
        input=json.dumps(words),
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert [json.loads(line) for line in run.stdout.splitlines()] == expected


def test_a_customised_normaliser_outlives_pruning_of_a_named_class(tmp_path):
    vocabulary = TOKENIZERS["wordpiece"].get_vocab()
    teacher = BertTokenizer({t: i for t, i in vocabulary.items() if t != "<new>"})
    custom = normalizers.Sequence([normalizers.Replace("harbor", "harbour"), normalizers.NFC()])
    teacher.backend_tokenizer.normalizer = custom
    pruned = prune_tokenizer(teacher, _used(teacher, [["the", "harbour"]]))
    pruned.tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).tokenize("the harbor") == ["the", "harbour"]


def test_byte_level_vocabularies_are_not_pruned():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_byte_level(True))
    with pytest.raises(ConfigError, match=r"BPE vocabulary.*set tokens\.vocabulary: full"):
        prune_tokenizer(tokenizer, np.ones(len(tokenizer), bool))


def test_a_table_with_fewer_rows_than_the_tokenizer_has_ids_is_refused():
    tokenizer = TOKENIZERS["unigram"]
    with pytest.raises(ConfigError, match=f"{len(tokenizer) - 1} rows"):
        prune_tokenizer(tokenizer, np.ones(len(tokenizer) - 1, bool))


def test_resegmented_and_unknown_words_are_counted_apart_by_occurrence():
    pieces = [
        "[UNK]",
        "playing",
        "play",
        "##ing",
        "p",
        "##l",
        "##a",
        "##y",
        "##i",
        "##n",
        "##g",
        "q",
    ]
    backend = Tokenizer(models.WordPiece({t: i for i, t in enumerate(pieces)}, unk_token="[UNK]"))
    teacher = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    student = prune_tokenizer(teacher, _used(teacher, [["play", "playing"]])).tokenizer
    everything = compare_segmentation(teacher, student, [["play", "q", "#"], ["q", "playing"]])
    assert everything == {"words": 5, "resegmented": 0, "unknown": 2}  # "#": unknown to both
    student = prune_tokenizer(teacher, _used(teacher, [["play", "ping"]])).tokenizer
    sentences = [["playing", "play"], ["playing", "q"]]
    assert compare_segmentation(teacher, student, sentences) == {
        "words": 4,
        "resegmented": 2,
        "unknown": 1,
    }


def test_importing_tokens_loads_neither_torch_nor_transformers():
    check = (
        "import sys, xdray.tokens; assert not {'torch', 'transformers', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
