from __future__ import annotations

import math

from worldlake.accuracy import auroc


def test_auroc_is_the_share_of_pairs_in_order_with_ties_half() -> None:
    # Of the four pairs of a right and a wrong label three are in order, and one is a tie.
    assert auroc([1.0, 2.0, 2.0, 3.0], [False, True, False, True]) == 3.5 / 4
    assert auroc([3.0, 1.0], [False, True]) == 0
    assert math.isnan(auroc([1.0, 2.0], [True, True]))
    assert math.isnan(auroc([], []))
