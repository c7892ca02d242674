"""A run with a budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.harness import resume_run, run_job


@pytest.mark.slow  # unit tests cover the spent budget, and the controller's save and end
def test_a_spent_budget_saves_and_ends(toy_job: Path, shared_home: Path) -> None:
    """A resume completes the run, with a new budget."""
    settings = ["training.steps=120", "resources.price_per_hour=3.6", "budget.dollars=0.03"]  # 15 s of two workers
    job = run_job(toy_job, shared_home, *settings)
    first = job.finish()
    assert (first.code, first.facts["reason"]) == (1, "budget_spent"), first.facts
    assert first.facts["detail"].startswith("budget.dollars of 0.03 is spent; stopped after step ")
    spent = first.facts["account"]["dollars"]
    assert spent > 0.03
    reached = first.last_view["step"]
    assert 0 < reached < 120
    assert first.facts["checkpoint"].endswith(f"step-{reached:08}.g0001")
    again = resume_run(first.run_id, shared_home).finish()
    assert again.facts["reason"] in ("completed", "budget_spent")
    assert again.last_view["step"] > reached
    assert again.facts["account"]["dollars"] > spent
