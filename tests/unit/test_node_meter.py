from __future__ import annotations

import time
from pathlib import Path

import pytest
from drivetrain_workers.agent import node_meter
from drivetrain_workers.agent.node_meter import NodeMeter


def busy(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.fixture
def no_rapl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(node_meter, "_RAPL", tmp_path)


@pytest.mark.usefixtures("no_rapl")
def test_energy_is_estimated_from_the_time_of_this_process(tmp_path: Path) -> None:
    meter = NodeMeter([], tmp_path)
    busy(0.3)
    reading = meter.read()
    assert reading.energy_from == "estimate"
    assert reading.energy_j == pytest.approx(3.0, abs=1.0)
    assert 0 <= meter.read().energy_j < 1.0
    assert 0 < reading.values["system_memory_usage_percentage"] < 100
    assert reading.values["cpu_utilization_percentage"] > 0


def test_rapl_counters_wrap_around_at_their_largest_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is assigned its share of the packages' energy, by CPU time."""
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (package / "max_energy_range_uj").write_text("1000000000")
    (package / "energy_uj").write_text("990000000")
    monkeypatch.setattr(node_meter, "_RAPL", tmp_path)
    meter = NodeMeter([], tmp_path)
    busy(0.2)
    (package / "energy_uj").write_text("20000000")
    reading = meter.read()
    assert reading.energy_from == "rapl"
    assert 0 < reading.energy_j <= 30.0


@pytest.mark.usefixtures("no_rapl")
def test_a_gpu_that_cannot_be_measured_is_reported(tmp_path: Path) -> None:
    assert NodeMeter(["MIG-nowhere"], tmp_path).read().energy_from == "estimate, no gpu"
