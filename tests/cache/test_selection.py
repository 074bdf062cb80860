import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scalekv.cache.selection import copy_rows, flat_positions, survivors


def naive(score: torch.Tensor, capacity: int) -> torch.Tensor:
    order = sorted(range(len(score)), key=lambda index: (-float(score[index]), index))
    return torch.tensor(sorted(order[:capacity]))


@given(st.data())
def test_best_survive_in_order_and_ties_go_to_the_older(data):
    values = data.draw(
        st.lists(st.sampled_from([0.0, 1.0, 2.5, -3.0, float("inf"), -float("inf")]), min_size=1, max_size=30)
    )
    capacity = data.draw(st.integers(1, len(values)))
    score = torch.tensor(values)
    assert torch.equal(survivors(score, capacity), naive(score, capacity))


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 200), st.integers(0, 2**31))
def test_exactly_capacity_distinct_ascending_per_head(rows, heads, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    score = torch.randint(0, 9, (rows, heads, tokens), generator=generator).float()
    capacity = int(torch.randint(1, tokens + 1, (), generator=generator))
    index = survivors(score, capacity)
    assert index.shape == (rows, heads, capacity)
    assert (index[..., 1:] > index[..., :-1]).all()
    for row in range(rows):
        for head in range(heads):
            assert torch.equal(index[row, head], naive(score[row, head], capacity))


def test_permuting_heads_permutes_results():
    score = torch.rand(2, 5, 40)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.equal(survivors(score[:, order], 7), survivors(score, 7)[:, order])


def test_nan_counts_as_lowest():
    score = torch.tensor([float("nan"), 1.0, float("nan"), 0.5])
    assert survivors(score, 2).tolist() == [1, 3]
    assert survivors(score, 3).tolist() == [0, 1, 3]


@pytest.mark.parametrize("channels", [(), (5,)])
def test_copied_rows_are_the_chosen_ones(channels):
    source = torch.rand(2, 3, 11, *channels)
    index = survivors(torch.rand(2, 3, 11), 4)
    expected = torch.stack([torch.stack([source[r, h, index[r, h]] for h in range(3)]) for r in range(2)])
    assert torch.equal(copy_rows(source, flat_positions(index.clone(), 11)), expected)
