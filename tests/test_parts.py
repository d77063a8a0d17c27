"""parts: what a file of the store holds, and whatever can be wrong with it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xdray.errors import ClusterError, TargetsError
from xdray.hidden import Hidden
from xdray.parts import PartFile

SHARD = "0123456789abcdef" * 2
LENGTHS = np.array([3, 1, 4] * 200, np.uint16)
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS, dtype=np.int64)])
N = int(OFFSETS[-1])
RANDOM = np.random.default_rng(0)
STATES = RANDOM.integers(-127, 128, (N, 5)).astype(np.int8)
SCALES = RANDOM.random(N, np.float32)
LOGITS = RANDOM.standard_normal((N, 3)).astype(np.float32)
IDS = np.arange(N, dtype=np.int32)
NAMES = [f"{SHARD[:16]}-{row}" for row in range(600)]


def logits_file(folder: Path, key: str = "k", names: list[str] = NAMES) -> PartFile:
    file = PartFile(str(folder), key, SHARD, "logits", 600)
    texts = {"sentence_id": names, "language": ["en"] * 600}
    flat = {"ids": IDS, "word_ids": -IDS, "logits": LOGITS}
    facts = {"cut_words": 7, "width": 3, "layer": None, "codec": None, "codec_error": None}
    file.write(texts, flat, OFFSETS, facts)
    return file


def hidden_file(folder: Path) -> PartFile:
    file = PartFile(str(folder), "k", SHARD, "hidden-4-int8", 600)
    facts = {"cut_words": 7, "width": 5, "layer": 4, "codec": "int8", "codec_error": 0.01}
    file.write({"sentence_id": NAMES}, {"hidden": STATES, "scales": SCALES}, OFFSETS, facts)
    return file


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    file = logits_file(tmp_path)
    flat = file.read(["ids", "word_ids", "logits"], LENGTHS)
    assert np.array_equal(flat["ids"][:, 0], IDS)
    assert np.array_equal(flat["word_ids"][:, 0], -IDS)
    assert np.array_equal(flat["logits"], LOGITS)
    assert file.lengths().dtype == np.uint16
    assert np.array_equal(file.lengths(), LENGTHS)
    hidden = hidden_file(tmp_path).hidden(LENGTHS)
    index = np.array([N - 1, 0, 17, 17])
    expected = STATES[index].astype(np.float32) * SCALES[index][:, None]
    assert np.array_equal(hidden.take(index), expected)
    assert hidden.take(index).dtype == np.float32


def test_logits_of_sentences_are_read_from_any_row_group_on(tmp_path: Path) -> None:
    file = PartFile(str(tmp_path), "k", SHARD, "logits", 600)
    facts = {"cut_words": 7, "width": 3, "codec": None, "codec_error": None, "by_sentence": True}
    flat = {"ids": IDS, "word_ids": IDS, "logits": LOGITS[:600]}
    file.write({"sentence_id": NAMES, "language": ["en"] * 600}, flat, OFFSETS, facts)
    for start, stop in ((0, 600), (256, 512)):
        found = file.read(["logits", "ids"], LENGTHS[start:stop], start)
        assert np.array_equal(found["logits"], LOGITS[start:stop])
        assert np.array_equal(found["ids"][:, 0], IDS[OFFSETS[start] : OFFSETS[stop]])


def test_whole_row_groups_are_read_alone(tmp_path: Path) -> None:
    """600 rows in groups of 256, 256 and 88; a stretch of rows that cuts one is an error."""
    logits, hidden = logits_file(tmp_path), hidden_file(tmp_path)
    for start, stop in ((0, 256), (256, 600), (512, 600), (0, 512)):
        place = slice(OFFSETS[start], OFFSETS[stop])
        flat = logits.read(["ids", "logits"], LENGTHS[start:stop], start)
        assert np.array_equal(flat["ids"][:, 0], IDS[place])
        assert np.array_equal(flat["logits"], LOGITS[place])
        states = hidden.hidden(LENGTHS[start:stop], start)
        assert np.array_equal(states.values, STATES[place])
        assert states.scales is not None
        assert np.array_equal(states.scales, SCALES[place])
    for start, stop in ((0, 255), (0, 257), (3, 256), (255, 600), (512, 599), (600, 601)):
        its = np.resize(LENGTHS, 700)[start:stop]
        with pytest.raises(TargetsError, match=r"\((no row group|rows|\d+ sentences)"):
            logits.read(["ids"], its, start)


def test_a_basis_lies_in_the_file_of_its_shard(tmp_path: Path) -> None:
    values = RANDOM.standard_normal((N, 2)).astype(np.float16)
    basis = RANDOM.standard_normal((3, 5)).astype(np.float32)
    file = PartFile(str(tmp_path), "k", SHARD, "hidden-4-pca2", 600)
    facts = {"cut_words": 7, "width": 2, "layer": 4, "codec": "pca2", "codec_error": 0.01}
    file.write({"sentence_id": NAMES}, {"hidden": values}, OFFSETS, facts, basis)
    index = np.array([N - 1, 0, 17, 17])
    expected = values[index].astype(np.float32) @ basis[1:] + basis[0]
    assert np.allclose(file.hidden(LENGTHS).take(index), expected, rtol=1e-5, atol=1e-6)
    last = file.hidden(LENGTHS[512:], 512).take(index[:1] - OFFSETS[512])
    assert np.allclose(last, expected[:1], rtol=1e-5, atol=1e-6)
    assert file.verify() == 600
    file.write({"sentence_id": NAMES}, {"hidden": values}, OFFSETS, facts)
    with pytest.raises(TargetsError, match="its basis"):
        file.verify()


def test_float16_rows_are_decoded_one_for_one() -> None:
    values = RANDOM.standard_normal((9, 4)).astype(np.float16)
    taken = Hidden(values).take(np.array([8, 2]))
    assert taken.tolist() == [[float(v) for v in values[8]], [float(v) for v in values[2]]]


def test_a_file_passes_through_no_memory(tmp_path: Path) -> None:
    lengths = np.full(600, 40, np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.zeros((24_000, 500), np.float16)
    file = PartFile(str(tmp_path), "k", SHARD, "hidden-4-float16", 600)
    facts = {"cut_words": 0, "width": 500, "layer": 4, "codec": "float16", "codec_error": 0.0}
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        written = file.write({"sentence_id": NAMES}, {"hidden": values}, offsets, facts)
    finally:
        pa.set_memory_pool(before)
    assert written == Path(file.uri).stat().st_size > values.nbytes == 24_000_000
    assert pool.max_memory() < 20_000_000  # pages of the row group that is being written


@pytest.mark.parametrize("times", [1, 100])  # the last flush finds it; a write half-way does
def test_a_full_disk_leaves_no_file(tmp_path: Path, times: int) -> None:
    file = PartFile(str(tmp_path), "k", SHARD, "hidden-4-float16", 3)
    uri = Path(file.uri)
    uri.parent.mkdir(parents=True)
    (uri.parent / f".{uri.name}.0.tmp").symlink_to("/dev/full")
    values, offsets = np.zeros((6 * times, 500), np.float16), 2 * times * np.arange(4)
    facts = {"cut_words": 0, "width": 500, "layer": 4, "codec": "float16", "codec_error": 0.0}
    with pytest.raises(ClusterError, match=r"float16\.parquet: the disk is full: [\d,]+ bytes"):
        file.write({"sentence_id": NAMES[:3]}, {"hidden": values}, offsets, facts)
    assert list(uri.parent.iterdir()) == []


def test_the_file_is_plain_parquet_in_the_stated_layout(tmp_path: Path) -> None:
    file = logits_file(tmp_path)
    assert file.uri == f"{tmp_path}/shards/01/{SHARD}.logits.parquet"
    raw = pq.ParquetFile(file.uri)
    columns = ["sentence_id", "language", "length", "ids", "word_ids", "logits"]
    assert raw.schema_arrow.names == columns
    assert [raw.metadata.row_group(group).num_rows for group in range(3)] == [256, 256, 88]
    chunk = raw.metadata.row_group(0).column(5)
    assert chunk.compression == "UNCOMPRESSED"
    assert not any("DICTIONARY" in encoding for encoding in chunk.encodings)
    blob = raw.read()["logits"][2].as_py()
    assert np.frombuffer(blob, "<f4").tolist() == LOGITS[4:8].ravel().tolist()
    footer = file.footer()
    assert footer["bytes"] == Path(file.uri).stat().st_size
    assert {name: footer[name] for name in ("shard_id", "key", "part", "rows", "tokens")} == {
        "shard_id": SHARD,
        "key": "k",
        "part": "logits",
        "rows": 600,
        "tokens": N,
    }


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    first, second = logits_file(tmp_path / "a"), logits_file(tmp_path / "b")
    assert Path(first.uri).read_bytes() == Path(second.uri).read_bytes()


def test_a_file_of_another_shard_store_part_or_size_is_refused(tmp_path: Path) -> None:
    file = logits_file(tmp_path)
    file.footer()
    with pytest.raises(TargetsError, match="600 rows"):
        PartFile(str(tmp_path), "k", SHARD, "logits", 599).footer()
    with pytest.raises(TargetsError, match=r"expected .*'key': 'other'"):
        PartFile(str(tmp_path), "other", SHARD, "logits", 600).footer()
    other = PartFile(str(tmp_path), "k", "01" + "f" * 30, "logits", 600)
    Path(file.uri).rename(other.uri)
    with pytest.raises(TargetsError, match=r"expected .*ffff"):
        other.footer()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = PartFile(str(tmp_path), "k", SHARD, "logits", 600)
    with pytest.raises(TargetsError, match=rf"{SHARD}\.logits\.parquet: not there; run the same"):
        file.footer()


@pytest.mark.parametrize("token", [0, N // 2, N - 1])
def test_one_flipped_bit_is_found_and_the_file_named(tmp_path: Path, token: int) -> None:
    file = hidden_file(tmp_path)
    data = bytearray(Path(file.uri).read_bytes())
    data[data.find(STATES[token].tobytes())] ^= 16
    Path(file.uri).write_bytes(data)
    with pytest.raises(TargetsError, match=r"hidden-4-int8\.parquet: damaged .*delete it and run"):
        file.hidden(LENGTHS)
    with pytest.raises(TargetsError, match="damaged or unreadable"):
        file.verify()


@pytest.mark.parametrize("keep", [0, 3, 1000, -1])
def test_a_file_cut_short_is_not_taken_for_a_part(tmp_path: Path, keep: int) -> None:
    file = hidden_file(tmp_path)
    Path(file.uri).write_bytes(Path(file.uri).read_bytes()[:keep])
    with pytest.raises(TargetsError, match="damaged or unreadable"):
        file.footer()


@pytest.mark.parametrize("gone", [1, 5000])
def test_a_file_without_its_beginning_is_not_taken_for_a_part(tmp_path: Path, gone: int) -> None:
    file = logits_file(tmp_path)
    path = Path(file.uri)
    path.write_bytes(path.read_bytes()[gone:])  # the footer at its end is whole
    with pytest.raises(TargetsError, match=r"bytes, its footer speaks of \d+"):
        file.footer()


def test_other_lengths_than_the_plan_knows_are_refused(tmp_path: Path) -> None:
    file = logits_file(tmp_path)
    swapped = LENGTHS.copy()
    swapped[[300, 301]] = swapped[[301, 300]]
    with pytest.raises(TargetsError, match="lengths of other sentences"):
        file.read(["ids"], swapped)


def test_verifying_reads_all_and_compares_sentence_ids(tmp_path: Path) -> None:
    assert logits_file(tmp_path).verify() == 600
    assert hidden_file(tmp_path).verify() == 600
    swapped = [NAMES[1], NAMES[0], *NAMES[2:]]
    with pytest.raises(TargetsError, match="sentence ids of another shard"):
        logits_file(tmp_path, names=swapped).verify()


def respelt(file: PartFile, footer: object = None, **columns: pa.Array) -> None:
    """Write a file anew, whole, with another footer or other columns."""
    table = pq.read_table(file.uri)
    metadata = table.schema.metadata or {}
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    text = metadata[b"xdray"] if footer is None else json.dumps(footer)
    pq.write_table(table.replace_schema_metadata({"xdray": text}), file.uri, compression="none")


@pytest.mark.parametrize(
    "changed",
    [
        {"width": None},
        {"width": -1},
        {"width": 10**12},
        {"width": "5"},
        {"tokens": True},
        {"codec": "float32"},
        {"codec": 3},
        {"cut_words": None},
    ],
)
def test_a_footer_that_no_store_wrote_is_refused(tmp_path: Path, changed: dict) -> None:
    file = hidden_file(tmp_path)
    footer = {name: its for name, its in file.footer().items() if name != "bytes"}
    respelt(file, footer | changed)
    for read in (file.verify, lambda: file.hidden(LENGTHS)):
        with pytest.raises(TargetsError, match=r"hidden-4-int8\.parquet: damaged"):
            read()
    respelt(file, {name: its for name, its in footer.items() if name not in changed})
    with pytest.raises(TargetsError, match="damaged"):
        file.hidden(LENGTHS)


def test_a_footer_that_is_no_object_is_refused(tmp_path: Path) -> None:
    file = hidden_file(tmp_path)
    respelt(file, [])
    with pytest.raises(TargetsError, match="damaged"):
        file.footer()


def test_columns_of_other_types_are_refused(tmp_path: Path) -> None:
    file = logits_file(tmp_path)
    lengths = pa.array(LENGTHS.astype(np.int32))
    wrong = [
        {"length": pa.nulls(600, pa.int32())},
        {"length": lengths.cast(pa.float32())},
        {"length": pa.array(LENGTHS.astype(np.int32) - 65536)},
        {"length": pa.array([str(its) for its in LENGTHS])},
    ]
    for columns in wrong:
        respelt(logits_file(tmp_path), **columns)
        for read in (file.lengths, file.verify, lambda: file.read(["ids"], LENGTHS)):
            with pytest.raises(TargetsError, match="damaged"):
                read()
    blobs = pq.read_table(logits_file(tmp_path).uri)["ids"]
    for column in (pa.nulls(600), pa.array(["x"] * 600), blobs.cast(pa.binary())):
        respelt(logits_file(tmp_path), ids=column)
        with pytest.raises(TargetsError, match="damaged"):
            file.verify()
    respelt(logits_file(tmp_path), sentence_id=pa.array([b"\xff"] * 600).view(pa.string()))
    with pytest.raises(TargetsError, match="damaged"):
        file.verify()
