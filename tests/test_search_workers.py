"""A chief and its workers, as processes on loopback: one worker is killed at work, one belongs to another search."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from saaug_keras.search import pipeline

HERE = pathlib.Path(__file__).resolve().parent

PROCESS = """
import os, sys, time
sys.path.insert(0, {here!r})
from search_toys import ToySpace, toy_accuracy
from saaug_keras.search import TwoStageOracle, TwoStageTuner, tuner
tuner.CHIEF_SECONDS = float(os.environ.get("PATIENCE", tuner.CHIEF_SECONDS))

def evaluate(values):
    evaluate.calls += 1
    if os.environ.get("STUCK") and evaluate.calls == 3:
        print("stuck", flush=True)
        time.sleep(600)
    if os.environ.get("ENDLESS"):
        print("working", flush=True)
        time.sleep(float(os.environ["ENDLESS"]))
    time.sleep(0.02)
    return toy_accuracy(values)

evaluate.calls = 0
limits = {{"flash_bytes": float(os.environ.get("LIMIT", 150))}}
oracle = TwoStageOracle(ToySpace(), (20, 15), limits=limits, population_size=10, top=4, lease_seconds=1.5)
search = TwoStageTuner(oracle, evaluate, directory={folder!r}, project_name="search")
search.search()
print("evaluated", evaluate.calls, flush=True)
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(folder, port, tuner_id, **more):
    environment = {
        **os.environ,
        "KERASTUNER_TUNER_ID": tuner_id,
        "KERASTUNER_ORACLE_IP": "127.0.0.1",
        "KERASTUNER_ORACLE_PORT": str(port),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **more,
    }
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROCESS.format(here=str(HERE), folder=str(folder))],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_worker_and_a_foreign_one_stop_nobody(tmp_path):
    port = free_port()
    processes = {}
    try:
        processes["chief"] = start(tmp_path, port, "chief")
        processes["lost"] = start(tmp_path, port, "worker0", STUCK="1")
        processes["foreign"] = start(tmp_path, port, "worker1", LIMIT="200")
        assert processes["lost"].stdout.readline() == "stuck\n"
        processes["lost"].send_signal(signal.SIGKILL)
        processes["good"] = start(tmp_path, port, "worker2")
        outputs = {name: p.communicate(timeout=120) for name, p in processes.items()}
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.kill()
    assert processes["foreign"].returncode != 0
    assert "the chief's search belongs to another search (limits: {'flash_bytes': 150.0} there" in outputs["foreign"][1]
    assert processes["good"].returncode == 0, outputs["good"][1]
    assert processes["chief"].returncode == 0, outputs["chief"][1]
    # The lost worker finished two trials; the one it held was done again by the other worker.
    assert outputs["good"][0].splitlines()[-1] == "evaluated 33"
    assert len([line for line in outputs["chief"][0].splitlines() if line.startswith("stage ")]) == 35


def test_workers_end_when_their_chief_has_gone(tmp_path):
    """One in the middle of a trial that takes long, one between trials."""
    port = free_port()
    processes = {}
    try:
        processes["chief"] = start(tmp_path, port, "chief")
        processes["long"] = start(tmp_path, port, "worker0", ENDLESS="600", PATIENCE="3")
        processes["short"] = start(tmp_path, port, "worker1", ENDLESS="0.5", PATIENCE="3")
        for name in ("long", "short"):
            assert processes[name].stdout.readline() == "working\n"
        processes["chief"].kill()
        outputs = {name: processes[name].communicate(timeout=60) for name in ("long", "short")}
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.kill()
    for name, (_, errors) in outputs.items():
        assert processes[name].returncode == 1
        last = errors.strip().splitlines()[-1]
        assert last.startswith(f"ConnectionError: TwoStageTuner: the chief at 127.0.0.1:{port} cannot be reached for 3 s")


def test_a_chief_that_comes_back_in_time_is_waited_for(tmp_path):
    port = free_port()
    processes = {}
    try:
        processes["chief"] = start(tmp_path, port, "chief")
        processes["worker"] = start(tmp_path, port, "worker0", ENDLESS="0.1")
        assert processes["worker"].stdout.readline() == "working\n"
        processes["chief"].kill()
        processes["chief"].wait()
        processes["again"] = start(tmp_path, port, "chief")
        outputs = {name: processes[name].communicate(timeout=120) for name in ("worker", "again")}
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.kill()
    assert processes["worker"].returncode == 0, outputs["worker"][1]
    assert processes["again"].returncode == 0, outputs["again"][1]


def test_a_worker_without_a_chief_says_what_it_waits_for(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "WAIT_SECONDS", 0.0)
    with pytest.raises(TimeoutError, match="the chief has not begun for 0 s: .*subspaces.json is not there"):
        pipeline._wait_for(tmp_path / "subspaces.json")
