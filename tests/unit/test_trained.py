"""A trained model without DeepSpeed: loading, export, predictions, profile."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from drivetrain.job.loading import load_job
from drivetrain.job.recipes import copy_recipe, recipes
from drivetrain_pipelines.errors import InputError, UserCodeError
from drivetrain_pipelines.prepare.tokenizer import TOKENIZER_FILE, train_tokenizer
from drivetrain_pipelines.storage.checksums import block_digests
from drivetrain_pipelines.storage.folder import StorageFolder
from drivetrain_pipelines.storage.json_files import write_json
from drivetrain_pipelines.storage.shards import Manifest as DataManifest
from drivetrain_pipelines.storage.shards import Shard, encode_shard
from drivetrain_workers.checkpoints.manifest import Contents, Fragment, Manifest, RankIndex, ReplicatedTensor
from drivetrain_workers.checkpoints.store import commit, rank_file, rank_index
from drivetrain_workers.errors import CheckpointError
from drivetrain_workers.inference.generation import Sampling, generate
from drivetrain_workers.inference.predict import predict
from drivetrain_workers.model_processes import requests
from drivetrain_workers.model_processes.export import export
from drivetrain_workers.model_processes.profile import profile
from drivetrain_workers.model_processes.requests import ExportRequest, PredictRequest, ProfileRequest
from drivetrain_workers.model_processes.trained import load_trained, print_answer
from drivetrain_workers.modeling.model import build_model
from drivetrain_workers.recipes.language_model.model import gpt
from drivetrain_workers.records.run_folder import CheckpointId, RunFolder
from drivetrain_workers.spec import ModelSpec
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer

from tests.unit.checkpoint_files import damage

CODE = """
import torch
from pathlib import Path


class Net(torch.nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.ReLU())
        self.outer = torch.nn.Linear(width, classes)
        self.register_buffer("seen", torch.tensor([0, 0]))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, x):
        return self.outer(self.inner(x))


def net(classes, width=8):
    return Net(classes, width)


class Pretrained(Net):
    def save_pretrained(self, folder, safe_serialization):
        assert safe_serialization
        (Path(folder) / "weights.txt").write_text(str(self.outer.bias.tolist()))


def pretrained(classes):
    return Pretrained(classes, 8)


class Shared(Net):  # tied weights, a buffer of two modules, and buffers of many types
    def __init__(self, classes):
        super().__init__(classes, 4)
        self.again = torch.nn.Linear(4, 4)
        self.again.weight = self.inner[0].weight
        self.register_buffer("narrow", torch.ones(2, dtype=torch.bfloat16))
        self.register_buffer("wave", torch.polar(torch.ones(3), torch.arange(3.0)))
        self.register_buffer("on", torch.tensor(True))
        self.again.register_buffer("narrow", self.narrow)


def shared(classes):
    return Shared(classes)


def eval_mode(classes):
    return Net(classes, 8).eval()


def half_in_eval_mode(classes):
    model = Net(classes, 8)
    model.inner.eval()
    return model


class Extra(Net):
    def get_extra_state(self):
        return {"calls": 1}


def extra(classes):
    return Extra(classes, 8)


def nothing(classes):
    Net(classes, 8)


def half_frozen(classes):
    model = Net(classes, 8)
    model.inner.requires_grad_(False)
    return model


def undecided(classes):
    model = Net(classes, 8)
    model.register_forward_pre_hook(lambda _, given: None if given[0].sum() > 0 else None)
    return model


def block():
    layers = [layer for _ in range(3) for layer in (torch.nn.Linear(4, 4), torch.nn.Tanh())]
    return torch.nn.Sequential(*layers)


class Deep(Net):
    def __init__(self, classes):
        super().__init__(classes, 4)
        self.inner = None
        self.blocks = torch.nn.ModuleList([block() for _ in range(3)])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.outer(x)


def deep(classes):
    return Deep(classes)


def loss(model, batch):
    return torch.nn.functional.cross_entropy(model(batch["x"]), batch["label"][:, 0])


def predictions(model, batch, context):
    scores = model(batch["x"])
    names = [context.classes[number] for number in scores.argmax(1)]
    return {"label": batch["label"][:, 0], "choice": names, "scores": scores}
