"""The answers are the reference's: see fidelity.py for the tolerances."""
import fidelity
import pytest

from conftest import MODELS


def check_perplexity(name, activations, running, record_property):
    score = fidelity.perplexity(running, fidelity.load_fixture(name))
    print(score)
    record_property("perplexity", str(score))
    assert score.tokens >= 4000
    assert score.off <= fidelity.BARS[activations].perplexity, score


def check_greedy_tokens(name, activations, running, record_property):
    divergences = fidelity.greedy(running, fidelity.load_fixture(name))
    print(divergences)
    record_property("divergences", str(divergences))
    assert [one for one in divergences if not one.allowed(fidelity.BARS[activations])] == []


def test_perplexity(served, record_property):
    check_perplexity(served.name, "int8", served.server, record_property)


def test_greedy_tokens(served, record_property):
    check_greedy_tokens(served.name, "int8", served.server, record_property)


@pytest.mark.parametrize("name", MODELS)
def test_activations_of_16_bits(name, own_server, record_property):
    running = own_server(name, f"fidelity-{name}.log", ["--activations", "int16"])
    check_perplexity(name, "int16", running, record_property)
    check_greedy_tokens(name, "int16", running, record_property)
