"Every file, both ways, and every process: what others damage, send, kill or own."

import json
import math
import os
import random
import signal
import struct
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import broken_off
from torch import nn

from metadropout_nb import cli, long_runs, omniglot, runs
from metadropout_nb.cli import _copy_course, _cores
from metadropout_nb.comparison import Comparison
from metadropout_nb.long_runs import fit, whole_files
from metadropout_nb.runs import (
    Run,
    build_learner,
    frozen_tasks,
    load_results,
    load_split,
    read_result,
    sweep,
    train_learner,
    write_json,
)
from metadropout_nb.tasks import TaskSampler
from metadropout_nb.trained import load_learner, save_learner
from metadropout_nb.training import PrototypicalNetwork

TINY = {"size": 16, "n_way": 2, "n_query": 1, "tasks": 8, "test_tasks": 2}
RUN = Run("eb", "meta", meta_batch=2, test_query=2, **TINY)
posix = pytest.mark.skipif(os.name != "posix", reason="pipes and links of POSIX")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def command(*words, **settings):
    words = [sys.executable, "-m", "metadropout_nb", *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, **settings)


class TestCheckpoint:
    @pytest.fixture(scope="class")
    @classmethod
    def half(cls, tmp_path_factory):
        "What a training that broke off after its first update has left."
        path = tmp_path_factory.mktemp("half") / "one.checkpoint"
        with pytest.MonkeyPatch.context() as patch, broken_off():
            patch.setattr(runs, "fit", lambda *a, **k: fit(*a, checkpoint_every=1, **k))
            train_learner(RUN, checkpoint=path)
        return path.read_bytes()

    @pytest.fixture
    def resume(self, tmp_path, monkeypatch):
        "Go on from a file of these bytes, without training."
        path = tmp_path / "one.checkpoint"

        def resumed(content):
            path.write_bytes(content)
            return train_learner(RUN, checkpoint=path)

        return resumed

    def altered(self, whole, change):
        "With other text in its header, and the hash that fits."
        end = 8 + int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8:end])
        about = header["__metadata__"]
        said = json.loads(about["fit"])
        new = change(said)
        about["fit"] = json.dumps(said if new is None else new)
        about["sha256"] = long_runs._digest(about["fit"], long_runs.load(whole))
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + whole[end:]

    def test_no_flipped_bit_goes_unnoticed(self, half, resume, monkeypatch):
        monkeypatch.setattr(
            long_runs, "_check_tensors", lambda *_: pytest.fail("not noticed")
        )
        rng = random.Random(0)
        header = 8 + int.from_bytes(half[:8], "little")
        for i in range(60):
            changed = bytearray(half)
            place = rng.randrange(header if i % 3 else len(half))
            changed[place] ^= 1 << rng.randrange(8)
            with pytest.raises(ValueError, match="one.checkpoint is not a checkpoint"):
                resume(changed)

    @pytest.mark.parametrize("share", [0, 0.5, 0.999])
    def test_a_shorter_or_longer_one_is_refused(self, half, resume, share):
        for content in (half[: int(share * len(half))], half + half[:9]):
            with pytest.raises(ValueError, match="one.checkpoint is not a checkpoint"):
                resume(content)

    @pytest.mark.parametrize(
        "history",
        [
            {"tasks": ["x"]},
            {"tasks": None},
            {"tasks": [2.0]},
            {"tasks": [True]},
            {"tasks": [10**9]},
            {"tasks": [4]},
            {"tasks": []},
            {"seconds": "x"},
            {"seconds": 10**400},
            {"losses": "a"},
            {"losses": [math.nan]},
            {"accuracies": []},
            {"of the future": 1},
        ],
    )
    def test_a_history_adds_up(self, half, resume, history):
        changed = self.altered(half, lambda said: said["history"].update(history))
        with pytest.raises(ValueError, match="one.checkpoint is not a checkpoint"):
            resume(changed)

    @pytest.mark.parametrize("said", [[], "x", 1, {}, {"settings": 1, "history": {}}])
    def test_other_json_is_refused(self, half, resume, said):
        with pytest.raises(ValueError, match="one.checkpoint is not a checkpoint"):
            resume(self.altered(half, lambda _: said))

    def test_json_that_is_deep_is_refused(self, half, resume):
        end = 8 + int.from_bytes(half[:8], "little")
        text = half[8:end].replace(b'"fit":"', b'"fit":"' + b"[" * 100_000)
        for deep in (text, b"[" * 100_000):
            with pytest.raises(ValueError, match="one.checkpoint is not a checkpoint"):
                resume(struct.pack("<Q", len(deep)) + deep + half[end:])

    def test_the_message_is_harmless_to_a_terminal(self, half, resume):
        escape = {"\x1b[2J": 1}
        changed = self.altered(half, lambda said: said["history"].update(escape))
        with pytest.raises(ValueError) as refused:
            resume(changed)
        assert str(refused.value).isprintable()

    def test_one_of_another_shape_or_type_changes_nothing(self, characters, tmp_path):
        class Own(nn.Module):
            "Prints alike, whatever its width."

            def __init__(self, width=4, dtype=torch.float32):
                super().__init__()
                self.w = nn.Parameter(torch.ones(400, width, dtype=dtype))

            def forward(self, images):
                return (images.flatten(1).to(self.w) @ self.w)[:, :4]

        def train(network):
            learner = PrototypicalNetwork(3, 4, network)
            sampler = TaskSampler(characters, 3, n_query=2)
            fit(learner, sampler, 4, tmp_path / "one", meta_batch=2)

        train(Own())
        for other in (Own(5), Own(dtype=torch.float64)):
            with pytest.raises(ValueError, match="other tensors.*network.w"):
                train(other)
            assert (other.w == 1).all()

    def test_tied_and_unused_weights_are_kept(self, characters, tmp_path):
        def train():
            torch.manual_seed(0)
            tied = nn.Linear(20, 20)
            network = nn.Sequential(nn.Flatten(), nn.Linear(400, 20), tied, tied)
            network.unused = nn.Parameter(torch.ones(3))
            network[0].forward = lambda images: images.flatten(1)
            network.forward = lambda x: tied(tied(network[1](x.flatten(1))))
            learner = PrototypicalNetwork(3, 20, network)
            sampler = TaskSampler(characters, 3, n_query=2)
            history = fit(learner, sampler, 4, tmp_path / "one", meta_batch=2)
            return learner.state_dict(), history.losses

        (state, losses), (again, told) = train(), train()
        assert losses == told and state.keys() == again.keys()
        assert all(torch.equal(state[name], again[name]) for name in state)

    @posix
    @pytest.mark.parametrize("kind", ["pipe", "folder", "device", "huge"])
    def test_what_is_no_plain_file_is_refused_at_once(self, tmp_path, kind):
        put(kind, tmp_path / "one.checkpoint")
        with pytest.raises(ValueError, match="one.checkpoint is not a checkpoint"):
            train_learner(RUN, checkpoint=tmp_path / "one.checkpoint")

    @posix
    def test_a_link_is_replaced_and_not_followed(self, tmp_path):
        outside, path = tmp_path / "outside", tmp_path / "in" / "one.checkpoint"
        path.parent.mkdir()
        path.symlink_to(outside)  # which is not there
        train_learner(RUN, checkpoint=path)
        assert path.is_file() and not path.is_symlink() and not outside.exists()
        assert names(path.parent) == ["one.checkpoint"]


