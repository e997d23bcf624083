"""Approving in the real Prefect UI, in a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Page, async_playwright, expect

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

pytestmark = [
    pytest.mark.browser,
    pytest.mark.usefixtures("prefect_api", "ledger_url"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = await browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(60_000)
        yield page
        await browser.close()


async def test_a_person_approves_a_recovery_on_the_paused_runs_page(page: Page) -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95), total=2000)
    guarding = simulation.guard(Policy(preset=Preset.ASSIST))
    question = await simulation.question()
    await until(lambda: _paused(question.flow_run_id), "the pause")
    await page.goto(f"{os.environ['PREFECT_UI_URL']}/runs/flow-run/{question.flow_run_id}")
    await page.get_by_role("button", name="Resume").first.click()
    form = page.locator(".p-modal")
    await expect(form.get_by_text("may this be done?")).to_be_visible(timeout=60_000)
    await expect(form.get_by_text("/checkpoints/step-90")).to_be_visible()

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
