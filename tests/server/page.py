"""Uses the server's page in a headless Chromium: type, see tokens come, stop, see statistics.

usage: page.py SERVER-PROGRAM [SCREENSHOT.png]
"""

import shutil
import sys
import time

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from harness import server


def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome")
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1000,800"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def wait(what, is_true, seconds=30):
    deadline = time.monotonic() + seconds
    while not (value := is_true()):
        assert time.monotonic() < deadline, f"in vain for: {what}"
        time.sleep(0.02)
    return value


def stopped_half_way(page, at, seed):
    """Stops an answer while it grows; false if it ends by itself."""
    at("seed").clear()
    at("seed").send_keys(str(seed))
    at("input").send_keys("Write a long program.")
    at("send").click()
    text = lambda: page.find_elements(By.CSS_SELECTOR, ".assistant")[-1].text
    lengths = set()
    is_over = lambda: not at("stop").is_enabled()
    wait("a growing answer", lambda: lengths.add(len(text())) or len(lengths) > 3 or is_over())
    if is_over():
        return False
    at("stop").click()
    wait("the stop", is_over)
    if "stopped" not in at("stats").text:
        return False
    running = "const done = arguments[0]; fetch('health').then(r => r.json()).then(h => done(h.running))"
    wait("an idle server", lambda: page.execute_async_script(running) == 0)
    stopped = text()
    time.sleep(0.3)
    assert text() == stopped, "the answer goes on after the stop"
    return True


def use(page, address, picture):
    page.get(address)
    at = lambda name: page.find_element(By.ID, name)
    wait("the model's name", lambda: "tiny" in at("model").text)

    # A short answer comes whole, with its figures.
    page.execute_script("document.getElementById('settings').open = true")
    at("max_tokens").send_keys("20")
    at("input").send_keys("Define the word house.")
    at("send").click()
    wait("figures", lambda: "tokens/s" in at("stats").text)
    answers = page.find_elements(By.CSS_SELECTOR, ".assistant .content")
    assert len(answers) == 1 and answers[0].text.strip(), "no answer is shown"
    assert "answer" in at("stats").text and "prompt" in at("stats").text

    # A long one grows while it is read, and stops when told to. The tiny model ends most answers soon, so
    # the hottest sampling is asked for, and several seeds.
    at("max_tokens").clear()
    for name, value in (("temperature", "2"), ("top_p", "1")):
        page.execute_script(f"document.getElementById('{name}').value = '{value}'")
    assert any(stopped_half_way(page, at, seed) for seed in range(10)), "every answer was over too soon"
    if picture:
        page.save_screenshot(picture)

    at("clear").click()
    assert not page.find_elements(By.CSS_SELECTOR, ".message")
    complaints = [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert not complaints, complaints


def main():
    picture = sys.argv[2] if len(sys.argv) > 2 else None
    with server(sys.argv[1], "--n-ctx", "16384") as address:
        page = browser()
        try:
            use(page, address, picture)
        finally:
            page.quit()
    print("page: ok")


if __name__ == "__main__":
    main()
