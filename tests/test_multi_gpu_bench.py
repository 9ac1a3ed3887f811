"""The model of a round's time in bench/multi_gpu.py."""
from dataclasses import replace

import pytest

from bench.multi_gpu import Constants, Plan, main, scaling, summed_bytes, times

FAST_LINK = Constants(read=0.04, crop=0.04, label=0.01, write=0.008, step=0.033, bandwidth=1e15, latency=0, merge=0)


def test_with_free_links_and_cores_enough_time_falls_as_processes_grow():
    plan = Plan(96_000, cores=16)
    alone = times(plan, FAST_LINK)
    assert alone.limit == "network"
    assert alone.round == pytest.approx(96_000 * 0.01 + 32_000 * 0.033)
    for count in (2, 4, 8):
        assert times(replace(plan, processes=count), FAST_LINK).round == pytest.approx(alone.round / count)


def test_accumulating_takes_the_steps_of_as_many_processes_in_the_time_of_one():
    one, added = Plan(96_000, cores=16), Plan(96_000, cores=16, accumulate=4)
    assert times(added, FAST_LINK).round == pytest.approx(times(one, FAST_LINK).round)


def test_few_cores_make_decoding_the_limit():
    found = times(Plan(96_000, cores=1), FAST_LINK)
    assert found.limit == "decoding"
    assert found.round == pytest.approx(96_000 * 0.04 + 32_000 * 3 * 0.04)


def test_a_slow_link_makes_the_sum_of_gradients_the_limit():
    slow = replace(FAST_LINK, bandwidth=1e9)
    assert summed_bytes(Plan(1, processes=2), slow) == 4 * slow.parameters  # a ring of two sends them once
    assert times(Plan(96_000, processes=2, cores=16), slow).limit == "summing gradients"
    assert times(Plan(96_000, cores=16), slow).limit == "network"


def test_the_table_has_a_row_for_each_number():
    lines = scaling(Plan(2975), FAST_LINK, [1, 16]).splitlines()
    assert len(lines) == 4 and lines[2].startswith("| 1 |") and lines[3].startswith("| 16 |")


@pytest.mark.slow
def test_the_command_measures_and_prints(capsys):
    main(["--quick", "--images", "10", "--processes", "2"])
    assert "| bandwidth |" in (text := capsys.readouterr().out) and "10 images" in text