"""


@pytest.fixture(autouse=True)
def _own_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    threads = torch.get_num_threads()
    yield
    sys.modules.pop("trained_code", None)
    torch.set_num_threads(threads)


class Run:
    """The folder of a run with a dataset, and checkpoints of models."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = RunFolder(folder / "toy-run"), StorageFolder(str(folder / "data"))
        self.folder.code.mkdir(parents=True)
        (self.folder.code / "trained_code.py").write_text(CODE)
        self.job: dict[str, Any] = {
            "seed": 1,
            "data": {"source": "rows.jsonl", "columns": ["x", "label"]},
            "model": {
                "factory": "trained_code:net",
                "loss": "trained_code:loss",
                "predict": "trained_code:predictions",
            },
            "training": {"steps": 1, "zero_stage": 0},
            "checkpoint": {},
        }
        self.write_job()

    def write_job(self, **model: Any) -> None:
        self.job["model"] |= model
        self.folder.job_resolved.write_text(json.dumps(self.job))

    def write_data(self, columns: dict[str, pa.Array], statistics: dict[str, float], classes: list[str]) -> None:
        encoded = encode_shard(pa.record_batch(columns))
        self.data.write("0.arrow", encoded)
        shard = Shard("0.arrow", len(next(iter(columns.values()))), encoded.size, block_digests(memoryview(encoded)))
        schema = pa.ipc.open_file(encoded).schema
        DataManifest("toy", "v1", schema, {"train": [shard], "eval": [shard]}, statistics, {}, classes).write(self.data)

    def save(self, step: int, model: torch.nn.Module) -> Path:
        """Write a checkpoint of one rank with a model's weights and persistent buffers."""
        folder = CheckpointId(step, 1).folder(self.folder.checkpoints)
        folder.mkdir(parents=True)
        content, fragments, replicated = b"", [], []
        for name, parameter in model.named_parameters():
            fragments.append(Fragment(name, "weights", 0, parameter.numel(), len(content)))
            content += parameter.detach().numpy().tobytes()
        for name, buffer in model.named_buffers():
            if name in model.state_dict():
                dtype = str(buffer.dtype).removeprefix("torch.")
                replicated.append(ReplicatedTensor(name, dtype, list(buffer.shape), len(content)))
                content += buffer.reshape(-1).view(torch.uint8).numpy().tobytes()
        contents = Contents(tuple(fragments), {}, tuple(replicated))
        (folder / rank_file(0)).write_bytes(content)
        write_json(folder / rank_index(0), RankIndex(contents, len(content), block_digests(content)).to_json())
        shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
        commit(folder, Manifest(step, 8 * step, 1, 0, shapes))
        return folder

    def net(self, seed: int, factory: str = "net") -> torch.nn.Module:
        """Return a network like one trained by a run."""
        space: dict[str, Any] = {"__name__": "trained_code"}
        exec(CODE, space)
        torch.manual_seed(seed)
        model: torch.nn.Module = space[factory](3)
        model.seen += seed
        return model

    def export(self, target: Path, step: int | None = None) -> dict[str, torch.Tensor]:
        export(ExportRequest(str(self.folder.path), self.data.location, str(target), step))
        return load_file(target / "model.safetensors")

    def predict(self, *inputs: Path | str, **options: Any) -> Any:
        given = [str(one) for one in inputs]
        request = PredictRequest(str(self.folder.path), self.data.location, given, str(self.folder.path), **options)
        return json.loads(predict(request))

    def profile(self) -> Any:
        return profile(ProfileRequest(self.job, str(self.folder.code), self.data.location))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path)
    x = pa.FixedSizeListArray.from_arrays(pa.array([float(i) for i in range(20)], pa.float32()), 4)
    run.write_data({"x": x, "label": pa.array([0, 1, 2, 1, 0])}, {"classes": 3.0}, ["cat", "dog", "fox"])
    return run


