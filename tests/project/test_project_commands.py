# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A command of this project that another one runs."""

import pytest
from project_commands import ROOT, run_command

SAY = "import os; print(os.getcwd(), os.environ['CUDA_VISIBLE_DEVICES'])"


def test_it_runs_from_the_root_and_sees_one_gpu(monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    run_command("-c", SAY)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    run_command("-c", SAY)
    assert capfd.readouterr().out.splitlines() == [f"{ROOT} 0", f"{ROOT} 2,3"]


def test_a_command_that_fails_is_named_and_its_reason_shown(capfd):
    end = r"code 3, its reason stands above: \S+ -c 'import sys; .*' --steps 5$"
    with pytest.raises(RuntimeError, match=end):
        run_command("-c", "import sys; print('the reason'); sys.exit(3)", "--steps", 5)
    assert capfd.readouterr().out == "the reason\n"


@pytest.mark.slow
def test_slow_tests_have_half_an_hour_whoever_runs_them(request):
    assert request.node.get_closest_marker("timeout").args[0] >= 1800
