"""A pytest plugin: skipped tests are failures unless they are listed here with a reason."""

import os

# Start of a test's id: why it may be skipped here.
ALLOWED = {"tests/test_gpu.py": "continuous integration has no GPU"}
if os.environ.get("NO_BROWSER"):  # .ci/run could not install one
    ALLOWED["tests/test_screenshots.py"] = "no browser here"


class NoSkips:
    """Collects skips, and makes the session fail if one of them is not allowed."""

    def __init__(self):
        self._skipped = []

    def _note(self, report):
        # A test that is expected to fail is also reported as skipped; it did run.
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            if not any(report.nodeid.startswith(start) for start in ALLOWED):
                self._skipped.append(f"{report.nodeid}: {reason}")

    pytest_runtest_logreport = _note
    pytest_collectreport = _note

    def pytest_sessionfinish(self, session, exitstatus):
        """Comes before pytest writes its summary."""
        if self._skipped and exitstatus == 0:
            session.exitstatus = 1

    def pytest_terminal_summary(self, terminalreporter):
        """Names what was skipped, above pytest's own closing line."""
        if self._skipped:
            terminalreporter.section("tests that must not be skipped here", red=True)
            for line in self._skipped:
                terminalreporter.line(line)


def pytest_configure(config):
    """Registers the plugin."""
    config.pluginmanager.register(NoSkips(), "no_skips_of_this_session")
