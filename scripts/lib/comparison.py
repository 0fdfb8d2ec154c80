"""Results of a comparison with a peer: what was measured, whose figure counts, and the table that shows it."""
import dataclasses
import json
import os
import pathlib
import statistics

OURS, PEER = "rempart", "llama-server-fa-"
# Flash attention on and off: each is the faster one somewhere, so both run.
PEERS = (f"{PEER}on", f"{PEER}off")
# A result counts as quiet when other processes took less than this of one core meanwhile.
QUIET_CORES = 0.2


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a figure of a cell.  `bar` is the ratio that we want to reach at least."""

    cell: str
    title: str
    figure: str
    bar: float
    more_is_better: bool = True

    def value(self, result):
        """The figure in a result; None where the server gave none."""
        if not result.get("ttft_ms") and self.figure not in ("start_s", "peak_bytes"):
            return None
        if self.figure == "prefill_tokens_per_s":
            return 1e3 * result["prompt_tokens_mean"] / result["ttft_ms"]["p50"]
        if self.figure == "ttft_ms":
            return result["ttft_ms"]["p50"]
        if self.figure == "ttft_p95_ms":
            return result["ttft_ms"]["p95"]
        return result.get(self.figure)

    def show(self, value, results):
        if self.figure == "start_s":
            return f"{value:.2f} s"
        if self.figure == "peak_bytes":
            return f"{value / 1e6:,.0f} MB"
        if self.figure in ("ttft_ms", "ttft_p95_ms"):
            return f"{value:,.0f} ms"
        text = f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
        if self.figure == "output_tokens_per_s":
            # The price of throughput: how long the unluckiest waited.
            text += f" ({statistics.median(result['ttft_ms']['p95'] for result in results) / 1e3:.2f} s)"
        return text

    def ratio(self, ours, peer):
        """How many times better we are."""
        return ours / peer if self.more_is_better else peer / ours


RATE = "output tokens/s (TTFT p95)"
ROWS = (
    Row("1x32", f"1 × 32, {RATE}", "output_tokens_per_s", 1.2),
    Row("1x512", "1 × 512, TTFT", "ttft_ms", 3.0, more_is_better=False),
    Row("1x512", "1 × 512, prefill tokens/s", "prefill_tokens_per_s", 3.0),
    Row("1x512", f"1 × 512, {RATE}", "output_tokens_per_s", 1.2),
    Row("8x32", f"8 × 32, {RATE}", "output_tokens_per_s", 3.0),
    Row("8x512", f"8 × 512, {RATE}", "output_tokens_per_s", 6.0),
    Row("8xshared1024", f"8 × shared 1024 + 32, {RATE}", "output_tokens_per_s", 6.0),
    Row("32x32", f"32 × 32, {RATE}", "output_tokens_per_s", 6.0),
    Row("32x512", f"32 × 512, {RATE}", "output_tokens_per_s", 6.0),
    Row("32x512", "32 × 512, TTFT p95", "ttft_p95_ms", 4.0, more_is_better=False),
    Row("start1", "process start to first token", "start_s", 1.0, more_is_better=False),
    # At most 0.6 times the peer's.
    Row("peak32", "peak memory, 32 clients", "peak_bytes", 1 / 0.6, more_is_better=False),
)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A row's median of one server, and the results behind it."""

    server: str
    value: float
    results: list

    @property
    def failed(self):
        return sum(result.get("failed", 0) for result in self.results)

    @property
    def is_quiet(self):
        return all(is_quiet(result) for result in self.results)


def is_quiet(result):
    return result.get("elsewhere_cores", 0) < QUIET_CORES


class Results:
    """All records of a run, kept in a file that is complete after each of them."""

    def __init__(self, path, environment, records=()):
        self.path, self.environment, self.records = pathlib.Path(path), environment, list(records)

    @classmethod
    def read(cls, path):
        found = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        return cls(path, found["environment"], found["records"])

    def add(self, model, number, server, cell, result):
        self.records.append({"model": model, "round": number, "server": server, "cell": cell, "result": result})
        self._write()

    def fail(self, model, number, server, cells, problem):
        """Notes the cells of a server that broke and that have no result of this round."""
        done = {record["cell"] for record in self.records
                if (record["model"], record["round"], record["server"]) == (model, number, server)}
        for cell in cells:
            if cell not in done:
                self.add(model, number, server, cell, {"failed": 1, "failures": [problem]})

    def _write(self):
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps({"environment": self.environment, "records": self.records}, indent=1),
                             encoding="utf-8")
        os.replace(temporary, self.path)

    def figure(self, row, model, server):
        """The median over the rounds, the disturbed ones left out where there are others; None for no result."""
        found = [record["result"] for record in self.records
                 if (record["model"], record["server"], record["cell"]) == (model, server, row.cell)]
        good = [result for result in found if row.value(result) is not None]
        counted = [result for result in good if is_quiet(result)] or good
        return Figure(server, statistics.median(map(row.value, counted)), counted) if counted else None

    def best_peer(self, row, model):
        found = [figure for name in PEERS if (figure := self.figure(row, model, name))]
        best = max if row.more_is_better else min
        return best(found, key=lambda figure: figure.value, default=None)

    def is_beaten(self, model, server, cell, close):
        """True for a setting of the peer that was clearly slower than its other one in every row of the cell."""
        rows = [row for row in ROWS if row.cell == cell]
        if server not in PEERS or not rows:
            return False
        for row in rows:
            own, best = self.figure(row, model, server), self.best_peer(row, model)
            if own is None or own.is_quiet != best.is_quiet or row.ratio(own.value, best.value) > close:
                return False
        return True

    def markdown(self, titles):
        """A table for each model, then the circumstances."""
        measured = {record["model"] for record in self.records}
        tables = [f"**{title}**\n\n{self._table(model)}" for model, title in titles.items() if model in measured]
        lines = [f"- {what}: {value}" for what, value in [*self.environment, ("other processes", self._noise())]]
        return "\n\n".join([*tables, "\n".join(lines)]) + "\n"

    def _table(self, model):
        lines = ["| clients × prompt tokens | Rempart | llama.cpp | its flash attention | ratio | bar |",
                 "|---|---|---|---|---|---|"]
        for row in ROWS:
            ours, peer = self.figure(row, model, OURS), self.best_peer(row, model)
            if ours or peer:
                lines.append(self._line(row, ours, peer))
        return "\n".join(lines)

    @staticmethod
    def _line(row, ours, peer):
        cells = []
        for figure in (ours, peer):
            text = row.show(figure.value, figure.results) if figure else "failed"
            text += "" if not figure or figure.is_quiet else " ≈"
            cells.append(text + (f", {figure.failed} failed" if figure and figure.failed else ""))
        setting, ratio, bar = peer.server.removeprefix(PEER) if peer else "–", "–", f"{row.bar:.3g}"
        if ours and peer and ours.is_quiet != peer.is_quiet:
            ratio = "one was disturbed"
        elif ours and peer:
            times = row.ratio(ours.value, peer.value)
            ratio, bar = f"{times:.2f}", f"{bar} {'reached' if times >= row.bar else 'missed'}"
        return f"| {row.title} | {' | '.join(cells)} | {setting} | {ratio} | {bar} |"

    def _noise(self):
        used = [record["result"]["elsewhere_cores"] for record in self.records
                if "elsewhere_cores" in record["result"]]
        if not used:
            return "not measured"
        return (f"took {statistics.median(used):.2f} cores while a load ran (median; {min(used):.2f} to "
                f"{max(used):.2f}): near 0 on a quiet machine; "
                f"≈ marks figures without a round in which it was less than {QUIET_CORES}")
