"""Starts the server under test and stops it again."""

import contextlib
import re
import signal
import subprocess
import sys


@contextlib.contextmanager
def server(program, *options):
    """Runs the server with the tiny model on a free port; gives its address. Checks that it ends in order."""
    command = [program, "--port", "0", "--alias", "tiny", "--threads", "1", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True)
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"listening on (http://\S+)\n", line)
        assert found, f"the server said {line!r}"
        yield found[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0, f"the server ended with {process.returncode}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
