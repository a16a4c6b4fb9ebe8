# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The average of the weights: its recursion, its precision, swapping, saving."""

import pytest
import torch
from torch import nn

from modeling_mdm.training.ema import (
    EMA_FILE,
    ExponentialMovingAverage,
    load_averaged_weights,
)


class TwoParameters(nn.Module):
    """A trained weight, a frozen one and a buffer."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=dtype))
        self.frozen = nn.Parameter(torch.full((2,), 7.0), requires_grad=False)
        self.register_buffer("statistics", torch.zeros(2))


def set_weight(model: TwoParameters, value: float) -> None:
    with torch.no_grad():
        model.weight.fill_(value)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9999])
def test_the_average_follows_its_recursion_with_warm_up(decay):
    model = TwoParameters()
    average = ExponentialMovingAverage(model, decay)
    expected = 0.0
    for n in range(50):
        value = float(n * n % 17)
        set_weight(model, value)
        average.update()
        decay_n = min(decay, (1 + n) / (10 + n))
        expected = decay_n * expected + (1 - decay_n) * value
    torch.testing.assert_close(average.averages["weight"], torch.full((3,), expected))
    assert average.num_updates == 50


def test_a_bfloat16_weight_is_averaged_in_float32():
    model = TwoParameters(torch.bfloat16)
    set_weight(model, 1.0)
    average = ExponentialMovingAverage(model, 0.999)
    average.num_updates = 10**6  # past the warm-up
    set_weight(model, 2.0)
    average.update()
    # bfloat16 has no number between 1 and 1.0078, so there the average would stand still for ever.
    assert average.averages["weight"].dtype == torch.float32
    torch.testing.assert_close(average.averages["weight"], torch.full((3,), 1.001))


def test_swapping_changes_the_parameters_alone_and_gives_them_back():
    model = TwoParameters()
    average = ExponentialMovingAverage(model, 0.0)
    set_weight(model, 5.0)
    average.update()
    set_weight(model, 6.0)
    model.statistics.fill_(3.0)
    with pytest.raises(KeyError), average.swapped_in():
        assert model.weight.tolist() == [5.0] * 3
        assert model.statistics.tolist() == [3.0] * 2
        assert model.frozen.tolist() == [7.0] * 2
        raise KeyError("the weights come back after an error, too")
    assert model.weight.tolist() == [6.0] * 3


def test_a_frozen_parameter_is_not_averaged():
    assert set(ExponentialMovingAverage(TwoParameters()).averages) == {"weight"}


def test_a_saved_average_goes_on_as_if_it_had_never_stopped(tmp_path):
    model = TwoParameters()
    average = ExponentialMovingAverage(model, 0.9)
    for n in range(5):
        set_weight(model, n)
        average.update()
    average.save(tmp_path / EMA_FILE)
    resumed = ExponentialMovingAverage(model, 0.9)
    resumed.load(tmp_path / EMA_FILE)
    for value in (9.0, 2.0):
        set_weight(model, value)
        average.update()
        resumed.update()
    assert torch.equal(average.averages["weight"], resumed.averages["weight"])
    assert average.num_updates == resumed.num_updates == 7


def test_averaged_weights_can_be_put_into_a_model(tmp_path):
    model = TwoParameters()
    average = ExponentialMovingAverage(model, 0.0)
    set_weight(model, 4.0)
    average.update()
    average.save(tmp_path / EMA_FILE)
    fresh = TwoParameters()
    load_averaged_weights(fresh, tmp_path)
    assert fresh.weight.tolist() == [4.0] * 3
    with pytest.raises(FileNotFoundError, match="ema_decay=0"):
        load_averaged_weights(fresh, tmp_path / "nowhere")


def test_the_average_of_another_model_is_refused(tmp_path):
    ExponentialMovingAverage(nn.Linear(2, 2)).save(tmp_path / EMA_FILE)
    with pytest.raises(ValueError, match=r"another model.*bias"):
        ExponentialMovingAverage(TwoParameters()).load(tmp_path / EMA_FILE)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay={decay}"):
        ExponentialMovingAverage(TwoParameters(), decay)
