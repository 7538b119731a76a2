"""Folders are replaced atomically, and files of other programs are not lost."""

import os
import shutil
from pathlib import Path

import pytest

from dpr_lightning import folders
from dpr_lightning.callbacks.checkpoint_store import MANIFEST, STATE, CheckpointStore
from dpr_lightning.errors import InputError
from dpr_lightning.experiments.recipes import write_config
from dpr_lightning.experiments.run_folder import STAGE_FILES, fresh_folder
from dpr_lightning.folders import clear_run, recover, recover_all, whole_file, whole_folder
from dpr_lightning.lightning_cli.path_checks import protected
from dpr_lightning.paths import PathUse, Writes


def write(folder: Path, **files: str) -> None:
    with whole_folder(folder) as unfinished:
        for name, text in files.items():
            (unfinished / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != folders.WRITTEN
    }


@pytest.fixture(params=[True, False], ids=["exchanged", "renamed twice"])
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(folders, "_exchange", lambda first, second: False)
    return bool(request.param)


@pytest.mark.usefixtures("exchange")
def test_files_of_others_are_kept_and_own_ones_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    write(folder, weights="old", adapter="old")
    (folder / "notes.txt").write_text("mine")
    (folder / "figures").mkdir()
    (folder / "figures" / "loss.png").write_text("mine")
    write(folder, weights="new")
    assert contents(folder) == {"weights": "new", "notes.txt": "mine", "figures/loss.png": "mine"}
    write(folder, weights="newer", **{"notes.txt": "ours"})  # a name that somebody has taken
    assert contents(folder) == {
        "weights": "newer",
        "notes.txt": "ours",
        "notes.txt.before_1": "mine",
        "figures/loss.png": "mine",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


@pytest.mark.usefixtures("exchange")
def test_a_folder_of_something_else_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in (1, 2):
        (tmp_path / "final").mkdir()
        (tmp_path / "final" / "thesis.tex").write_text(str(number))
        write(tmp_path / "final", weights="new")
        assert contents(tmp_path / "final") == {"weights": "new"}
        assert contents(tmp_path / f"final.before_{number}") == {"thesis.tex": str(number)}
        assert f"final.before_{number}" in caplog.text
        shutil.rmtree(tmp_path / "final")


@pytest.mark.usefixtures("exchange")
def test_a_crash_at_any_moment_of_the_replacement_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step on the disk is the last one once; the next use finds the old folder or the new one, whole."""
    monkeypatch.setattr(folders, "_QUIET_S", 0)
    for at in range(12):
        folder = tmp_path / str(at) / "final"
        write(folder, weights="old", more="old")
        (folder / "notes.txt").write_text("mine")
        survived = _dies_at(at, folder, monkeypatch)
        recover(folder)
        result = contents(folder)
        assert result.pop("notes.txt") == "mine"
        assert result in ({"weights": "old", "more": "old"}, {"weights": "new"})
        write(folder, weights="newer")
        assert contents(folder) == {"weights": "newer", "notes.txt": "mine"}
        assert [path.name for path in folder.parent.iterdir()] == ["final"]
        if survived:
            break
    else:
        raise AssertionError("more steps than were tried")
    assert at > 1


@pytest.mark.usefixtures("exchange")
@pytest.mark.parametrize("before", ["old", None])
def test_the_next_command_clears_what_a_death_leaves(
    before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it does not write that folder again, and at once: it has locked it."""
    for at in range(12):
        folder = tmp_path / str(at) / "step_0000001"
        if before is not None:
            write(folder, weights=before)
        survived = _dies_at(at, folder, monkeypatch)
        with protected([PathUse("folder", folder.parent, Writes("step_*", whole=True))]):
            assert contents(folder) in ({"weights": "new"}, {"weights": before})
        assert [path.name for path in folder.parent.iterdir()] == ["step_0000001"]
        if survived:
            break
    else:
        raise AssertionError("more steps than were tried")
    assert at > 0


def test_a_temporary_folder_that_is_not_complete_becomes_no_policy(tmp_path: Path) -> None:
    torn, empty = tmp_path / ".final.a1b2c3d4", tmp_path / ".final.00000000"
    write(torn, weights="new")
    (torn / "weights").unlink()
    empty.mkdir()
    for name in (".final.photos", ".final.a1b2c3d4.tar", ".another.a1b2c3d4", ".final.a1b2c3dX"):
        (tmp_path / name).mkdir()
    recover_all(tmp_path, "final", locked=False)
    assert torn.exists()  # for an hour, as nothing says that its process is on this machine
    recover_all(tmp_path, "final", locked=True)
    assert not (tmp_path / "final").exists()
    names = {".final.photos", ".final.a1b2c3d4.tar", ".another.a1b2c3d4", ".final.a1b2c3dX"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_temporary_folder_that_is_being_written_stays_beside_a_locked_path(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "final") as unfinished:
        recover_all(tmp_path, "final", locked=True)
        assert unfinished.exists()


def test_files_are_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.json"
    for text in ("old", "new"):
        with whole_file(path) as stream:
            stream.write(text)
            assert not path.exists() or path.read_text() == "old"
        (path.parent / ".metrics.json.part").write_text("torn")  # a death in the middle of another writing
    assert path.read_text() == "new"
    with protected([PathUse("output", path, Writes(marks=("new",)))]):
        assert not (path.parent / ".metrics.json.part").exists()
    with pytest.raises(OSError, match="disk"), whole_file(path):
        raise OSError("disk")
    assert [entry.name for entry in path.parent.iterdir()] == ["metrics.json"]


class Died(BaseException):
    """Stands for SIGKILL: nothing that follows may run."""


def _dies_at(step: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Replace ``folder`` and die before the numbered rename, exchange, link or deletion; whether there were fewer."""
    count = 0

    def counted(inner):  # type: ignore[no-untyped-def]
        def call(*arguments, **options):  # type: ignore[no-untyped-def]
            nonlocal count
            if count >= step:  # everything after the death fails too, clean-up in `finally` among it
                count += 1
                raise Died
            count += 1
            return inner(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", counted(Path.rename))
        patch.setattr(folders.shutil, "rmtree", counted(shutil.rmtree))
        patch.setattr(os, "link", counted(os.link))
        patch.setattr(folders, "_exchange", counted(folders._exchange))
        try:
            write(folder, weights="new")
        except Died:
            return False
    return True


def test_temporary_folders_of_the_living_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Another machine may not see the lock, but the folder changes.
    monkeypatch.setattr(folders, "lock_descriptor", lambda handle: True)
    with whole_folder(tmp_path / "elsewhere") as first:
        recover(tmp_path / "elsewhere")
        assert first.exists()
    monkeypatch.undo()
    with whole_folder(tmp_path / "entry") as first:
        (first / "part").write_text("first")
        monkeypatch.setattr(folders, "_QUIET_S", 0)
        recover(tmp_path / "entry")
        write(tmp_path / "entry", part="second")
        assert first.exists()
    assert contents(tmp_path / "entry") == {"part": "first"}


def test_a_reader_in_the_moment_between_two_renames_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "final"
    write(folder, weights="old")
    monkeypatch.setattr(folders, "_exchange", lambda first, second: False)
    rename, readers = Path.rename, [1]

    def interrupted(self: Path, target: Path) -> Path:
        result = rename(self, target)
        if target.name == ".final.previous" and readers:
            readers.clear()
            recover(folder)
        return result

    monkeypatch.setattr(Path, "rename", interrupted)
    write(folder, weights="new")
    assert contents(folder) == {"weights": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_names_with_wildcards_stand_for_themselves(tmp_path: Path) -> None:
    for name in ("run[1]", "run1"):
        (tmp_path / f".{name}.previous").mkdir()
    recover(tmp_path / "run[1]")
    assert {path.name for path in tmp_path.iterdir()} == {"run[1]", ".run1.previous"}


def checkpoint(store: CheckpointStore, step: int, text: str) -> Path:
    (store.begin(step) / STATE).write_text(text)
    return store.finish(step, {})


@pytest.mark.usefixtures("exchange")
def test_checkpoints_keep_what_others_put_into_their_folders(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    (checkpoint(store, 1, "old") / "notes.txt").write_text("mine")
    folder = checkpoint(store, 1, "new")
    assert store.newest() == 1
    assert (folder / STATE).read_text() == "new"
    assert (folder / "notes.txt").read_text() == "mine"
    checkpoint(store, 2, "two")
    store.keep({2})
    assert store.steps() == [2]
    assert contents(folder) == {"notes.txt": "mine"}
    checkpoint(store, 1, "again")
    assert store.steps() == [2, 1]
    store.keep(set())
    assert {path.name for path in tmp_path.iterdir()} <= {"step_0000001.before_1", "step_0000001"}
    assert "mine" in [text for path in tmp_path.iterdir() for text in contents(path).values()]


def test_a_checkpoint_that_was_being_replaced_is_found(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    checkpoint(store, 3, "state").rename(tmp_path / ".step_0000003.previous")
    assert store.newest() == 3


def test_a_manifest_deletes_nothing_outside_of_its_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    (tmp_path / "thesis.tex").write_text("mine")
    manifest = checkpoint(store, 1, "state") / MANIFEST
    manifest.write_text(manifest.read_text().replace(STATE, "../../thesis.tex"))
    store.keep(set())
    assert (tmp_path / "thesis.tex").exists()


def test_a_run_that_begins_anew_deletes_what_the_former_one_wrote(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    fresh_folder(run, "marker.json")
    write(run / "sft" / "policies" / "final", weights="old")
    checkpoint(CheckpointStore(run / "sft" / "checkpoints"), 1, "state")
    for name in ("sft", "dpr"):
        write_config({"seed_everything": 0}, run, name)
    for name in ("metrics.json", "sft/metrics.csv", "data/test.jsonl", "wandb/run-1/log", "wandb/run-2/files/x"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("old")
    mine = (
        *("notes.txt", "sft/policies/final/notes.txt", "data/more.jsonl", "thesis/a.tex", "thesis/config.yaml"),
        *("thesis/cache/a", "configs/sft_mine.yaml", "configs/arm_1.yaml", "dpr.yaml", "data/plots/report.html"),
    )
    for name in mine:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("mine")
    write(run / "base", weights="kept")
    write(run / "exported", weights="mine")
    (run / "elsewhere").mkdir()
    (tmp_path / "outside" / "checkpoints").mkdir(parents=True)
    (tmp_path / "outside" / "metrics.csv").write_text("mine")
    (run / "dpr").symlink_to(tmp_path / "outside")
    fresh_folder(run, "marker.json", keep=("base",))
    assert contents(run) == {
        "marker.json": "{}\n",
        "base/weights": "kept",
        "exported/weights": "mine",
        **dict.fromkeys(mine, "mine"),
    }
    assert (tmp_path / "outside" / "metrics.csv").exists()
    assert (tmp_path / "outside" / "checkpoints").exists()
    assert not (run / "wandb").exists()
    assert "notes.txt" in caplog.text
    with pytest.raises(InputError, match="files of another kind"):
        fresh_folder(run, "another.json")


def test_a_stage_that_begins_anew_leaves_no_checkpoint_of_the_former_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    checkpoint(store, 1, "state")
    shards = store.begin(2) / STATE
    shards.mkdir(parents=True)
    (shards / "rank_0").write_text("part")
    store.finish(2, {})
    (store.begin(3) / STATE).write_text("torn")
    write(tmp_path / "policies" / "step_0000001", weights="old")
    assert clear_run(tmp_path, STAGE_FILES) == []