def put(kind, path):
    "Something at `path` that is not to be read."
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:  # a hole of a terabyte
        with path.open("wb") as file:
            file.truncate(2**40)


class TestWhatIsWritten:
    @posix
    @pytest.mark.parametrize("dangling", [True, False])
    def test_no_link_is_followed(self, tmp_path, dangling):
        outside, path = tmp_path / "outside", tmp_path / "one.json"
        if not dangling:
            outside.write_text("precious")
        path.symlink_to(outside)
        write_json(path, [1])
        assert json.loads(path.read_text()) == [1] and not path.is_symlink()
        assert outside.exists() != dangling
        assert dangling or outside.read_text() == "precious"

    def test_nothing_moves_before_all_is_written(self, tmp_path):
        (tmp_path / "a").write_text("before")
        with pytest.raises(OSError), whole_files(tmp_path) as folder:
            assert folder.name.endswith(".tmp") and folder.parent == tmp_path
            (folder / "a").write_text("half")
            raise OSError("full")
        assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "before"

    @posix
    def test_others_may_read_what_is_written(self, tmp_path):
        umask = os.umask(0o022)
        try:
            write_json(tmp_path / "one.json", 1)
            save_learner(build_learner(RUN), RUN, tmp_path / "made")
        finally:
            os.umask(umask)
        for path in [tmp_path / "one.json", *(tmp_path / "made").iterdir()]:
            assert path.stat().st_mode & 0o777 == 0o644, path

    @pytest.mark.parametrize(
        "name",
        ["README.md", "learner.json", "evaluation.json", "weights.safetensors"],
    )
    def test_no_learner_is_saved_over_what_is_yours(self, tmp_path, name):
        (tmp_path / name).write_text("{} my notes")
        with pytest.raises(FileExistsError, match=f"{name} was made by others"):
            save_learner(build_learner(RUN), RUN, tmp_path)
        assert names(tmp_path) == [name]
        assert (tmp_path / name).read_text() == "{} my notes"

    def test_no_older_evaluation_stays_beside_newer_weights(self, tmp_path):
        save_learner(build_learner(RUN), RUN, tmp_path)
        write_json(tmp_path / "evaluation.json", {"accuracies": [1], "losses": [0]})
        save_learner(build_learner(RUN), RUN, tmp_path)
        assert "evaluation.json" not in names(tmp_path)
        load_learner(tmp_path)

    @posix
    def test_the_course_is_never_copied_over_or_out(self, tmp_path):
        nbs, outside = tmp_path / "course" / "nbs", tmp_path / "outside"
        nbs.mkdir(parents=True)
        outside.mkdir()
        mine = nbs / "01_characters.ipynb.tmp"
        mine.write_text("my notes")
        (nbs / "02_tasks.ipynb.tmp").symlink_to(outside / "a")
        (nbs / "03_meta_dropout.ipynb").symlink_to(outside / "b")
        os.mkfifo(nbs / "05_training.ipynb")
        _, kept = _copy_course(tmp_path / "course")
        assert mine.read_text() == "my notes" and names(outside) == []
        assert kept == ["nbs/03_meta_dropout.ipynb", "nbs/05_training.ipynb"]
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "nbs").symlink_to(outside)
        with pytest.raises(OSError, match="leads out of"):
            _copy_course(tmp_path / "other")
        assert names(outside) == []

    def test_a_figure_is_whole_or_the_one_before(self, tmp_path, full_disk, run):
        results(tmp_path)
        assert run("compare", "--from", tmp_path).exit_code == 0
        (figure,) = tmp_path.glob("*.png")
        before = figure.read_bytes()
        with full_disk(10_000):
            assert run("compare", "--from", tmp_path).exit_code == 1
        assert figure.read_bytes() == before and not list(tmp_path.glob("*.tmp"))

    @pytest.mark.parametrize(
        "words",
        [
            ("train", "--size", 16, "--tasks", 2, "--threads", 1, "--out"),
            ("evaluate", "--test-tasks", 3),
            ("notebooks", "--no-open"),
        ],
    )
    def test_no_room_for_what_a_command_writes(self, tmp_path, full_disk, run, words):
        def contents():
            files = (path for path in tmp_path.rglob("*") if path.is_file())
            return {path: path.read_bytes() for path in files}

        save_learner(build_learner(RUN), RUN, tmp_path)
        before = contents()
        with full_disk(100):
            told = run(*words, tmp_path)
        assert told.exit_code == 1 and "Error: [Errno 27]" in told.output
        assert tmp_path.name in told.output.replace("\n", "")
        assert contents() == before

    def test_no_room_for_what_a_command_prints(self, tmp_path, run, monkeypatch):
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(cli, "_copy_course", lambda folder: (1, []))
        monkeypatch.setattr(cli.console, "print", full)
        told = run("notebooks", tmp_path, "--no-open")
        assert told.exit_code == 1 and "Error: [Errno 28]" in told.output

    @posix
    def test_a_figure_is_not_drawn_through_a_link(self, tmp_path, run):
        results(tmp_path)
        run("compare", "--from", tmp_path)
        (figure,) = tmp_path.glob("*.png")
        figure.unlink()
        (tmp_path / "mine").write_text("precious")
        figure.symlink_to(tmp_path / "mine")
        assert run("compare", "--from", tmp_path).exit_code == 0
        assert (tmp_path / "mine").read_text() == "precious"
        assert not figure.is_symlink()


