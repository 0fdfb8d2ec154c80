"""Short versions of the long measurements, and the demo."""
import subprocess
import sys

import pytest
import soak
from conftest import SCRIPTS


@pytest.mark.slow
def test_soak(own_server, record_property):
    running = own_server("smollm2", "soak.log")
    outcome = soak.soak(running, clients=64, seconds=30)
    print(outcome)
    record_property("soak", str(outcome))
    assert outcome.failures == []
    assert outcome.finished > 0 and outcome.cancelled > 0
    # Memory is not judged here: half a minute is warm-up. The five minutes of soak.py judge it.
    assert outcome.is_idle, outcome.gauges


def test_demo(current):
    current.close()
    out = subprocess.run([sys.executable, str(SCRIPTS / "demo"), "--once", "--no-build"], capture_output=True, text=True,
                         timeout=600, check=False)
    assert out.returncode == 0, out.stderr
    assert "tokens/s" in out.stdout and "the first after" in out.stdout
