"""Approving in the real Prefect UI, in a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Locator, Page, ViewportSize, async_playwright, expect

from tests.flows.simulation import Simulation, until
from tests.flows.test_guard import _paused
from trainguard.core.policy import Policy, Preset
from trainguard.ledger.ledger import Ledger
from trainguard.testing.simulated import Fault, FaultKind

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

LAPTOP, PHONE = ViewportSize(width=1440, height=900), ViewportSize(width=390, height=844)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.usefixtures("prefect_api", "ledger_url"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = await browser.new_page(viewport=LAPTOP)
        page.set_default_timeout(60_000)
        yield page
        await browser.close()


async def test_a_person_approves_a_recovery_on_the_paused_runs_page(page: Page) -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95), total=2000)
    guarding = simulation.guard(Policy(preset=Preset.ASSIST))
    question = await simulation.question()
    await until(lambda: _paused(question.flow_run_id), "the pause")
    await page.set_viewport_size(PHONE)
    await page.goto(f"{os.environ['PREFECT_UI_URL']}/runs/flow-run/{question.flow_run_id}")
    await page.locator(".p-icon-button-menu").last.click()
    await page.get_by_text("Resume", exact=True).last.click()
    await _says_what_it_asks(page.locator(".p-modal"))
    await page.set_viewport_size(LAPTOP)
    await page.reload()
    form = page.locator(".p-modal")
    await page.get_by_role("button", name="Resume").first.click()
    await _says_what_it_asks(form)
    await expect(form.get_by_text("Memory")).to_have_count(0)  # the plan has no use for it

    # A bare Submit decides nothing: the decision has no default.
    await form.get_by_role("button", name="Submit").click()
    await expect(form.get_by_text("'decision' is a required property")).to_be_visible()
    assert simulation.starts == 1

    # A click of the mouse opens and closes the list at once where nothing moves: the keyboard opens it.
    await form.locator(".p-select-button__control").focus()
    await page.keyboard.press("ArrowDown")
    await page.locator(".p-select-option", has_text="approve").click()
    await form.locator("textarea").first.fill("uma")
    incident = form.locator("textarea").last
    await expect(incident).to_have_value(question.incident)
    await incident.fill("another")
    await form.get_by_role("button", name="Submit").click()
    await expect(page.get_by_text("does not match").first).to_be_visible()
    assert simulation.starts == 1
    await incident.fill(question.incident)
    await form.get_by_role("button", name="Submit").click()
    state = await guarding
    assert state.message == "succeeded, recovered 1 time"
    async with await Ledger.open() as ledger:
        answer = await ledger.answer_of(question.id)
    assert answer is not None
    assert (answer.by, answer.via) == ("uma", "ui")
    assert simulation.starts == 2


async def _says_what_it_asks(form: Locator) -> None:
    """All of the question, and what it is about, is in sight without scrolling."""
    question = form.get_by_text("May this be done?")
    await expect(question).to_be_in_viewport(ratio=1, timeout=60_000)
    await expect(question).to_contain_text("restart from /checkpoints/step-90")
    await expect(form.get_by_text("crash at step")).to_be_in_viewport(ratio=1)
