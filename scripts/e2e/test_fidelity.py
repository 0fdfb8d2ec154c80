"""The answers are the reference's: see fidelity.py for the tolerances."""
import fidelity


def test_perplexity(served, record_property):
    score = fidelity.perplexity(served.server, fidelity.load_fixture(served.name))
    print(score)
    record_property("perplexity", str(score))
    assert score.tokens >= 4000
    assert score.off <= fidelity.PERPLEXITY_TOLERANCE, score


def test_greedy_tokens(served, record_property):
    divergences = fidelity.greedy(served.server, fidelity.load_fixture(served.name))
    print(divergences)
    record_property("divergences", str(divergences))
    assert [one for one in divergences if not one.allowed] == []