def assert_equal(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_newest_valid_checkpoint_is_loaded(run: Run) -> None:
    models = {step: run.net(step) for step in (4, 8, 12)}
    folders = {step: run.save(step, model) for step, model in models.items()}
    where = str(run.folder.path), run.data.location
    trained = load_trained(*where)
    assert_equal(trained.model, models[12])
    assert (trained.checkpoint.step, trained.model.training) == (12, False)
    assert_equal(load_trained(*where, step=4).model, models[4])
    damage(folders[12] / rank_file(0))
    assert_equal(load_trained(*where).model, models[8])
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 12; .*rank-00000\.bin is corrupt"):
        load_trained(*where, step=12)
    with pytest.raises(CheckpointError, match=r"^the run has no checkpoint of step 5$"):
        load_trained(*where, step=5)


def test_a_run_without_a_checkpoint(run: Run) -> None:
    with pytest.raises(CheckpointError, match=r"^the run has no checkpoint yet$"):
        load_trained(str(run.folder.path), run.data.location)


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (None, {"answer": "fine"}),
        (InputError("INPUT", "'x'", "a file", "Give one."), {"input": ["INPUT", "'x'", "a file", "Give one."]}),
        (CheckpointError("no checkpoint yet"), {"error": "no checkpoint yet"}),
        (UserCodeError("model.loss", "OSError: x", "a.py:1"), {"user": ["model.loss", "OSError: x", "a.py:1"]}),
        (ZeroDivisionError("by zero"), {"error": "the model failed: ZeroDivisionError: by zero"}),
        (SystemExit(0), {"error": "the model failed: SystemExit: 0"}),
    ],
)
def test_an_answer_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException | None, answer: Any
) -> None:
    def make(request: ExportRequest) -> str:
        assert request == ExportRequest("/run", "/data", "/target")
        print("from the job's code")
        if error:
            raise error
        return "fine"

    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(asdict(ExportRequest("/run", "/data", "/target")))))
    print_answer(ExportRequest, make)
    said = capsys.readouterr()
    (line,) = said.out.splitlines()
    assert json.loads(line) == answer
    assert "from the job's code" in said.err


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import os; os._exit(0)", r"ended with exit code 0 and without an answer; .*: no output$"),
        ("import os; os._exit(3)", "ended with exit code 3 and without an answer"),
        ("print('7')", "without an answer"),
        ("print('{}')", "without an answer"),
        ("import sys; sys.exit('stopped here')", r"exit code 1 .*: stopped here$"),
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL"),
        ("import time; time.sleep(600)", "has not answered within 3 s"),
    ],
)
def test_only_an_answer_is_a_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, problem: str) -> None:
    (tmp_path / "model_that_ends.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(requests._MODULES, ExportRequest, "model_that_ends")
    with pytest.raises(CheckpointError, match=problem):
        requests.run_request(ExportRequest("/run", "/data", "/target", timeout_s=3.0 if "sleep" in code else 60.0))


def test_an_export_fits_a_fresh_model(run: Run, tmp_path: Path) -> None:
    models = {step: run.net(step) for step in (4, 8)}
    for step, model in models.items():
        run.save(step, model)
    fresh = run.net(99)
    fresh.load_state_dict(run.export(tmp_path / "new" / "target"), strict=True)
    assert_equal(fresh, models[8])
    fresh.load_state_dict(run.export(tmp_path / "older", step=4), strict=True)
    assert_equal(fresh, models[4])
    with safe_open(tmp_path / "older" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "run": "toy-run", "step": "4", "dataset": "toy/v1"}


def test_an_export_has_tied_weights_and_buffers_of_any_type(run: Run, tmp_path: Path) -> None:
    run.write_job(factory="trained_code:shared")
    model, fresh = run.net(4, "shared"), run.net(99, "shared")
    run.save(4, model)
    exported = run.export(tmp_path / "target")
    assert {"again.weight", "inner.0.weight", "again.narrow", "wave", "on"} <= exported.keys()
    assert "scratch" not in exported
    fresh.load_state_dict(exported, strict=True)
    assert_equal(fresh, model)


_NEEDS_FILES = {"face-verification", "fine-tuning"}  # of pre-trained models


@pytest.mark.parametrize("name", [recipe.name for recipe in recipes() if recipe.name not in _NEEDS_FILES])
def test_an_export_of_a_recipe_fits_its_factory(run: Run, tmp_path: Path, name: str) -> None:
    job = load_job(name).spec
    copy_recipe(name, tmp_path / "recipe")
    shutil.rmtree(run.folder.code)
    shutil.copytree(tmp_path / "recipe", run.folder.code)
    modules = set(sys.modules)
    run.job["data"]["sequence_length"] = job.data.sequence_length
    run.write_data({"label": pa.array([0, 1])}, {"classes": 3.0, "vocab_size": 300.0}, ["cat", "dog", "fox"])
    run.write_job(factory=job.model.factory, args=job.model.args, loss=None, predict=None)
    facts = {"classes": 3, "vocab_size": 300, "sequence_length": job.data.sequence_length}
    trained, fresh = (build_model(job.model, str(run.folder.code), facts, seed) for seed in (1, 2))
    run.save(4, trained)
    fresh.load_state_dict(run.export(tmp_path / "target"), strict=True)
    assert_equal(fresh, trained)
    for imported in sys.modules.keys() - modules:
        if getattr(sys.modules[imported], "__file__", None) and str(tmp_path) in str(sys.modules[imported].__file__):
            del sys.modules[imported]


@pytest.mark.parametrize(
    ("factory", "modes"),
    [
        ("eval_mode", [True, True, True, True, True]),
        ("half_in_eval_mode", [True, False, False, False, True]),
        ("net", [True, True, True, True, True]),
    ],
)
def test_the_modes_of_a_new_model(run: Run, factory: str, modes: list[bool]) -> None:
    """A model that comes in eval mode is trained in training mode; a part in eval mode stays so."""
    spec = ModelSpec(factory=f"trained_code:{factory}")
    model = build_model(spec, str(run.folder.code), {"classes": 3}, 1)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    ("factory", "problem"),
    [("extra", r"a model with a root\.get_extra_state"), ("nothing", "a function that returned None")],
)
def test_models_that_cannot_be_trained(run: Run, factory: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        build_model(ModelSpec(factory=f"trained_code:{factory}"), str(run.folder.code), {"classes": 3}, 1)


def test_a_checkpoint_of_another_model_is_not_loaded(run: Run) -> None:
    run.save(4, run.net(4))
    run.write_job(args={"width": 9})
    with pytest.raises(CheckpointError, match=r"is of another model: inner\.0\.bias has the shape \[8\] in it"):
        load_trained(str(run.folder.path), run.data.location)


def test_a_model_with_save_pretrained(run: Run, tmp_path: Path) -> None:
    run.write_job(factory="trained_code:pretrained")
    model = run.net(4)
    run.save(4, model)
    target = tmp_path / "target"
    assert export(ExportRequest(str(run.folder.path), run.data.location, str(target))) == str(target)
    assert json.loads((target / "weights.txt").read_text()) == model.get_submodule("outer").bias.tolist()
    assert json.loads((target / "drivetrain.json").read_text())["step"] == "4"


@pytest.mark.parametrize("decimals", [[9, 0, -9, 1], [9.0, 0.0, -9.0, 0.5]])
def test_predictions_for_every_record_of_a_file(run: Run, tmp_path: Path, decimals: list[float]) -> None:
    """Numbers have the types of the training data, whatever the file contains."""
    model = run.net(4)
    run.save(4, model)
    rows = [[0, 1, 2, 3], decimals]
    file = tmp_path / "new.jsonl"
    file.write_text("".join(json.dumps({"x": row}) + "\n" for row in rows))  # without the label
    found = run.predict(file)
    scores = model(torch.tensor(rows, dtype=torch.float32))
    assert [row["input"] for row in found] == [str(file)] * 2
    assert all(row.keys() == {"input", "choice", "scores"} for row in found)
    assert [row["choice"] for row in found] == [["cat", "dog", "fox"][n] for n in scores.argmax(1).tolist()]
    torch.testing.assert_close(torch.tensor([row["scores"] for row in found]), scores.detach())


def test_a_column_that_the_model_reads_must_be_in_the_file(run: Run, tmp_path: Path) -> None:
    """One that only the loss reads need not be there."""
    run.job["data"]["columns"] = ["x", "z", "label"]
    run.write_job()
    run.save(4, run.net(4))
    (tmp_path / "x.jsonl").write_text('{"x": [0.0, 1.0, 2.0, 3.0]}\n')
    assert len(run.predict(tmp_path / "x.jsonl")) == 1
    x = pa.FixedSizeListArray.from_arrays(pa.array([0.0] * 4, pa.float32()), 4)
    y = pa.FixedSizeListArray.from_arrays(pa.array([0.0]), 1)
    run.write_data({"x": x, "y": y}, {"classes": 3.0}, ["cat", "dog", "fox"])
    run.job["data"]["columns"] = ["x", "y"]
    run.write_job()
    (tmp_path / "y.jsonl").write_text('{"y": [1.0]}\n')
    with pytest.raises(InputError, match=r"y.jsonl', which has no column 'x'.*model.predict reads; it has y"):
        run.predict(tmp_path / "y.jsonl")


def test_every_text_of_a_file_is_continued_up_to_a_stop(run: Run, tmp_path: Path) -> None:
    language_model(run)
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("the cat", "the mat")))
    found = run.predict(path, "the cat", max_tokens=12, temperature=0.0)
    assert [row["input"] for row in found] == [str(path), str(path), "the cat"]
    assert found[0]["text"] == found[2]["text"]
    said = found[0]["text"].removeprefix("the cat")
    run.job["sample"] = {"stop": [said[2:4]]}
    run.write_job()
    (found,) = run.predict("the cat", max_tokens=12, temperature=0.0)
    assert found["text"] == "the cat" + said[: said.index(said[2:4])]


