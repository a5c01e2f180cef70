from __future__ import annotations

import numpy as np
import pytest

from backend.simulation.queue import Queue


def order(*pictures: int) -> np.ndarray:
    return np.array(pictures, np.int64)


def test_one_annotator_who_waits_for_each_refresh_labels_the_head_of_each_order() -> None:
    queue = Queue(annotators=1, delay=0)

    queue.refresh(order(0, 1, 2, 3, 4, 5))
    first = queue.annotate(2)
    queue.refresh(order(5, 4, 3, 2))
    second = queue.annotate(2)

    assert (first.tolist(), second.tolist()) == ([0, 1], [5, 4])


def test_a_picture_is_shown_to_one_annotator_and_stays_with_them_when_the_order_changes() -> None:
    queue = Queue(annotators=3, delay=0)

    queue.refresh(order(0, 1, 2, 3, 4, 5))
    first = queue.annotate(1)
    queue.refresh(order(5, 2, 1, 4, 3))
    second = queue.annotate(4)

    assert first.tolist() == [0]
    # 1 and 2 were on pages already.
    assert second.tolist() == [1, 2, 5, 4]


@pytest.mark.parametrize(("delay", "labelled"), [(0, [9, 8, 7]), (2, [3, 4, 9]), (3, [3, 4, 5])])
def test_the_queue_is_in_a_new_order_once_the_delay_is_over(
    delay: int, labelled: list[int]
) -> None:
    queue = Queue(annotators=1, delay=delay)

    queue.refresh(order(*range(10)))
    queue.annotate(3)
    queue.refresh(order(9, 8, 7, 6, 5, 4, 3))

    assert queue.annotate(3).tolist() == labelled


def test_a_refresh_that_is_under_way_is_not_given_up_for_the_next_one() -> None:
    queue = Queue(annotators=1, delay=3)

    queue.refresh(order(*range(10)))
    queue.annotate(1)
    queue.refresh(order(9, 8, 7, 6))
    queue.annotate(1)
    queue.refresh(order(6, 7, 8, 9))

    assert queue.annotate(5).tolist() == [2, 3, 9, 6, 7]


def test_everything_is_labelled_once_when_the_queue_runs_out() -> None:
    queue = Queue(annotators=3, delay=4)

    queue.refresh(order(4, 3, 2, 1, 0))
    first, second, third = queue.annotate(3), queue.annotate(3), queue.annotate(3)

    assert [first.tolist(), second.tolist(), third.tolist()] == [[4, 3, 2], [1, 0], []]