def results(folder):
    for arm, accuracy in (("none", 0.4), ("meta", 0.6)):
        run = Run("eb", arm, size=16, tasks=4, test_tasks=2)
        said = {"run": asdict(run), "accuracies": [accuracy, 0.5], "losses": [1.0, 1.0]}
        write_json(folder / f"{run.name}.json", said)


class TestWhatIsRead:
    GOOD = {"run": asdict(RUN), "accuracies": [0.5, 0.5], "losses": [1.0, 1.0]}

    @pytest.mark.parametrize(
        "change",
        [
            {"run": asdict(RUN) | {"lr": 10**400}},
            {"run": asdict(RUN) | {"lr": math.nan}},
            {"run": asdict(RUN) | {"dose": 10**400}},
            {"run": asdict(RUN) | {"size": 10**22}},
            {"run": asdict(RUN) | {"seed": 2**63}},
            {"run": asdict(RUN) | {"threads": 10**6}},
            {"run": asdict(RUN) | {"\x1b[2J": 1}},
            {"losses": [10**400] * 2},
            {"losses": [10**308] * 2},
            {"losses": [math.inf] * 2},
            {"accuracies": [10**400] * 2},
        ],
    )
    def test_numbers_are_finite_and_of_their_type(self, tmp_path, change):
        path = tmp_path / "one.json"
        path.write_text(json.dumps(self.GOOD | change))
        with pytest.raises(ValueError, match="one.json is not a result") as refused:
            read_result(path)
        assert str(refused.value).isprintable()
        if "run" in change:
            made = save_learner(build_learner(RUN), RUN, tmp_path / "made")
            said = json.loads((made / "learner.json").read_text()) | change
            (made / "learner.json").write_text(json.dumps(said))
            with pytest.raises(ValueError, match="a sound learner") as refused:
                load_learner(made)
            assert str(refused.value).isprintable()

    def test_the_greatest_losses_can_be_compared(self, tmp_path):
        path = tmp_path / "one.json"
        path.write_text(json.dumps(self.GOOD | {"losses": [3e38] * 2}))
        assert "eb" in repr(Comparison([read_result(path)]))

    @posix
    @pytest.mark.parametrize("kind", ["pipe", "folder", "device", "huge"])
    def test_what_is_no_plain_file_is_refused_at_once(self, tmp_path, kind):
        put(kind, tmp_path / "one.json")
        with pytest.raises(ValueError, match="one.json is not a result"):
            load_results(tmp_path)
        for name in ("learner.json", "weights.safetensors"):
            made = save_learner(build_learner(RUN), RUN, tmp_path / name)
            put(kind, made / name)
            with pytest.raises(ValueError, match=f"a sound learner.*{name}"):
                load_learner(made)

    @posix
    def test_a_sweep_puts_a_pipe_and_a_dead_link_aside(self, tmp_path, monkeypatch):
        monkeypatch.setattr(runs, "execute", lambda *_: self.GOOD)
        path = tmp_path / f"{RUN.name}.json"
        os.mkfifo(path)
        (tmp_path / f"{path.name}.old1").symlink_to("nowhere")
        with pytest.warns(UserWarning, match="old2"):
            assert sweep([RUN], tmp_path) == [self.GOOD]
        path.unlink()
        path.symlink_to("nowhere")
        with pytest.warns(UserWarning, match="old3"):
            assert sweep([RUN], tmp_path) == [self.GOOD]
        assert os.readlink(tmp_path / f"{path.name}.old1") == "nowhere"

    def test_files_of_a_learner_are_no_results(self, tmp_path):
        save_learner(build_learner(RUN), RUN, tmp_path)
        write_json(tmp_path / "evaluation.json", {"accuracies": [], "losses": []})
        with pytest.raises(FileNotFoundError, match="no results"):
            load_results(tmp_path)
        write_json(tmp_path / "one.json", self.GOOD)
        assert load_results(tmp_path) == [self.GOOD]

    def test_a_strangers_learner_starts_no_download(
        self, tmp_path, cache, monkeypatch, run
    ):
        monkeypatch.setattr(omniglot, "_download", lambda *_: pytest.fail("a download"))
        for data in ("omniglot", "validation"):
            made = Run("proto", data=data, **TINY)
            save_learner(build_learner(made), made, tmp_path / data)
            load_split.cache_clear()
            told = run("evaluate", tmp_path / data)
            assert told.exit_code == 1 and "download=False" in told.output