def test_invalid_inputs_of_a_model(run: Run, tmp_path: Path) -> None:
    run.save(4, run.net(4))
    with pytest.raises(InputError, match="an existing file"):
        run.predict(tmp_path / "missing.jsonl")
    (tmp_path / "other.jsonl").write_text('{"y": [1.0]}\n')
    with pytest.raises(InputError, match=r"^INPUT: got .*a file with columns for this model"):
        run.predict(tmp_path / "other.jsonl")
    (tmp_path / "narrow.jsonl").write_text('{"x": [1.0, 2.0]}\n')
    with pytest.raises(InputError, match=r"^INPUT: got .*a file with columns for this model"):
        run.predict(tmp_path / "narrow.jsonl")
    run.write_job(predict=None)
    with pytest.raises(InputError, match=r"a run whose job has model\.predict"):
        run.predict("anything")


def language_model(run: Run) -> tuple[Tokenizer, torch.nn.Module]:
    """Make the run one of a language model with a checkpoint."""
    tokenizer = train_tokenizer(["the cat sat on the mat"], 300)
    size = tokenizer.get_vocab_size()
    tokens = pa.FixedSizeListArray.from_arrays(pa.array([1] * 16, pa.int32()), 8)
    run.write_data({"tokens": tokens}, {"vocab_size": float(size)}, [])
    run.data.write(TOKENIZER_FILE, tokenizer.to_str().encode())
    run.job["data"] = {"source": "text.txt", "sequence_length": 16}
    run.job["model"] = {"factory": "drivetrain_workers.recipes.language_model.model:gpt"}
    run.write_job(args={"layers": 1, "width": 16, "heads": 2})
    torch.manual_seed(5)
    model = gpt(size, 16, layers=1, width=16, heads=2)
    run.save(4, model)
    return tokenizer, model.eval()


