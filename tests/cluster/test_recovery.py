"""kill -9 of any part at several steps: the run completes by itself with the same result."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest

from tests.cluster.harness import Result, command_line, resume_run, run_job, wait_until_gone
from tests.cluster.warm_ray import warm_ray


def assert_same(disturbed: Result, undisturbed: Result) -> None:
    assert disturbed.code == 0, disturbed.errors
    assert disturbed.series("loss") == undisturbed.series("loss")
    assert disturbed.series("gradient_norm") == undisturbed.series("gradient_norm")
    assert disturbed.series("eval_loss") == undisturbed.series("eval_loss")
    assert disturbed.weights_digest() == undisturbed.weights_digest()


def test_ranks_killed(toy_job: Path, shared_home: Path, undisturbed: Result) -> None:
    job = run_job(toy_job, shared_home)
    for rank, step in ((1, 2), (0, 12), (1, 29)):
        restarts = job.kill_part(f"rank-{rank}", step)["restarts"]
        job.wait_for(lambda view, before=restarts: view["restarts"] > before and view["phase"] == "training")
    result = job.finish()
    assert result.last_view["restarts"] == 3
    assert "was killed by signal 9" in result.last_view["problem"]
    assert_same(result, undisturbed)


@pytest.mark.slow  # a rank that hangs is tested below
def test_rank_stopped(toy_job: Path, shared_home: Path, undisturbed: Result) -> None:
    """A stopped process keeps its connections, and its peers wait for it; the agent detects it."""
    job = run_job(toy_job, shared_home)
    view = job.wait_for_step(13)
    os.kill(view["pids"]["rank-1"], signal.SIGSTOP)
    result = job.finish()
    assert result.last_view["restarts"] == 1
    assert "rank 1 makes no progress: its process is stopped, in phase " in result.last_view["problem"]
    assert not psutil.pid_exists(view["pids"]["rank-1"])
    assert_same(result, undisturbed)


def test_rank_hangs(toy_job: Path, shared_home: Path, undisturbed: Result, tmp_path: Path) -> None:
    """The code of the job never returns on one of two ranks; all stacks are stored."""
    folder = tmp_path / "job"
    shutil.copytree(toy_job, folder)
    code = folder / "toy_loss.py"
    once = f"{tmp_path}/hung"
    code.write_text(code.read_text() + HANGS.format(once=once))
    job = run_job(folder, shared_home, "model.loss=toy_loss:hanging_loss", "training.hang_timeout_s=4")
    result = job.finish()
    assert result.last_view["restarts"] == 1
    problem = result.last_view["problem"]
    assert "rank 0 makes no progress: in phase 'step'" in problem or "rank 1 makes no progress: in phase" in problem
    assert "hanging_loss (toy_loss.py:" in problem
    stacks = Path(problem.rpartition(" ")[2]).read_text()
    assert "rank 0" in stacks
    assert "rank 1" in stacks
    assert_same(result, undisturbed)


HANGS = """

