"""What `quintet prune` removes, and what it never does."""

from pathlib import Path

import pytest
from ansible_collections.quintet.django.plugins.modules import app_environment
from host_support import A, B, C, D, E, F, Machine, machine, slept_for
from quintet_host import pool
from quintet_host.generation import load
from quintet_host.prune import CACHE_MAX_BYTES, prune
from quintet_host.state import AppState, Hold, Unconfirmed
from quintet_host.units import drain_unit


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    """A host with six good generations, built in the order of their letters; F, the newest, serves."""
    found = machine(tmp_path)
    for identifier in (A, B, C, D, E, F):
        found.add(identifier, "good")
    found.serve(F)
    return slept_for(found, 7200)


def test_the_newest_good_ones_stay(here: Machine) -> None:
    done = prune(here.host, "shop")
    assert done.generations == [A, B, C]
    assert here.layout.generation_ids("shop") == [D, E, F]
    assert sorted(path.name for path in (here.layout.state("shop") / "generations").iterdir()) == [
        f"{one}.json" for one in (D, E, F)
    ]
    assert here.log() == [("prune", "ok")]
    assert prune(here.host, "shop").public()["changed"] is False


def test_current_previous_held_running_and_draining_ones_stay(here: Machine) -> None:
    here.serve(B)
    here.host.store("shop").write(AppState(previous=A, hold=Hold(C, "", "")))
    here.system.active = {f"daphne-shop-1@{D}.service": "deactivating", drain_unit("shop", E): "active"}
    assert prune(here.host, "shop", keep=1).generations == []
    here.system.active.clear()
    assert prune(here.host, "shop", keep=1).generations == [D, E]


def test_both_sides_of_an_unconfirmed_switch_stay(here: Machine) -> None:
    here.system.active.clear()
    waiting = Unconfirmed(A, B, "", C, Hold(D, "", ""))
    here.host.store("shop").write(AppState(unconfirmed=waiting))
    assert prune(here.host, "shop", keep=1).generations == [E]


def test_the_last_two_that_never_served_stay(here: Machine) -> None:
    for identifier in (A, B, C):
        here.host.store("shop").mark(identifier, "failed", "no", here.clock.now())
    assert prune(here.host, "shop").generations == [A]


def test_what_may_still_be_being_built_stays(tmp_path: Path) -> None:
    here = machine(tmp_path)
    for identifier in (A, B, C):
        here.add(identifier, "building")
    assert prune(slept_for(here, 60).host, "shop").generations == []
    assert prune(slept_for(here, 7200).host, "shop").generations == [A, B, C], "of a killed build nothing is kept"


def test_a_generation_without_a_description_can_be_removed(here: Machine) -> None:
    (here.layout.generation("shop", A) / "generation.json").unlink()
    here.host.store("shop").mark(A, "failed", "", here.clock.now())
    for identifier in (B, C):
        here.host.store("shop").mark(identifier, "failed", "", here.clock.now())
    assert prune(here.host, "shop").generations == [A]


def test_a_removal_that_was_killed_is_finished(here: Machine) -> None:
    half = here.layout.generations("shop") / f".{A}.pruned"
    (half / "src").mkdir(parents=True)
    prune(here.host, "shop")
    assert not half.exists()


def test_environments_that_nobody_uses_go(tmp_path: Path) -> None:
    here = machine(tmp_path)
    here.add(A, "good", venv="used")
    here.add(B, "good", venv="dropped")
    here.serve(B)
    here.serve(A)
    here.system.active.clear()
    assert prune(slept_for(here, 60).host, "shop", keep=1).venvs == []
    late = slept_for(here, 7200)
    late.host.store("shop").mark(B, "failed", "", late.clock.now())
    for identifier in (C, D):
        late.add(identifier, "failed", venv="used")
    assert prune(late.host, "shop").venvs == ["dropped"]
    assert [path.name for path in here.layout.venvs("shop").iterdir()] == ["used"]


def revisions(here: Machine) -> Path:
    return here.layout.configuration("shop") / "revisions"


def test_revisions_that_nobody_uses_go(tmp_path: Path) -> None:
    here = machine(tmp_path)
    here.add(A, "good", revision=2)
    for number in (1, 2, 9, 10):
        (revisions(here) / str(number)).mkdir(parents=True)
    assert prune(here.host, "shop").revisions == ["1", "9"], "2 is used, 10 is the newest (not 9, as text has it)"


def test_revisions_stay_while_one_does_not_say_which_it_uses(tmp_path: Path) -> None:
    here = machine(tmp_path)
    here.add(A, "building")
    (here.layout.generation("shop", A) / "generation.json").unlink()
    for number in (1, 2):
        (revisions(here) / str(number)).mkdir(parents=True)
    assert prune(here.host, "shop").revisions == []


def test_secrets_that_a_killed_run_has_half_written_go(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = here.layout.configuration("shop")
    there = {path for path in directory.rglob("*") if path.is_file()}

    def left() -> list[str]:
        return [path.read_text() for path in directory.rglob("*") if path.is_file() and path not in there]

    revisions(here).mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: None)
        app_environment.write_private(directory / "secrets.json", "old")
        app_environment.write_revision(revisions(here), 7, {"credentials/SECRET_KEY": "old"})
    assert left() == ["old", "old"]
    prune(slept_for(here, 60).host, "shop")
    assert left() == ["old", "old"], "another run may be writing"
    prune(here.host, "shop")
    assert left() == []


def test_links_inside_are_not_followed(here: Machine, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (here.layout.generation("shop", A) / "src/link").symlink_to(outside)
    assert A in prune(here.host, "shop").generations
    assert (outside / "kept").exists()


def test_dumps_pooled_files_and_a_large_cache_go(here: Machine) -> None:
    dumps = here.layout.state("shop") / "dumps"
    dumps.mkdir()
    for day in range(1, 6):
        (dumps / f"{A}-2026110{day}T000000Z.dump").touch()
    (here.layout.generation("shop", A) / "static/a.css").write_text("a")
    pool.add(here.host, load(here.layout, "shop", A))
    cache = here.root / "var/cache/quintet/shop/uv"
    cache.mkdir(parents=True)
    with (cache / "sparse").open("wb") as stream:
        stream.truncate(CACHE_MAX_BYTES)
    late = slept_for(here, 40 * 86400)
    done = prune(late.host, "shop")
    assert done.dumps == [f"{A}-20261101T000000Z.dump", f"{A}-20261102T000000Z.dump"]
    assert done.static_files == ["a.css"]
    assert done.caches == []
    with (cache / "sparse").open("ab") as stream:
        stream.write(b"x")
    assert prune(late.host, "shop").caches == [str(cache)]
    assert not cache.exists()
    assert prune(late.host, "shop").public()["changed"] is False
    assert late.host.store("shop").read_log()[0]["static_files"] == 1


def test_one_in_which_somebody_works_stays(here: Machine) -> None:
    here.system.active[f"quintet-manage-shop-{A}-4711.service"] = "active"
    assert prune(here.host, "shop").generations == [B, C]
    del here.system.active[f"quintet-manage-shop-{A}-4711.service"]
    assert prune(here.host, "shop").generations == [A]


def test_the_probes_of_what_is_removed_go_with_it(here: Machine) -> None:
    for identifier in (A, F):
        path = here.layout.kept_probes("shop", identifier)
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    prune(here.host, "shop")
    assert [path.stem for path in here.layout.kept_probes("shop", A).parent.iterdir()] == [F]
