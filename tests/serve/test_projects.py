"""Projects in their store: members once and in order, seen by who is named, with two writers."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")

from qinjing.serve.catalogue import open_catalogue
from qinjing.serve.projects import TARGET_KAPPA, Projects

ONE, TWO, THREE = (digit * 32 for digit in "123")


@pytest.fixture
def projects(tmp_path: Path) -> Projects:
    return open_catalogue(tmp_path / "clinic").projects


def test_a_project_is_kept_as_it_was_made(projects: Projects, tmp_path: Path) -> None:
    labels = {2: "肝", 1: "liver"}
    made = projects.make("Livers", labels, [TWO, ONE, TWO], ["Wang", "Li", "Wang"])
    again = open_catalogue(tmp_path / "clinic").projects.get(made.project_id)  # another process
    assert again == made
    assert (made.images, made.readers) == ((TWO, ONE), ("Wang", "Li"))
    assert (made.labels, made.target_kappa, len(made.project_id)) == (labels, TARGET_KAPPA, 32)


def test_what_is_put_in_twice_stays_where_it_was(projects: Projects) -> None:
    made = projects.make("Livers", {1: "liver"}, [ONE, TWO], ["Li"])
    projects.put(made.project_id, images=[THREE, ONE], readers=["Wang", "Li"])
    projects.put(made.project_id, images=[THREE])
    now = projects.get(made.project_id)
    assert now is not None
    assert (now.images, now.readers) == ((ONE, TWO, THREE), ("Li", "Wang"))


def test_only_who_is_named_sees_only_what_he_is_named_for(projects: Projects) -> None:
    first = projects.make("Livers", {1: "liver"}, [ONE, TWO], ["Li", "Wang"])
    second = projects.make("Lungs", {1: "lung"}, [TWO, THREE], ["Wang"])
    seen = {
        (person, image): projects.sees(person, image)
        for person in ("Li", "Wang", "li", "Li ", "") for image in (ONE, TWO, THREE, "")
    }  # fmt: skip
    assert {pair for pair, yes in seen.items() if yes} == {
        ("Li", ONE), ("Li", TWO), ("Wang", ONE), ("Wang", TWO), ("Wang", THREE),
    }  # fmt: skip
    assert projects.of("Li") == [first] and projects.of("Wang") == [first, second]
    assert projects.of("Mallory") == [] and projects.of(None) == [first, second]
    assert projects.get("0" * 32) is None


@pytest.mark.parametrize("name", ["'; DROP TABLE project; --", "%", "Li' OR '1'='1"])
def test_a_name_is_a_name_and_nothing_else(name: str, projects: Projects) -> None:
    made = projects.make(name, {1: name}, [ONE], [name])
    assert projects.of("Wang") == [] and projects.of(name) == [made]
    assert not projects.sees("Wang", ONE)


def test_two_who_add_at_once_lose_nothing(projects: Projects, tmp_path: Path) -> None:
    made = projects.make("Livers", {1: "liver"}, [], ["Li"])
    ids = [f"{number:032x}" for number in range(40)]
    stores = [open_catalogue(tmp_path / "clinic").projects for _ in range(2)]

    def add(store: Projects, mine: list[str]) -> None:
        for one in mine:
            store.put(made.project_id, images=[one])

    # Each adds half, and five of the other's.
    threads = [threading.Thread(target=add, args=(store, mine))
               for store, mine in zip(stores, (ids[:25], ids[20:]), strict=True)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    now = projects.get(made.project_id)
    assert now is not None and sorted(now.images) == ids
