"""Batches: budgets, padding, held-out sentences, and the same plan on every rank."""

import itertools
import weakref
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xdray.batch_plan import BatchPlan, Block, id_draws
from xdray.batches import collate
from xdray.errors import TargetsError
from xdray.labels import IGNORE_INDEX
from xdray.loader import Loader
from xdray.padding import token_budget_batches
from xdray.tokenised import Signal, Tokens


class Table:
    """Hidden states whose row i is filled with i."""

    def take(self, index: np.ndarray) -> np.ndarray:
        return np.repeat(index[:, None], 2, axis=1).astype(np.float32)


class Shards:
    """A source in memory. Token ids count up from 10 over all shards, so each is its own name."""

    def __init__(self, lengths: list[list[int]], block_rows: int = 100) -> None:
        self._lengths = [np.array(part, dtype=np.int64) for part in lengths]
        self.block_rows = block_rows
        self.loaded: list[Block] = []

    def shard_lengths(self) -> list[np.ndarray]:
        return self._lengths

    def shard_ids(self) -> list[str]:
        return [f"shard-{number}" for number in range(len(self._lengths))]

    forwarded = 0

    def read(self, blocks: Iterable[Block], layers: Sequence[Signal]) -> Generator[Tokens]:
        yield from (self.load(block, layers) for block in blocks)

    def read_rows(self, parts: Sequence[Any], layers: Sequence[Signal]) -> Iterator[Any]:
        yield from ((self.whole(shard, layers), rows) for shard, rows in parts)

    def whole(self, shard: int, layers: Sequence[Signal] = ()) -> Tokens:
        return self.load(Block(shard, 0, len(self._lengths[shard])), layers)

    def load(self, block: Block, layers: Sequence[Signal]) -> Tokens:
        self.loaded.append(block)
        shard, start, stop = block
        lengths = self._lengths[shard][start:stop]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        before = [*self._lengths[:shard], self._lengths[shard][:start]]
        first = 10 + sum(int(part.sum()) for part in before)
        ids = np.arange(first, first + offsets[-1], dtype=np.int32)
        word_ids = np.concatenate([np.arange(n) - 1 for n in lengths]).astype(np.int32)
        word_ids[offsets[1:] - 1] = -1  # the last token is special too
        logits = np.repeat(ids[:, None], 3, axis=1).astype(np.float32)
        return Tokens(ids, word_ids, offsets, logits, {layer: Table() for layer in layers})


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=80), budget=st.integers(1, 200))
def test_batches_keep_every_sentence_once_and_the_budget(lengths: list[int], budget: int):
    batches = token_budget_batches(np.array(lengths), budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) == 1 or longest * len(batch) <= budget
    for batch, following in itertools.pairwise(batches):  # else steps had ever new shapes
        assert lengths[following[0]] * (len(batch) + 1) > budget


def test_a_source_that_ends_early_is_an_error():
    class Short(Shards):
        def read(self, blocks: Iterable[Block], layers: Sequence[Signal]) -> Generator[Tokens]:
            yield from super().read(itertools.islice(blocks, 1), layers)

    with pytest.raises(TargetsError, match="ended 1 blocks of shards too early"):
        list(Loader(_plan(Short(LENGTHS[:2])), (), 0, None).batches(0))


def test_one_window_at_a_time_is_in_memory():
    class Watched(Shards):
        def load(self, block: Block, layers: Sequence[Signal]) -> Tokens:
            tokens = super().load(block, layers)
            loaded.append(weakref.ref(tokens))
            most.append(sum(its() is not None for its in loaded))
            return tokens

    loaded: list[weakref.ref[Tokens]] = []
    most: list[int] = []
    for _ in Loader(_plan(Watched([[3, 4]] * 6, 1), window_tokens=7), (), 0, None).batches(0):
        pass
    assert len(most) == 12
    assert max(most) == 2  # blocks of a window


