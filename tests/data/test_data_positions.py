import pytest
import torch

from augment.draws import sample_key
from distill.data.positions import Positions


def test_each_sample_is_located_by_its_id_in_any_order():
    names = [f"train/{number}" for number in (5, 2, 9, 0)]
    positions = Positions(names)
    order = [2, 0, 3, 3, 1]
    assert positions(torch.tensor([sample_key(names[position]) for position in order])).tolist() == order


def test_a_stranger_is_named():
    strange = sample_key("test/1")
    with pytest.raises(ValueError, match=rf"1 of 2 samples are not in the training split, e\.g\. {strange}"):
        Positions(["a", "b"])(torch.tensor([sample_key("a"), strange]))
