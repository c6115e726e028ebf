"""The page in a real browser, by keyboard: a withdrawal is confirmed, recorded, and explained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qinjing.data.consent import Store
from tests.serve.browser import MISSING, Browser, chromium
from tests.serve.conftest import Service

pytestmark = pytest.mark.skipif(not chromium(), reason=MISSING)
ENTRY = "document.activeElement?.id === 'token'"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as one:
        yield one


def test_the_ethics_office_withdraws(
    service: Service, running: Callable[[Service], str], browser: Browser, place: str
) -> None:
    browser.send("Page.navigate", url=f"{running(service)}/consent")
    browser.until(ENTRY)
    browser.type(service.token("ethics", name="Dr. Li"))
    browser.press("Enter")
    browser.until("document.activeElement.id === 'search' && document.querySelector('#list li')")
    browser.type("anna")
    browser.until("document.querySelectorAll('#list button.fresh').length === 1")
    browser.press("Tab")
    browser.press("Enter")
    browser.until("document.activeElement.id === 'fileTitle' && document.querySelector('td.model')")
    while browser.run("document.activeElement.id") != "withdraw-research":
        browser.press("Tab")
    browser.press("Enter")
    browser.until("document.getElementById('dialog').open")
    # The safe answer has the focus, and what follows stands there before anything is done.
    assert browser.run("document.activeElement.id") == "cancel"
    said = browser.run("document.getElementById('dialog').innerText")
    assert "next batch" in said and "models/liver" in said and "models/lung" not in said
    browser.press("Escape")
    browser.until("document.activeElement.id === 'withdraw-research'")
    with Store(place) as store:
        assert store.permitted("p-anna", "research")
        browser.press("Enter")
        browser.press("Tab")
        browser.press("Enter")
        browser.until("document.activeElement.id === 'told'")
        assert not store.permitted("p-anna", "research")
    said = browser.run("document.getElementById('told').innerText")
    assert "entry 4" in said and "next batch" in said and "models/liver" in said
    assert "p-anna" not in browser.run("location.href + JSON.stringify({...localStorage})")
    browser.run("document.getElementById('language').click()")
    assert browser.run("document.documentElement.lang") == "zh-Hans"
    assert "下一个批次" in browser.run("document.getElementById('told').innerText")
    assert "HttpOnly" not in browser.run("document.cookie") and not browser.run("document.cookie")
    browser.run("document.getElementById('leave').click()")
    browser.until(ENTRY)
    assert "p-anna" not in browser.run("document.body.innerHTML")
    faults = [one for one in browser.log if "401" not in one]  # asked whether there is a session
    assert faults == []


def test_nobody_is_left_in_a_dialog(
    service: Service, running: Callable[[Service], str], browser: Browser
) -> None:
    browser.send("Page.navigate", url=f"{running(service)}/consent")
    browser.until(ENTRY)
    browser.type(service.token("patient", patient_id="p-bela", name="Bela"))
    browser.press("Enter")
    browser.until("document.querySelector('[id^=grant-]')")
    # A page that nobody looks at draws nothing, and then a browser does not say "closed" either.
    browser.run("addEventListener('close', (event) => event.stopImmediatePropagation(), true)")
    browser.run("document.querySelector('[id^=grant-]').click()")
    assert browser.run("document.getElementById('dialogBody').innerText.includes('p-bela')")
    browser.run("document.getElementById('leave').click()")
    browser.until(ENTRY)
    assert "p-bela" not in browser.run("document.body.innerHTML")
    assert not browser.run("document.getElementById('dialog').open")


def test_a_patient_sees_one_file_and_a_name_is_no_markup(
    service: Service, running: Callable[[Service], str], browser: Browser
) -> None:
    name = "<img><script>alert(1)</script>"
    token = service.token("patient", patient_id="p-bela", name=name)
    browser.send("Page.navigate", url=f"{running(service)}/consent")
    browser.until(ENTRY)
    browser.type("nonsense")
    browser.press("Enter")
    browser.until("document.getElementById('entryError').innerText.includes('opens nothing')")
    browser.run("document.getElementById('token').value = ''")
    browser.type(token)
    browser.press("Enter")
    browser.until("document.getElementById('fileTitle')?.innerText === 'Patient p-bela'")
    assert browser.run("document.getElementById('finder').hidden")
    assert name in browser.run("document.getElementById('who').innerText")
    assert browser.run("document.querySelectorAll('#who img').length") == 0
    # A reload keeps the session; the page's policy lets no script in that is not its own.
    browser.send("Page.reload")
    browser.until("document.getElementById('fileTitle')?.innerText === 'Patient p-bela'")
    assert browser.run(
        "new Promise(done => { addEventListener('securitypolicyviolation', () => done(true));"
        "const s = document.createElement('script'); s.textContent = 'window.bad = 1';"
        "document.body.append(s); setTimeout(() => done(false), 500); })"
    )
    assert browser.run("window.bad") is None


def test_a_file_that_comes_late_takes_no_other_patients_place(
    service: Service, running: Callable[[Service], str], browser: Browser, place: str
) -> None:
    browser.send("Page.navigate", url=f"{running(service)}/consent")
    browser.until(ENTRY)
    browser.type(service.token("ethics"))
    browser.press("Enter")
    browser.until("document.querySelectorAll('#list li').length === 2")
    # Files of p-anna are held back until they are let go.
    browser.run(
        "window.held = []; window.came = 0; const fetched = window.fetch;"
        "window.fetch = async (path, options) => { const answer = await fetched(path, options);"
        "if (path.endsWith('/patient') && options.body.includes('p-anna')) {"
        "await new Promise((go) => held.push(go)); window.came += 1; } return answer; }; 0"
    )
    title = "document.getElementById('fileTitle')?.innerText"
    let_go = (
        "new Promise((done) => { held.splice(0).forEach((go) => go()); setTimeout(done, 300); })"
    )

    def choose(patient: str) -> None:
        browser.run(
            "[...document.querySelectorAll('#list button')]"
            f".find((one) => one.innerText.startsWith('{patient}')).click()"
        )

    choose("p-anna")
    browser.until("held.length === 1")
    choose("p-bela")
    browser.until(f"{title} === 'Patient p-bela'")
    browser.run(let_go)
    assert browser.run("came") == 1 and browser.run(title) == "Patient p-bela"
    # And what is confirmed is for the patient whom the dialog names.
    choose("p-anna")
    browser.until("held.length === 1")
    browser.run("document.getElementById('withdraw-research').click()")
    browser.until("document.getElementById('dialog').open")
    browser.run(let_go)
    assert browser.run("came") == 2 and browser.run(title) == "Patient p-bela"
    assert "Patient p-bela" in browser.run("document.getElementById('dialog').innerText")
    browser.run("document.getElementById('confirm').click()")
    browser.until("document.activeElement.id === 'told'")
    assert browser.run(title) == "Patient p-bela"
    with Store(place) as store:
        assert store.permitted("p-anna", "research") and not store.permitted("p-bela", "research")


def test_a_page_waits_while_models_are_looked_through_for_another(
    service: Service, running: Callable[[Service], str], browser: Browser
) -> None:
    browser.send("Page.navigate", url=f"{running(service)}/consent")
    browser.until(ENTRY)
    browser.type(service.token("patient", patient_id="p-anna"))
    with service.app.state.walking:
        browser.press("Enter")
        browser.until("document.body.innerText.includes('Looking through the models')")
        browser.run("new Promise((done) => setTimeout(done, 500))")
        assert not browser.run("document.querySelector('#file .error')")
    browser.until("document.querySelector('td.model')")
