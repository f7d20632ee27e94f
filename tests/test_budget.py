"""The time budget of long training: deadlines, stopping at an epoch's end, and going on."""

import datetime
import pathlib
import subprocess
import sys
import time

import pytest
import study_toys
from test_recipes import checkpointed
from test_study import grid, run_toy

from saaug_keras import _budget, _checkpoint, zoo
from saaug_keras.zoo import making


def test_a_deadline_is_hours_from_now_or_a_time():
    assert _budget.deadline() is None
    assert abs(_budget.deadline(hours=2) - time.time() - 7200) < 5
    now = datetime.datetime.now()
    soon, ago = now + datetime.timedelta(minutes=2), now - datetime.timedelta(minutes=2)
    assert 0 < _budget.deadline(until=soon.strftime("%H:%M")) - now.timestamp() <= 120
    assert 86200 < _budget.deadline(until=ago.strftime("%H:%M")) - now.timestamp() <= 86400  # tomorrow
    assert abs(_budget.deadline(until=soon.isoformat()) - soon.timestamp()) < 1e-3


@pytest.mark.parametrize(
    "options, message",
    [
        ({"hours": -1}, "budget: `hours` must be a number in"),
        ({"hours": float("nan")}, "budget: `hours` must be a number in"),
        ({"hours": 1, "until": "08:00"}, "budget: `hours` must be None where `until` is given"),
        ({"until": "8 o'clock"}, "budget: `until` must be HH:MM or an ISO"),
        ({"until": "99:99"}, "must be HH:MM"),
        ({"until": "2001-01-01T00:00"}, "budget: `until` must be in the future"),
    ],
)
def test_what_is_no_deadline_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _budget.deadline(**options)


def test_no_epoch_begins_that_would_end_too_late(tmp_path):
    checkpoint = checkpointed(tmp_path, 2)
    checkpoint.history[-1]["seconds"] = 200.0  # longer ones have checkpoints within, and end there
    for until, stops in ((time.time() + 100, True), (time.time() + 300, False)):
        again = _checkpoint.RunFolder(tmp_path, "recipes.train").checkpoint(1, until)
        again.history = checkpoint.history
        if stops:
            with pytest.raises(_budget.OutOfTime, match="2 finished epochs; the same call goes on"):
                again.on_epoch_begin(2)
        else:
            again.on_epoch_begin(2)


def test_a_study_whose_time_is_over_begins_nothing_and_says_what_is_left(tmp_path):
    book, lines = run_toy(grid(), tmp_path, until=time.time() - 1)
    assert not book.records and not (tmp_path / "calls").exists()
    assert "the time is over; " in lines[-1] and "runs are left" in lines[-1]
    book, lines = run_toy(grid(), tmp_path, until=time.time() + 3600)  # it goes on, and has time enough
    assert book.records and "the time is over" not in lines[-1]


def test_a_run_that_ran_out_of_time_is_no_failure_and_the_first_to_go_on(tmp_path):
    stopped = []

    def trainer(recipe, folder, test):
        if not stopped:
            stopped.append(folder.name)
            folder.mkdir(parents=True)
            (folder / "history.json").write_text("[]")
            raise _budget.OutOfTime
        stopped.append(folder.name)
        return study_toys.train(recipe, folder, test)

    study = grid(seeds=[0], candidates={"learning_rate": [0.1, 0.2]})
    run_toy(study, tmp_path, trainer=trainer, until=time.time() + 3600, only="direct")
    assert stopped.count(stopped[0]) == 1 and stopped[0] not in {path.stem for path in (tmp_path / "runs").iterdir()}
    del stopped[1:]
    run_toy(study, tmp_path, trainer=trainer, only="direct")
    assert stopped[1] == stopped[0]


def test_entries_of_the_zoo_train_in_processes_and_stop_in_time(tmp_path):
    lines = []
    done = making.train_all(["digits-shift"], tmp_path, jobs=1, until=time.time() - 1, say=lines.append)
    assert done == {"digits-shift": None} and "the time was over" in lines[0]
    assert pathlib.Path(tmp_path / "digits-shift" / "recipe.json").exists()  # it goes on from here
    assert zoo.Entry.read("digits-shift").measured  # and the entry is as it was
    with pytest.raises(ValueError, match="zoo: `name` must be an entry"):
        making.train_all(["digits-shift", "nothing"], tmp_path)


def test_a_worker_ends_with_its_parent_whatever_it_is_doing(tmp_path):
    """Between two batches too: a worker that traces a network sees no batch for most of a minute."""
    worker = """
import os, time
from saaug_keras import _budget
_budget.end_with(os.getppid())
print(os.getpid(), flush=True)
end = time.monotonic() + 120
while time.monotonic() < end:
    sum(range(10000))
"""
    starter = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    parent = subprocess.Popen([sys.executable, "-c", starter, worker], stdout=subprocess.PIPE, text=True)
    assert int(parent.stdout.readline()) > 0  # it is at work
    parent.kill()
    parent.wait()
    give_up = time.monotonic() + 60
    while parent.stdout.read(1):  # the pipe ends with the last process that holds it
        pass
    assert time.monotonic() < give_up
