"""The answers are the reference's: see fidelity.py for the tolerances."""
import fidelity
import pytest

from conftest import MODELS


def check_perplexity(name, rounding, running, record_property):
    score = fidelity.perplexity(running, fidelity.load_fixture(name))
    print(score)
    record_property("perplexity", str(score))
    assert score.tokens >= 4000
    assert score.off <= fidelity.ROUNDINGS[rounding].perplexity, score


def check_greedy_tokens(name, rounding, running, record_property):
    divergences = fidelity.greedy(running, fidelity.load_fixture(name))
    print(divergences)
    record_property("divergences", str(divergences))
    bars = fidelity.ROUNDINGS[rounding]
    far = fidelity.far(divergences, bars)
    assert len(far) <= bars.far, far


def test_perplexity(served, record_property):
    check_perplexity(served.name, "default", served.server, record_property)


def test_greedy_tokens(served, record_property):
    check_greedy_tokens(served.name, "default", served.server, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("rounding", [name for name in fidelity.ROUNDINGS if name != "default"])
@pytest.mark.parametrize("name", MODELS)
def test_finer_roundings(name, rounding, own_server, record_property):
    running = own_server(name, f"fidelity-{name}-{rounding}.log", [*fidelity.ROUNDINGS[rounding].options])
    check_perplexity(name, rounding, running, record_property)
    check_greedy_tokens(name, rounding, running, record_property)