class TestProcesses:
    def test_no_more_workers_than_runs(self, tmp_path, monkeypatch):
        asked = []
        processes = runs._processes
        monkeypatch.setattr(runs, "execute", lambda run, *_: self.result(run))
        monkeypatch.setattr(
            runs, "_processes", lambda n: (asked.append(n), processes(0))[1]
        )
        todo = [Run("proto", seed=seed, **TINY) for seed in range(3)]
        for some, jobs in ((todo[:1], 8), (todo, 8), (todo, 8), ([], 2)):
            sweep(some, tmp_path, jobs)
        assert asked == [0, 2, 0, 0], "what is there needs none"

    def result(self, run):
        fine = [1.0] * run.test_tasks
        return {"run": asdict(run), "accuracies": fine, "losses": fine}

    @pytest.mark.parametrize("how", [pytest.param("SIGKILL", marks=posix), "exit"])
    def test_a_killed_worker_is_named_and_the_others_finish(self, tmp_path, how):
        "In a process of its own, whose run dies by itself."
        code = f"""
import os, signal, sys
import metadropout_nb.runs as module
from metadropout_nb.runs import Run, sweep
class Dies(Run):
    def __reduce__(self):
        return eval, ({self.death(how)!r},)
todo = [(Run, Dies, Run)[seed]("proto", seed=seed, **{TINY!r}) for seed in range(3)]
try:
    sweep(todo, {str(tmp_path)!r}, jobs=2)
except ValueError as error:
    print(error)
"""
        told = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=300
        )
        assert "1 of 3 runs failed" in told.stdout, told.stderr
        why = "EXIT(3)): by an error" if how == "exit" else f"{how}(-9)): killed"
        assert f"seed1: its process ended without an answer ({why}" in told.stdout
        assert "leaked" not in told.stderr
        assert len(list(tmp_path.glob("*.json"))) == 2

    def test_a_worker_that_cannot_import_is_not_told_as_killed(self, tmp_path):
        broken = tmp_path / "path" / "metadropout_nb"
        broken.mkdir(parents=True)
        (broken / "__init__.py").write_text("import lacking")
        code = f"""
import sys
from metadropout_nb.runs import Run, sweep
sys.path.insert(0, {str(broken.parent)!r})
todo = [Run("proto", seed=seed, **{TINY!r}) for seed in range(2)]
try:
    sweep(todo, {str(tmp_path / "out")!r}, jobs=2)
except ValueError as error:
    print(error)
"""
        told = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=300
        )
        assert "No module named 'lacking'" in told.stdout
        assert "by an error that stands above, of an import perhaps" in told.stdout
        assert "killed" not in told.stdout

    def death(self, how):
        if how == "exit":
            return "__import__('os')._exit(3)"
        number = int(getattr(signal, how))
        return f"__import__('os').kill(__import__('os').getpid(), {number})"

    @linux
    @pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGINT"])
    def test_workers_do_not_outlive_the_command(self, tmp_path, name):
        words = ["compare", "--size", "16", "--tasks", "100000", "--seeds", "1"]
        sweeping = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "metadropout_nb",
                *words,
                "--jobs",
                "2",
                "--out",
                tmp_path,
            ],
            stderr=subprocess.DEVNULL,
        )
        wait(lambda: len(list(tmp_path.glob("*.lock"))) == 2)
        workers = children(sweeping.pid)
        assert len(workers) >= 2
        sweeping.send_signal(getattr(signal, name))
        sweeping.wait()
        wait(lambda: not any(map(alive, workers)), 20)
        assert name != "SIGINT" or not list(tmp_path.glob("*.lock"))

    def test_what_no_machine_can_hold_is_a_sentence(self, tmp_path, run):
        for words in (
            ("train", "--size", 100_000),
            ("train", "--size", "9" * 22),
            ("train", "--threads", 10**6),
            ("train", "--seed", 2**64),
            ("compare", "--size", 100_000, "--seeds", 1, "--jobs", 1),
            ("compare", "--test-tasks", 10**12, "--seeds", 1, "--jobs", 1),
        ):
            told = run(*words, "--out", tmp_path / "made")
            assert told.exit_code == 1 and "Error:" in told.output, words
        with pytest.raises(ValueError, match="fill the memory"):
            frozen_tasks(RUN, 10**12)

    @pytest.mark.parametrize("value", ["0", "-1", "two", "", "²"])
    def test_a_mistake_in_the_environment(self, monkeypatch, value):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", value)
        with pytest.raises(ValueError, match="LOCAL_WORLD_SIZE"):
            _cores()

    def test_any_plotting_backend_and_any_name(self, tmp_path):
        results(tmp_path)
        folder = tmp_path / os.fsdecode(b"\xff\x1b[2J" if os.name == "posix" else b"x")
        folder.mkdir()
        for path in tmp_path.glob("*.json"):
            path.rename(folder / path.name)
        env = {"MPLBACKEND": "module://of_another", "PYTHONIOENCODING": "ascii:strict"}
        told = command("compare", "--from", folder, env=os.environ | env)
        assert told.returncode == 0, told.stderr
        assert len(list(folder.glob("*.png"))) == 1