def hanging_loss(model, batch):
    import os
    if model.training and model.global_steps == 12:
        try:
            os.close(os.open({once!r}, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            time.sleep(10000)
    return slow_loss(model, batch)
"""


@pytest.mark.parametrize("step", [3, pytest.param(21, marks=pytest.mark.slow)])
def test_agent_killed(toy_job: Path, shared_home: Path, undisturbed: Result, step: int) -> None:
    job = run_job(toy_job, shared_home)
    view = job.kill_part("agent-0", step)
    result = job.finish()
    assert result.last_view["pids"]["agent-0"] != view["pids"]["agent-0"]
    assert_same(result, undisturbed)


@pytest.mark.slow  # test_shared_cluster kills it at every transition
@pytest.mark.parametrize("step", [1, 18, 30])
def test_coordinator_killed(toy_job: Path, shared_home: Path, undisturbed: Result, step: int) -> None:
    job = run_job(toy_job, shared_home)
    view = job.kill_part("coordinator", step)
    result = job.finish()
    assert result.last_view["pids"]["coordinator"] != view["pids"]["coordinator"]
    assert result.last_view["generation"] == 1  # the ranks did not notice
    assert_same(result, undisturbed)


@pytest.mark.slow  # its ranks are killed above
def test_fork_server_killed(toy_job: Path, shared_home: Path, undisturbed: Result) -> None:
    job = run_job(toy_job, shared_home)
    view = job.kill_part("fork-server-0", 13)
    result = job.finish()
    assert result.last_view["pids"]["fork-server-0"] != view["pids"]["fork-server-0"]
    assert_same(result, undisturbed)


@pytest.mark.slow  # test_shared_cluster kills it at every transition
def test_coordinator_killed_while_finishing(toy_job: Path, shared_home: Path, undisturbed: Result) -> None:
    job = run_job(toy_job, shared_home)
    view = job.wait_for(lambda view: view["phase"] == "finishing")
    os.kill(view["pids"]["coordinator"], signal.SIGKILL)
    result = job.finish()
    assert result.last_view["pids"]["coordinator"] != view["pids"]["coordinator"]
    assert result.facts["sample"] == undisturbed.facts["sample"]
    assert_same(result, undisturbed)


@pytest.mark.slow  # killed while it trains, it is tested below
def test_command_killed_while_finishing(toy_job: Path, shared_home: Path, undisturbed: Result) -> None:
    first = run_job(toy_job, shared_home)
    run_id = first.wait_for(lambda view: view["phase"] == "finishing")["run_id"]
    first.close()
    result = resume_run(run_id, shared_home).finish()
    assert result.facts["sample"] == undisturbed.facts["sample"]
    assert_same(result, undisturbed)


def test_preprocessors_killed(toy_job: Path, shared_home: Path, tmp_path: Path) -> None:
    """Two dataset folders, because an existing dataset is not prepared again."""
    small = "data.shard_bytes=1024"
    assert command_line(tmp_path, "data", "prepare", str(toy_job), f"--set={small}").returncode == 0
    job = run_job(toy_job, shared_home, small, "training.steps=1")
    job.wait_for(lambda view: view["preparing"][0] >= 2)
    victims = [process for process in warm_ray.processes() if process.name().startswith("ray::Preproc")]
    assert victims
    victims[0].kill()
    result = job.finish()
    assert result.code == 0, result.errors
    made = Path(result.facts["dataset"])
    left_alone = tmp_path / "datasets" / "toy" / made.name
    digests = [{p.name: p.read_bytes() for p in folder.glob("*.arrow")} for folder in (left_alone, made)]
    assert digests[0]
    assert digests[0] == digests[1]


def test_command_killed_then_run_again(toy_job: Path, shared_home: Path, undisturbed: Result) -> None:
    """Each command starts its own Ray; neither leaves anything behind."""
    first = run_job(toy_job, shared_home, own_ray=True)
    view = first.wait_for_step(10)
    processes = first.descendants()
    assert {process.pid for process in processes} >= set(view["pids"].values())
    first.close()
    second = run_job(toy_job, shared_home, own_ray=True)
    second.wait_for_step(20)
    processes += second.descendants()
    result = second.finish()
    assert result.run_id == view["run_id"]
    assert_same(result, undisturbed)
    assert {process.pid for process in processes} >= set(result.last_view["pids"].values())
    assert wait_until_gone(processes) == []


def test_interrupted_then_resumed_from_an_older_checkpoint(
    toy_job: Path, shared_home: Path, undisturbed: Result
) -> None:
    """It saves on interruption; that checkpoint is damaged, and the previous one is loaded."""
    first = run_job(toy_job, shared_home)
    first.wait_for_step(9)
    first.process.send_signal(signal.SIGINT)
    stopped = first.finish()
    assert stopped.code == 130
    assert stopped.facts["reason"] == "cancelled"
    newest, older = sorted(Path(stopped.facts["checkpoint"]).parent.iterdir(), reverse=True)[:2]
    assert newest == Path(stopped.facts["checkpoint"])
    assert (older / "manifest.json").exists()
    victim = newest / "rank-00001.bin"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    result = resume_run(stopped.run_id, shared_home).finish()
    assert result.run_id == stopped.run_id
    assert str(victim) in result.last_view["problem"]
    assert "checksum" in result.last_view["problem"]
    assert_same(result, undisturbed)


@pytest.mark.slow  # one whose newest checkpoint is damaged, too, is tested above
def test_interrupted_then_resumed(toy_job: Path, shared_home: Path, undisturbed: Result) -> None:
    first = run_job(toy_job, shared_home)
    first.wait_for_step(1)
    first.process.send_signal(signal.SIGINT)
    stopped = first.finish()
    assert stopped.code == 130
    result = resume_run(stopped.run_id, shared_home).finish()
    assert_same(result, undisturbed)