def test_ranks_with_shards_of_their_own_take_equal_steps_and_see_all():
    sources = [Shards([LENGTHS[0], LENGTHS[2]]), Shards([LENGTHS[3]])]
    plans = [_plan(source) for source in sources]
    loaders = [
        Loader(plan, (), 0, None, others=tuple(p for p in plans if p is not plan)) for plan in plans
    ]
    shares = [list(loader.batches(epoch=0)) for loader in loaders]
    assert len(shares[0]) == len(shares[1]) == max(plan.num_steps(0) for plan in plans)
    assert plans[1].num_steps(0) < plans[0].num_steps(0)
    for share, source in zip(shares, sources, strict=True):
        every = [
            tokens for number in range(len(source.shard_ids())) for tokens in [source.whole(number)]
        ]
        assert _seen(share) == sorted(
            int(token) for tokens in every for token in tokens.ids[tokens.word_ids >= 0]
        )
    late = list(loaders[1].batches(epoch=0, start=len(shares[0]) - 1))
    assert len(late) == 1
    assert len(late[0].kept) == 0


def test_collating_pads_after_mapping_ids_and_keeps_no_special_token():
    tokens = Shards([[3, 5]]).whole(0, (4,))
    id_map = np.arange(100)[::-1].copy()
    batch = collate([(tokens, np.array([0, 1]))], pad_id=7, id_map=id_map)
    assert batch.input_ids.tolist() == [[89, 88, 87, 7, 7], [86, 85, 84, 83, 82]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    kept = batch.input_ids.flatten()[batch.kept]
    assert kept.tolist() == [88, 85, 84, 83]
    assert batch.logits is not None
    assert batch.logits[:, 0].tolist() == [11, 14, 15, 16]
    assert batch.first.tolist() == [0, 1, 2, 3]
    assert batch.hidden[4][:, 0].tolist() == [1, 4, 5, 6]


def _plan(source: Shards, **settings: float) -> BatchPlan:
    values = {"batch_tokens": 24, "window_tokens": 45, "seed": 3, **settings}
    return BatchPlan(source, **values)  # type: ignore[arg-type]


def _seen(batches: list) -> list[int]:
    return sorted(
        token for batch in batches for token in batch.input_ids.flatten()[batch.kept].tolist()
    )


LENGTHS = [[3, 4, 5, 6, 7], [3, 3, 9], [4] * 10, [5, 5]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_share_each_global_batch_and_take_equal_steps(world_size: int):
    plan = _plan(Shards(LENGTHS))
    loaders = [Loader(plan, (), 0, None, rank, world_size) for rank in range(world_size)]
    shares = [list(loader.batches(epoch=1)) for loader in loaders]
    whole = list(Loader(plan, (), 0, None).batches(epoch=1))
    assert {len(share) for share in shares} == {len(whole)} == {plan.num_steps(1)}
    for step, batch in enumerate(whole):
        assert _seen([share[step] for share in shares]) == _seen([batch])


def test_a_rank_without_rows_joins_the_step_with_nothing_scored():
    plan = _plan(Shards([[20]]))
    (batch,) = Loader(plan, (1,), 0, None, rank=1, world_size=2).batches(0)
    assert batch.input_ids.shape == (1, 20)
    assert len(batch.kept) == 0
    assert batch.hidden[1].shape == (0, 2)


def test_an_epoch_continued_at_a_step_gives_the_same_batches_and_reads_no_earlier_window():
    source = Shards(LENGTHS)
    loader = Loader(_plan(source), (), 0, None)
    whole = [batch.input_ids for batch in loader.batches(2)]
    first, *others = loader.plan.windows(2)
    first_window = len(first[1])
    source.loaded.clear()
    rest = [batch.input_ids for batch in loader.batches(2, start=first_window)]
    assert source.loaded == [block for blocks, _ in others for block in blocks]
    assert len(source.loaded) == 2  # of 4
    for left, right in zip(whole[first_window:], rest, strict=True):
        assert torch.equal(left, right)


@given(
    lengths=st.lists(st.lists(st.integers(3, 9), min_size=1, max_size=12), min_size=1, max_size=6),
    block_rows=st.integers(1, 5),
    window_tokens=st.integers(1, 60),
    share=st.sampled_from([0.1, 0.5, 1.0]),
)
def test_epochs_in_one_go_have_every_sentence_once_in_windows_of_blocks_of_many_shards(
    lengths: list[list[int]], block_rows: int, window_tokens: int, share: float
):
    """Some windows have no row that is learnt from."""
    source = Shards(lengths, block_rows)
    plan = _plan(source, window_tokens=window_tokens, held_out=0.2, share=share)
    allowed = []
    for shard, its in enumerate(lengths):
        draws = id_draws(f"shard-{shard}", 0, len(its))
        tokens = source.whole(shard)
        for row in np.flatnonzero((draws >= 0.2) & (draws < 0.2 + share * 0.8)):
            at = slice(tokens.offsets[row], tokens.offsets[row + 1])
            allowed += tokens.ids[at][tokens.word_ids[at] >= 0].tolist()
    source.loaded.clear()
    loader = Loader(plan, (), 0, None, epochs=3)
    for epoch in range(3):
        batches = list(loader.batches(epoch))
        assert len(batches) == plan.num_steps(epoch)
        assert _seen(batches) == sorted(allowed)
    read = [block for epoch in range(3) for block in plan.order(epoch)]
    assert source.loaded == read[-len(source.loaded) :] if allowed else not source.loaded

    def tokens_of(*blocks: Block) -> int:
        return sum(sum(lengths[shard][start:stop]) for shard, start, stop in blocks)

    windows = [blocks for blocks, _ in plan.windows(1)]
    for blocks, after in itertools.zip_longest(windows, windows[1:]):
        assert tokens_of(*blocks) <= window_tokens or len(blocks) == 1
        assert after is None or tokens_of(*blocks, after[0]) > window_tokens
        assert all(stop - start <= block_rows for _, start, stop in blocks)


def test_epochs_come_in_other_orders():
    loader = Loader(_plan(Shards(LENGTHS)), (), 0, None)
    orders = [[b.input_ids.tolist() for b in loader.batches(epoch)] for epoch in (0, 1)]
    assert orders[0] != orders[1]


def test_held_out_sentences_are_never_trained_on():
    source = Shards([[4] * 200, [5] * 200])
    loader = Loader(_plan(source, held_out=0.2), (), 0, None)
    trained, held = _seen(list(loader.batches(0))), _seen(loader.held_out())
    assert not set(trained) & set(held)
    assert len(set(trained)) + len(set(held)) == 200 * 2 + 200 * 3
    assert 0.1 < len(held) / (len(trained) + len(held)) < 0.3


def test_held_out_batches_are_full_over_all_shards_and_shared_by_ranks():
    source = Shards([[3, 4, 5, 6] * 5] * 30)
    plan = _plan(source, held_out=0.2)
    batches = Loader(plan, (4,), 0, None).held_out()
    shapes = [batch.input_ids.shape for batch in batches]
    assert len(shapes) > 20
    for (rows, _), (_, length) in itertools.pairwise(shapes):
        assert (rows + 1) * length > 24  # another sentence would not fit
    shares = [Loader(plan, (4,), 0, None, rank, 3).held_out() for rank in range(3)]
    whole, shared = _seen(batches), _seen([batch for share in shares for batch in share])
    assert shared == whole
    assert len(whole) == len(set(whole)) > 200
    for batch in [*batches, *shares[2]]:
        ids = batch.input_ids.flatten()[batch.kept]
        assert batch.logits is not None
        assert batch.logits[:, 0].tolist() == ids.tolist()
        assert batch.hidden[4][:, 0].tolist() == ((ids - 10) % 90).tolist()


def test_no_more_are_held_out_than_stay_in_memory():
    plan = _plan(Shards([[3] * 10_000] * 3), held_out=0.4)
    assert 900 < len(plan.held_out_batches()[0]) < 1_100
    plan = _plan(Shards([[500] * 10_000]), held_out=0.4)
    assert 50_000 < 500 * len(plan.held_out_batches()[0]) < 80_000


def test_held_out_is_decided_by_the_id_alone():
    longer, some = id_draws("abc", 0, 500), id_draws("abc", 100, 200)
    assert longer[100:200].tolist() == some.tolist()
    assert id_draws("abd", 0, 500).tolist() != longer.tolist()
    late = id_draws("abc", 70_000, 70_001)[0]
    assert late * 2**32 == zlib.crc32(b"abc" + (70_000).to_bytes(4, "little"))


def test_a_smaller_share_is_part_of_a_larger_one_and_held_out_sentences_stay_the_same():
    shards = Shards([[3, 5, 4] * 100, [6] * 200])
    seen, held = {}, set()
    for share in (0.25, 0.5, 1.0):
        plan = BatchPlan(shards, 60, 10**6, seed=0, held_out=0.1, share=share)
        seen[share] = {
            (blocks[owner], row)
            for blocks, batches in plan.windows(0)
            for batch in batches
            for owner, row in batch.tolist()
        }
        held.add(str(plan.held_out_batches()[:2]))
    assert seen[0.25] < seen[0.5] < seen[1.0]
    assert len(held) == 1
    assert 0.4 < len(seen[0.5]) / len(seen[1.0]) < 0.6


def test_first_tokens_of_words_are_marked_across_sentences():
    """[CLS] w0 w0 w1 [SEP] | w0 (no special tokens): kept are w0 w0 w1 | w0."""
    word_ids = np.array([-1, 0, 0, 1, -1, 0], dtype=np.int32)
    tokens = Tokens(np.arange(6, dtype=np.int32), word_ids, np.array([0, 5, 6]))
    assert collate([(tokens, np.array([0, 1]))], 0, None).first.tolist() == [0, 2, 3]


def test_labels_that_are_ignored_are_not_counted():
    tokens = Shards([[4, 4]]).whole(0)
    labels = np.full(8, IGNORE_INDEX, dtype=np.int64)
    labels[1] = 2
    tokens.labels = labels
    batch = collate([(tokens, np.array([0, 1]))], 0, None)
    assert batch.num_labels == 1
    assert batch.labels is not None
    assert batch.labels.tolist() == [2, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX]


@pytest.mark.parametrize("of", ["tokens", "sentences", "stretches"])
def test_a_batch_of_selected_sentences_is_that_of_the_same_rows(of: str):
    tokens = Shards([[3, 5, 4, 6]]).whole(0, (4, "qkv-2"))
    number = np.arange(len(tokens.ids), dtype=np.int32)
    tokens.labels, tokens.spans = number.astype(np.int64), np.stack([number, number], 1)
    if of == "sentences":
        tokens.keeps_special = tokens.sentence_logits = tokens.sentence_labels = True
        tokens.labels, tokens.logits = np.arange(4), np.eye(4, dtype=np.float32)
    elif of == "stretches":
        tokens.matches = np.where(number % 2, number, -1).astype(np.int32)
    rows = np.array([3, 1])
    chosen = tokens.select(rows)
    assert chosen.spans is not None
    assert chosen.spans[:, 0].tolist() == tokens.places(rows).tolist()
    one, other = collate([(chosen, np.arange(2))], 0, None), collate([(tokens, rows)], 0, None)
    for name, value in vars(one).items():
        expected = getattr(other, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, expected), name
        elif name == "hidden":
            assert [*value] == [4, "qkv-2"]
            assert all(torch.equal(value[layer], expected[layer]) for layer in value)
        elif name == "pieces" and value is not None:
            assert all(map(torch.equal, value, expected))
        else:
            assert value == expected, name
    assert one.hidden[4].any()
