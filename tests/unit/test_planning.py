"""Plans: compared with the figures of the ZeRO paper, and for jobs that do not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from drivetrain.job.spec import JobSpec
from drivetrain.planning.hardware import Device, Hardware, cpu, gpu
from drivetrain.planning.memory_estimate import Setting, host_memory, memory
from drivetrain.planning.pace import Speed, assumed_speed, learned_speed, pace
from drivetrain.planning.plan import Plan, Rows, Site, chosen_settings, make_plan
from drivetrain_pipelines.errors import InputError
from drivetrain_workers.model_processes.requests import ModelProfile
from hypothesis import given
from hypothesis import strategies as st

# 7.5 billion parameters, as in figure 1 of Rajbhandari et al. 2020; a row keeps 1 GB and takes 100 TFLOP.
LARGE = ModelProfile(
    parameters=7_500_000_000,
    trained=7_500_000_000,
    tensors=300,
    largest=10**9,
    flops_per_row=1e14,
    forward_flops_per_row=1e14 / 3,
    recomputed_flops_per_row=3e13,
    kept_bytes_per_row=1e9,
    kept_bytes_fixed=0.0,
    row_bytes=4096.0,
    matmul_flops=1e11,
)
H100 = gpu("h100", "--gpu")
SPEED = Speed(rate=4e14, updating_s=0.0, known_from="a guess", error=2.0)


def setting(zero: int, workers: int = 64, **others: Any) -> Setting:
    return Setting(
        **{"micro_batch": 1, "precision": "bf16", "optimizer": "AdamW", **others}, zero_stage=zero, workers=workers
    )


def job(**training: Any) -> JobSpec:
    given = {"steps": 1000, "global_batch_size": 64, "precision": "bf16", "zero_stage": "auto", **training}
    return JobSpec.model_validate(
        {
            "name": "large",
            "data": {"name": "d", "source": "s"},
            "model": {"factory": "m:f"},
            "training": given,
            "resources": {"price_per_hour": 2.0},
        }
    )


def site(device: Device, workers: int, nodes: int = 1) -> Site:
    return Site(device, workers, nodes, SPEED, 1e9, 1e9, Hardware(workers, nodes, None, 0).link(device))


def plan(spec: JobSpec, where: Site, profile: ModelProfile = LARGE) -> Plan:
    return make_plan(spec, profile, where, Rows(10**6, 100))


@pytest.mark.parametrize(("zero", "weights", "gradients"), [(1, 15.0, 15.0), (2, 15.0, 0.23), (3, 0.23, 0.23)])
def test_stages_partition_the_memory_as_in_the_paper(zero: int, weights: float, gradients: float) -> None:
    needed = memory(LARGE, setting(zero), H100)
    assert needed.weights / 1e9 == pytest.approx(weights, abs=0.01)
    assert needed.gradients / 1e9 == pytest.approx(gradients, abs=0.01)
    assert needed.optimizer / 1e9 == pytest.approx(16 * 7.5 / 64)  # 12 of the paper, and gradients in fp32
    assert needed.activations == 1e9
    assert needed.copy == needed.slack == 0


@given(st.integers(1, 3), st.integers(1, 512), st.sampled_from(["fp32", "bf16"]))
def test_more_workers_never_need_more_each(zero: int, workers: int, precision: str) -> None:
    few = setting(zero, workers, precision=precision)
    assert memory(LARGE, replace(few, workers=workers + 1), H100).total <= memory(LARGE, few, H100).total


def test_offloading_moves_memory_to_the_host() -> None:
    plain, offloaded = setting(3, 8), setting(3, 8, offload_optimizer=True, offload_parameters=True)
    assert memory(LARGE, offloaded, H100).optimizer == memory(LARGE, offloaded, H100).weights == 0
    assert host_memory(LARGE, offloaded) - host_memory(LARGE, plain) == pytest.approx(7.5e9 / 8 * (16 + 2))
    assert (
        pace(LARGE, offloaded, H100, 64, H100.link, SPEED).offloading
        > pace(LARGE, plain, H100, 64, H100.link, SPEED).offloading
        == 0
    )


def test_the_simplest_of_the_fastest_is_best() -> None:
    found = plan(job(), site(H100, 64, 8))
    best = found.best.setting
    assert (best.zero_stage, best.offload_optimizer) == (1, False)
    assert [choice.fits for choice in found.choices if choice.setting.zero_stage == 1] == [True]
    assert found.hours * 3600 == pytest.approx(1000 * found.best.pace.total + found.evaluating_s)
    assert found.dollars == pytest.approx(found.hours * 64 * 2.0)
    assert found.checkpoint_bytes == 7.5e9 * 12
    assert 0 < found.mfu <= 0.41


def test_the_best_setting_fits() -> None:
    found = plan(job(), site(H100, 8))
    assert [choice.fits for choice in found.choices if choice.setting.zero_stage == 1] == [True]
    few = plan(job(), site(H100, 2))
    assert few.best.setting.offload_optimizer
    assert not any(choice.fits for choice in few.choices if choice.setting.zero_stage == 1)


def test_micro_batches_shrink_until_they_fit() -> None:
    heavy = replace(LARGE, kept_bytes_per_row=4e9)
    assert (
        plan(job(global_batch_size=512, micro_batch_size="auto"), site(H100, 16, 2), heavy).best.setting.micro_batch
        == 8
    )
    with pytest.raises(InputError, match=r"training: .*needs at least .* GB per worker"):
        plan(job(global_batch_size=512, micro_batch_size=32), site(H100, 16, 2), heavy)


def test_a_named_stage_stays() -> None:
    found = plan(job(zero_stage=3), site(H100, 64, 8))
    assert found.best.setting.zero_stage == 1
    assert chosen_settings(found)["zero_stage"] == 3
    with pytest.raises(
        InputError, match=r"training: got settings that do not fit; the plan recommends zero 2 offload, 32 rows"
    ):
        chosen_settings(plan(job(zero_stage=1), site(H100, 2)))
    compiled = plan(job(compile="inductor"), site(H100, 64, 8))
    assert {choice.setting.zero_stage for choice in compiled.choices} == {1, 2}


def test_cpus_hold_the_copy_too() -> None:
    cores = cpu(64e9, 3e8, 1e11, 2)
    small = replace(LARGE, parameters=10**8, trained=10**8, kept_bytes_per_row=1e6)
    needed = memory(small, setting(2, 2, precision="fp32"), cores)
    assert needed.copy == 12 * 10**8 / 2
    assert needed.slack == pytest.approx(0.60 * (needed.weights + needed.gradients + needed.optimizer + needed.buffers))
    slacks = [memory(small, setting(zero, 2, precision="fp32"), cores).slack for zero in (0, 1, 2, 3)]
    assert slacks == sorted(slacks), "the more is divided, the more comes and goes"
    assert cores.peak("fp32") == 2e11
    assert not any(choice.setting.offload_optimizer for choice in plan(job(), site(cores, 2), small).choices)


def test_unknown_gpus_are_refused() -> None:
    with pytest.raises(InputError, match=r"--gpu: got 'h1000'.*h100"):
        gpu("h1000", "--gpu")


def test_past_runs_give_the_step_time() -> None:
    cores = cpu(64e9, 3e8, 1e11, 1)
    assumed = assumed_speed(replace(LARGE, trained=10**7), cores, "fp32")
    assert (assumed.rate, assumed.updating_s) == (8e10, pytest.approx(0.2))
    one = learned_speed(assumed, [(8e10, 1.5)])
    assert (one.rate, one.updating_s) == (8e10, pytest.approx(0.5))
    both = learned_speed(assumed, [(1e11, 1.5), (2e11, 2.5)])
    assert (both.rate, both.updating_s) == (pytest.approx(1e11), pytest.approx(0.5))
    assert learned_speed(SPEED, [(4e14, 2.0)]).rate == 2e14, "a GPU's steps are computing"
    assert both.error < assumed.error


def test_recomputation_takes_time_and_is_no_useful_work() -> None:
    plain, recomputing = plan(job(), site(H100, 64, 8)), plan(job(activation_checkpointing=True), site(H100, 64, 8))
    assert recomputing.best.pace.computing == pytest.approx(1.3 * plain.best.pace.computing)
    assert recomputing.best.pace.flops == plain.best.pace.flops
    assert recomputing.mfu < plain.mfu


def test_micro_batches_of_divided_gradients_take_time() -> None:
    def step_s(zero: int, micro: int) -> float:
        found = plan(job(zero_stage=zero, micro_batch_size=micro, global_batch_size=512), site(H100, 64, 8))
        assert found.as_written
        return found.as_written.pace.total

    assert step_s(1, 1) == step_s(1, 8)
    assert step_s(3, 1) > step_s(3, 2) > step_s(3, 8)


def test_a_slower_network_takes_longer_between_nodes_only() -> None:
    def step_s(gbps: float, nodes: int) -> float:
        link = Hardware(16, nodes, H100, 0, gbps).link(H100)
        return plan(job(), replace(site(H100, 16, nodes), link=link)).best.pace.total

    assert step_s(10, 2) > step_s(100, 2) > step_s(400, 2)
    assert step_s(10, 1) == step_s(400, 1)
    assert Hardware(16, 2, H100, 0, 10**9).link(H100) == H100.link


def test_small_models_are_not_divided() -> None:
    """The latency of ZeRO-3's messages outweighs that it sends fewer bytes."""
    small = replace(LARGE, parameters=10**6, trained=10**6, flops_per_row=1e9, kept_bytes_per_row=1e4)
    assert plan(job(), site(H100, 8, 2), small).best.setting.zero_stage == 1


def test_stages_that_a_job_cannot_use_are_explained() -> None:
    assert "bf16" in plan(job(), site(H100, 64, 8)).left_out[0]
    compiled = plan(job(precision="fp32", compile="inductor"), site(H100, 64, 8))
    assert compiled.left_out.keys() == {3}
    assert not plan(job(precision="fp32"), site(H100, 64, 8)).left_out


def test_without_data_the_length_of_a_run_may_be_unknown() -> None:
    found = make_plan(job(), LARGE, site(H100, 64, 8), None)
    assert found.steps == 1000
    assert found.hours == pytest.approx(1000 * found.best.pace.total / 3600)
    assert found.evaluating_s is None
    epochs = make_plan(job(steps=None, epochs=2.0), LARGE, site(H100, 64, 8), None)
    assert epochs.steps is epochs.hours is epochs.energy_kwh is epochs.dollars is None
    assert epochs.tokens_per_s == pytest.approx(epochs.samples_per_s * 128)
