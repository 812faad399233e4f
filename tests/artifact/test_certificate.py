import math

import pytest
import torch

from aot.artifact.certificate import check, compare, tolerance
from aot.errors import OutsideTolerance
from aot.request.mode import Mode


def test_equal_outputs_have_no_error() -> None:
    found = compare((torch.ones(3),), (torch.ones(3),))
    assert (found.max_abs, found.relative_l2, found.psnr) == (0, 0, None)


def test_the_error_is_in_its_units() -> None:
    found = compare(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0]))
    assert found.max_abs == 1
    assert found.relative_l2 == pytest.approx(1 / math.sqrt(5))
    assert found.psnr == pytest.approx(10 * math.log10(4 / 0.5))


@pytest.mark.parametrize("got", [torch.tensor([float("nan"), 1]), torch.ones(3), (torch.ones(2),), torch.tensor([float("inf"), 1])])
def test_nan_or_another_structure_is_infinitely_wrong(got: object) -> None:
    found = compare(got, torch.ones(2))
    assert found.relative_l2 == math.inf
    with pytest.raises(OutsideTolerance):
        check(found, what="it", allowed=1e9)


def test_low_precision_may_be_less_precise() -> None:
    assert tolerance(Mode.parse("O3"), "float32") > tolerance(Mode.parse("O2"), "float32")
    with pytest.raises(OutsideTolerance, match="relative L2"):
        check(compare(torch.tensor([1.1]), torch.tensor([1.0])), what="it", allowed=1e-5)
