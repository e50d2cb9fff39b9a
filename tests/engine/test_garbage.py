"""The garbage collector is put back as it was."""

from __future__ import annotations

import gc

import pytest

from mini_infer.engine.garbage import undisturbed


@pytest.mark.parametrize("failing", [False, True])
def test_a_long_run_leaves_the_collector_as_it_was(failing: bool) -> None:
    threshold = gc.get_threshold()
    try:
        with undisturbed():
            assert gc.get_freeze_count() > 1000 and gc.get_threshold()[0] > threshold[0]
            if failing:
                raise KeyError
    except KeyError:
        pass
    assert gc.get_threshold() == threshold and gc.get_freeze_count() == 0


def test_what_others_have_frozen_stays_frozen() -> None:
    gc.freeze()
    threshold = gc.get_threshold()
    try:
        with undisturbed():
            assert gc.get_threshold() == threshold
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()


def test_runs_that_overlap() -> None:
    threshold = gc.get_threshold()
    first, second = undisturbed(), undisturbed()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert gc.get_threshold() == threshold and gc.get_freeze_count() == 0