def test_a_language_model_continues_a_text(run: Run) -> None:
    tokenizer, model = language_model(run)
    (found,) = run.predict("the cat", max_tokens=12, temperature=0.5, seed=7)
    outputs = generate(model, tokenizer, "the cat", 16, Sampling(12, 0.5, 40, 7))
    assert found == {"input": "the cat", "text": "".join(outputs)}
    run.job["sample"] = {"template": "on {input}", "max_tokens": 3, "temperature": 0.0}
    run.write_job()
    (found,) = run.predict("the mat")
    outputs = generate(model, tokenizer, "on the mat", 16, Sampling(3, 0.0, 40, 0))
    assert found == {"input": "the mat", "text": outputs[1].strip()}  # with a template, only the answer


def test_requirements_of_a_model(run: Run) -> None:
    found = run.profile()
    inner, outer = 4 * 8, 8 * 3
    assert found.parameters == found.trained == inner + 8 + outer + 3
    assert found.largest == inner
    assert found.flops_per_row == 2 * (2 * inner + 3 * outer)  # no gradient of the input is needed
    assert found.row_bytes == 4 * 4 + 8
    assert found.matmul_flops > 0
    kept = 4 * 4 + 8 * 4 + 3 * 4 + 8  # input, hidden values, log-probabilities, labels
    assert found.kept_bytes_per_row == pytest.approx(kept, abs=8 * 4)


def test_frozen_parameters_need_less(run: Run) -> None:
    whole = run.profile()
    run.write_job(factory="trained_code:half_frozen")
    found = run.profile()
    assert (found.parameters, found.trained) == (whole.parameters, 8 * 3 + 3)
    assert found.flops_per_row == 2 * (4 * 8 + 2 * 8 * 3)
    assert found.kept_bytes_per_row < whole.kept_bytes_per_row


def test_recomputed_activations_are_not_kept(run: Run) -> None:
    run.write_job(factory="trained_code:deep")
    whole = run.profile()
    run.job["training"]["activation_checkpointing"] = True
    found = run.profile()
    assert found.kept_bytes_per_row < whole.kept_bytes_per_row / 2
    assert found.flops_per_row == whole.flops_per_row
    assert found.recomputed_flops_per_row == 9 * 2 * 4 * 4  # the forward pass of the blocks is repeated
    assert whole.recomputed_flops_per_row == found.recomputed_flops_per_row, "past runs may repeat it"


def test_a_model_that_needs_real_numbers(run: Run) -> None:
    run.write_job(factory="trained_code:undecided")
    with pytest.raises(InputError, match="a model that fails without real numbers") as caught:
        run.profile()
    assert caught.value.where == "model.factory"