def wait(until, seconds=120):
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


def children(pid):
    "Of this process, and theirs."
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found += [int(path.parent.name), *children(int(path.parent.name))]
    return found


def alive(pid):
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )
    except OSError:
        return False


class TestNoHome:
    @pytest.mark.parametrize("home", [RuntimeError("no home"), Path("~/.cache/x")])
    def test_a_cache_is_a_convenience(self, tmp_path, monkeypatch, home):
        def nowhere(name):
            if isinstance(home, Exception):
                raise home
            return home

        monkeypatch.setattr(omniglot, "user_cache_path", nowhere)
        monkeypatch.chdir(tmp_path)
        drawings = omniglot.glyphs(2, 2, 28)
        for c, of_class in enumerate(drawings.images):
            folder = tmp_path / "data" / "images_evaluation" / "a" / str(c)
            folder.mkdir(parents=True)
            for d, drawing in enumerate(of_class):
                omniglot.Image.fromarray(255 - drawing.numpy()).save(
                    folder / f"{d}.png"
                )
        with pytest.warns(UserWarning, match="2 of Omniglot's 659"):
            found = omniglot.load_omniglot(tmp_path / "data", False, size=28)
        assert torch.equal(found.images, drawings.images)
        assert names(tmp_path) == ["data"]
        monkeypatch.delenv("METADROPOUT_DATA", raising=False)
        with pytest.raises(FileNotFoundError, match="METADROPOUT_DATA"):
            omniglot.load_omniglot()
