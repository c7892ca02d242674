"""The results of a run's preparation of its data, and the choices of the plan, before training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drivetrain.cluster import devices
from drivetrain.coordinator.preparation import Preparation
from drivetrain.home import Home
from drivetrain.job.spec import JobSpec, stored_spec
from drivetrain.planning import forecast as forecast_module
from drivetrain.tracking.destination import Shipment
from drivetrain.tracking.spool import Spool
from drivetrain.tracking.totals import Record
from drivetrain.tracking.tracker import Tracker
from drivetrain_pipelines.errors import InputError, PrepareError
from drivetrain_workers.model_processes.requests import ModelProfile, ProfileRequest
from drivetrain_workers.records.run_folder import RunFolder

from tests.unit.runs import home_in, job, make_run, prepare_shards, write_numbers

SMALL = ModelProfile(
    parameters=1000,
    trained=1000,
    tensors=10,
    largest=100,
    flops_per_row=1e6,
    forward_flops_per_row=3e5,
    recomputed_flops_per_row=0.0,
    kept_bytes_per_row=1e3,
    kept_bytes_fixed=0.0,
    row_bytes=16.0,
    matmul_flops=1e9,
)
TEXT = {"name": "words", "columns": None, "tokenizer": {"vocab_size": 300}, "sequence_length": 8}


class Site:
    """A home with a run that is about to prepare."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.arrived: list[Record] = []
        self.identity: dict[str, str] = {}
        self.trackers: list[Tracker] = []

    def ship(self, records: list[Record]) -> Shipment:
        self.arrived += records
        return Shipment()

    def preparation(self, spec: JobSpec, run: str = "toy-1") -> Preparation:
        folder = make_run(self.home, run, spec)
        self.trackers.append(Tracker(Spool(folder.spool), lambda: self))
        return Preparation(spec, self.home, folder, self.trackers[-1], 0)

    def logged(self, op: str) -> list[Record]:
        assert self.trackers[-1].flush(10)
        return [record for record in self.arrived if record["op"] == op]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    found = Site(home_in(tmp_path / "home", monkeypatch))
    yield found
    for tracker in found.trackers:
        tracker.close()


def numbers(folder: Path, rows: int = 200, **sections: Any) -> JobSpec:
    source = write_numbers(folder / "numbers.csv", rows)
    data = {"source": str(source), **sections.pop("data", {})}
    return job(data=data, **sections)


def ignore(*_: object) -> None:
    """Ignore progress."""


def test_a_dataset_is_prepared_once_and_reused(site: Site, tmp_path: Path) -> None:
    spec = numbers(tmp_path)
    prepare_shards(spec.data, site.home, tmp_path)
    reported: list[tuple[int, int, str]] = []
    made = site.preparation(spec).prepare(lambda *progress: reported.append(progress))
    assert made.dataset_made
    assert reported[0] == (0, 0, "looking for raw data")
    assert (made.train_samples or 0) + (made.eval_samples or 0) == 200
    assert made.eval_samples
    assert made.dataset == str(site.home.datasets / "numbers" / str(made.dataset_version))
    assert (made.counted_in, made.unigram_entropy, made.plan) == ("samples", None, None)
    (logged,) = site.logged("dataset")
    assert logged == {"op": "dataset", "name": "numbers", "version": made.dataset_version, "folder": made.dataset}
    (tags,) = site.logged("tags")
    assert tags["values"] == {"drivetrain.dataset_version": made.dataset_version, "drivetrain.skipped_records": "0"}
    found = site.preparation(spec, "toy-2").prepare(ignore)
    assert found == made.updated(dataset_made=False)


def test_other_data_is_another_version(site: Site, tmp_path: Path) -> None:
    versions = set()
    for number, rows in enumerate((200, 201)):
        spec = numbers(tmp_path, rows)
        prepare_shards(spec.data, site.home, tmp_path)
        versions.add(site.preparation(spec, f"toy-{number}").prepare(ignore).dataset_version)
    assert len(versions) == 2


def test_language_data_has_token_counts_and_an_entropy(site: Site, tmp_path: Path) -> None:
    source = tmp_path / "text.txt"
    source.write_text("\n\n".join(f"the cat number {number} sat on mat {number % 7}" for number in range(400)))
    spec = job(data={**TEXT, "source": str(source)})
    prepare_shards(spec.data, site.home, tmp_path)
    facts = site.preparation(spec).prepare(ignore)
    assert facts.counted_in == "tokens"
    assert facts.unigram_entropy
    assert 1 < facts.unigram_entropy < 6


