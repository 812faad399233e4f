"""The bookkeeping around CUDA graphs, with a recorder that replays by running again: what it records reads and writes fixed memory too."""

from collections.abc import Callable

import torch

from aot.artifact.cudagraph import Replayed


class Rerun:
    """Records a function as itself, and what it returned as the memory that every replay writes to."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def record(self, function: Callable[[], list[torch.Tensor]]) -> tuple[list[torch.Tensor], Callable[[], None]]:
        self.recorded += 1
        outputs = function()

        def replay() -> None:
            self.replayed += 1
            for output, fresh in zip(outputs, function(), strict=True):
                output.copy_(fresh)

        return outputs, replay


def _linear(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    weight, x, t = tensors
    return [x @ weight + t[:, None]]


def _replayed() -> tuple[Replayed, Rerun, list[float]]:
    recorder, spent = Rerun(), list[float]()
    return Replayed(_linear, inputs=2, recorder=recorder, spent=spent.append), recorder, spent


def test_each_shape_is_recorded_once_and_replayed_with_the_inputs_of_its_call() -> None:
    replayed, recorder, spent = _replayed()
    weight = torch.randn(4, 3)
    for rows in (2, 5, 2, 5, 2):
        inputs = [weight, torch.randn(rows, 4), torch.tensor([7.0]).expand(rows)]
        assert torch.equal(replayed(inputs)[0], _linear(inputs)[0])
    assert (recorder.recorded, recorder.replayed, len(spent)) == (2, 5, 2)


def test_outputs_are_the_callers_own() -> None:
    replayed, _, _ = _replayed()
    weight, t = torch.randn(4, 3), torch.zeros(2)
    (first,) = replayed([weight, torch.ones(2, 4), t])
    kept = first.clone()
    replayed([weight, torch.zeros(2, 4), t])
    assert torch.equal(first, kept)


def test_a_weight_changed_in_place_is_read_and_one_replaced_is_recorded_anew() -> None:
    replayed, recorder, _ = _replayed()
    weight, x, t = torch.randn(4, 3), torch.randn(2, 4), torch.zeros(2)
    replayed([weight, x, t])
    weight.mul_(2)
    assert torch.equal(replayed([weight, x, t])[0], x @ weight)
    assert recorder.recorded == 1
    other = torch.randn(4, 3)
    assert torch.equal(replayed([other, x, t])[0], x @ other)
    assert recorder.recorded == 2
