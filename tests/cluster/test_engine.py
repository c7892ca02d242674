"""Engine settings that must not change the results."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.harness import Result, run_job


@pytest.mark.parametrize(
    "settings",
    [
        ["zero_stage=3", "offload={optimizer: cpu, parameters: cpu}", "activation_checkpointing=true"],
        ["zero_stage=1", "compile=eager"],
    ],
    ids=["offloaded", "compiled"],
)
def test_where_and_how_it_is_computed(
    toy_job: Path, shared_home: Path, undisturbed: Result, settings: list[str]
) -> None:
    result = run_job(toy_job, shared_home, *(f"training.{setting}" for setting in settings)).finish()
    assert result.code == 0, result.facts
    assert result.series("loss") == pytest.approx(undisturbed.series("loss"), abs=2e-4)


@pytest.mark.slow
def test_packed_documents_weigh_by_their_tokens(toy_job: Path, shared_home: Path) -> None:
    """Seven samples on one or two workers, in micro-batches of unequal length: the mean over all tokens is the same."""
    settings = ["data.packing=fit", "data.format=csv", "training.global_batch_size=7", "training.steps=12"]
    lines = (toy_job / "text.txt").read_text().splitlines()
    (toy_job / "lines.csv").write_text(
        "text\n" + "\n".join(" ".join(lines[n : n + 1 + n % 3]) for n in range(0, 3000, 3))
    )
    settings += [
        "data.source=lines.csv",
        "data.eval_fraction=0.3",
        "model.loss=null",
        "model.args.dropout=0",
        "training.eval_every=4",
    ]
    results = [
        run_job(
            toy_job, shared_home, *settings, f"resources.workers={workers}", f"training.micro_batch_size={micro}"
        ).finish()
        for workers, micro in ((1, 7), (2, 1))
    ]
    assert [result.code for result in results] == [0, 0], results[0].errors + results[1].errors
    assert results[1].series("loss") == pytest.approx(results[0].series("loss"), abs=2e-5)
    assert results[1].series("eval_loss") == pytest.approx(results[0].series("eval_loss"), abs=2e-5)


@pytest.mark.slow
def test_a_network_of_120_layers(toy_job: Path, shared_home: Path) -> None:
    """Deep, partitioned and recomputed; killed and resumed with the same result."""
    settings = [
        "model.args={layers: 120, width: 16, heads: 2, dropout: 0.1}",
        "training={steps: 4, global_batch_size: 4, zero: 3, activation_checkpointing: true}",
        "checkpoint.every=2",
        "sample=null",
    ]
    calm = run_job(toy_job, shared_home, *settings).finish()
    assert calm.code == 0, calm.errors
    assert calm.facts["parameters"] > 120 * 12 * 16 * 16
    job = run_job(toy_job, shared_home, *settings, "tracking.experiment=again")
    job.kill_part("rank-1", 3)
    killed = job.finish()
    assert killed.code == 0, killed.errors
    assert killed.series("loss") == calm.series("loss")
    assert killed.weights_digest() == calm.weights_digest()