def test_bad_records_are_counted_and_reported(site: Site, tmp_path: Path) -> None:
    source = tmp_path / "numbers.jsonl"
    source.write_text("".join(f'{{"x": {row}, "label": {row % 2}}}\n' for row in range(100)) + "{not json\n")
    spec = job(data={"source": str(source), "on_error": "skip"})
    prepare_shards(spec.data, site.home, tmp_path)
    facts = site.preparation(spec).prepare(ignore)
    assert facts.skipped_records == 1
    assert "numbers.jsonl" in facts.skipped_first[0]


def test_a_baseline_needs_labels(site: Site, tmp_path: Path) -> None:
    spec = numbers(tmp_path, data={"columns": ["x"]}, baseline=True)
    prepare_shards(spec.data, site.home, tmp_path)
    with pytest.raises(InputError, match="data without labels") as caught:
        site.preparation(spec).prepare(ignore)
    assert caught.value.where == "baseline"
    assert site.logged("dataset") == []


def test_a_missing_source_is_reported(site: Site, tmp_path: Path) -> None:
    spec = numbers(tmp_path)
    (tmp_path / "numbers.csv").unlink()
    with pytest.raises((PrepareError, InputError), match=r"numbers\.csv"):
        site.preparation(spec).prepare(ignore)


def test_files_of_the_model_are_kept_by_content(site: Site, tmp_path: Path) -> None:
    """The run has its own copy, even if the named file is moved."""
    (tmp_path / "weights.bin").write_bytes(b"weights")
    spec = numbers(tmp_path, model={"files": {"weights": str(tmp_path / "weights.bin")}})
    prepare_shards(spec.data, site.home, tmp_path)
    preparation = site.preparation(spec)
    preparation.prepare(ignore)
    (tmp_path / "weights.bin").unlink()
    kept = Path(stored_spec(preparation.folder).model.files["weights"])
    assert kept.is_relative_to(site.home.files)
    assert kept.read_bytes() == b"weights"


def test_a_job_without_files_stays_as_it_was_written(site: Site, tmp_path: Path) -> None:
    spec = numbers(tmp_path)
    prepare_shards(spec.data, site.home, tmp_path)
    preparation = site.preparation(spec)
    before = preparation.folder.job_resolved.stat().st_ino
    preparation.prepare(ignore)
    assert preparation.folder.job_resolved.stat().st_ino == before


@pytest.fixture
def profiled(monkeypatch: pytest.MonkeyPatch) -> list[ProfileRequest]:
    """Create a cluster of one node with four CPUs, and a small model; a real profile would need torch."""
    requests: list[ProfileRequest] = []

    def profile(request: ProfileRequest) -> ModelProfile:
        requests.append(request)
        return SMALL

    node = {"Alive": True, "Resources": {"CPU": 4.0, "memory": 8e9}}
    monkeypatch.setattr(devices.ray, "nodes", lambda: [node])
    monkeypatch.setattr(forecast_module, "profile", profile)
    return requests


def test_settings_of_the_plan_are_chosen_and_stored(site: Site, tmp_path: Path, profiled: list[ProfileRequest]) -> None:
    spec = numbers(tmp_path, training={"zero_stage": "auto", "micro_batch_size": "auto"})
    prepare_shards(spec.data, site.home, tmp_path)
    preparation = site.preparation(spec)
    facts = preparation.prepare(ignore)
    assert facts.plan
    assert profiled == [ProfileRequest(spec.model_dump(mode="json"), str(preparation.folder.code), str(facts.dataset))]
    kept = stored_spec(RunFolder(preparation.folder.path))
    assert (kept.training.zero_stage, kept.training.micro_batch_size) == (
        facts.plan["zero_stage"],
        facts.plan["micro_batch_size"],
    )
    assert kept.training.micro_batch_size == 4  # all of a worker's rows fit
    assert not kept.training.open_settings
    (params,) = site.logged("params")
    assert params["values"]["plan.zero_stage"] == str(facts.plan["zero_stage"])
    assert [record["path"] for record in site.logged("artifact")] == [str(preparation.folder.job_resolved)]


def test_a_model_that_does_not_fit_is_rejected(
    site: Site, tmp_path: Path, profiled: list[ProfileRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = {"Alive": True, "Resources": {"CPU": 4.0, "memory": 1e6}}
    monkeypatch.setattr(devices.ray, "nodes", lambda: [tiny])
    spec = numbers(tmp_path, training={"zero_stage": "auto"})
    prepare_shards(spec.data, site.home, tmp_path)
    preparation = site.preparation(spec)
    with pytest.raises(InputError, match="a model that needs"):
        preparation.prepare(ignore)
    assert profiled
    assert stored_spec(preparation.folder).training.zero_stage == "auto"
