//! Proof that what `rempart bench` measures is what happened: against a server of a known schedule, in a process of its own.
//!
//! ```text
//! cargo run --release -p rempart-load --example truth
//! ```
//! Tells each figure beside the schedule's, and fails where a latency is off by more than 1 ms, a throughput by more than 1 %,
//! or where the client takes more than a quarter of a core for 32 streams. Latencies are held to when the server really wrote
//! each token, which it tells at its end: a machine wakes it a little late, and that is no fault of who measures.
//! It wants a machine on which little else runs.

use std::io::Write as _;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use rempart_load::LoadArgs;
use serde_json::Value;

#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../tests/load/stub.rs"]
mod stub;

use stub::{Behaviour, Pace, Stub};

/// A load, and the schedule that the server keeps.
struct Case {
    clients: u32,
    tokens: u32,
    requests: u32,
    ttft_ms: u64,
    itl_ms: u64,
    /// Whether latencies must be exact, too, and the client's share of a core is held to its bar, which is for 32 streams: with a
    /// thousand the server's own threads are late.
    exact: bool,
}

const CASES: [Case; 3] = [
    Case {
        clients: 1,
        tokens: 64,
        requests: 4,
        ttft_ms: 100,
        itl_ms: 20,
        exact: true,
    },
    Case {
        clients: 32,
        tokens: 200,
        requests: 96,
        ttft_ms: 100,
        itl_ms: 20,
        exact: true,
    },
    Case {
        clients: 1000,
        tokens: 200,
        requests: 1000,
        ttft_ms: 200,
        itl_ms: 50,
        exact: false,
    },
];
const OFF_MS_MAX: f64 = 1.0;
const OFF_SHARE_MAX: f64 = 0.01;
const CORE_SHARE_MAX: f64 = 0.25;
const SERVER: &str = "serve";

#[derive(Parser)]
struct Bench {
    #[command(flatten)]
    load: LoadArgs,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, address, ttft, itl] = &arguments[..]
        && mode == SERVER
    {
        return serve(address, ttft.parse()?, itl.parse()?);
    }
    let mut good = true;
    for (index, case) in CASES.iter().enumerate() {
        good &= case.run(18_765 + u16::try_from(index)?)?;
    }
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn serve(address: &str, ttft_ms: u64, itl_ms: u64) -> anyhow::Result<ExitCode> {
    rlimit::increase_nofile_limit(u64::MAX)?;
    let pace = Pace {
        ttft: Duration::from_millis(ttft_ms),
        itl: Duration::from_millis(itl_ms),
    };
    let stub = Stub::with(Behaviour::Steady, pace, None, address);
    // Its parent's end, however that comes, closes this.
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
    serde_json::to_writer(std::io::stdout(), &stub.written())?;
    Ok(ExitCode::SUCCESS)
}

/// A server that ends with its test.
struct Server(Child);

impl Server {
    /// Ends it, and takes what it tells of its answers.
    fn written(mut self) -> anyhow::Result<Vec<Vec<f64>>> {
        drop(self.0.stdin.take());
        let told = self.0.stdout.take().context("its output")?;
        Ok(serde_json::from_reader(told)?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Case {
    fn run(&self, port: u16) -> anyhow::Result<bool> {
        let address = format!("127.0.0.1:{port}");
        let (ttft, itl) = (self.ttft_ms.to_string(), self.itl_ms.to_string());
        let server = Command::new(std::env::current_exe()?)
            .args([SERVER, &address, &ttft, &itl])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let server = Server(server);
        thread::sleep(Duration::from_millis(500));
        let folder = tempfile::tempdir()?;
        let result = folder.path().join("result.json");
        let (clients, tokens, requests) = (
            self.clients.to_string(),
            self.tokens.to_string(),
            self.requests.to_string(),
        );
        let url = format!("http://{address}/v1");
        let options = [
            "bench",
            "--base-url",
            &url,
            "--concurrency",
            &clients,
            "--num-prompts",
            &requests,
            "--num-warmups",
            &clients,
            "--random-input-len",
            "64",
            "--random-output-len",
            &tokens,
            "--result",
            result.to_str().context("a path")?,
        ];
        rempart_load::run(&Bench::try_parse_from(options)?.load)?;
        let kept = self.kept(&server.written()?);
        self.judge(&serde_json::from_str(&std::fs::read_to_string(result)?)?, kept)
    }

    /// The median and the 99th percentile of the times to the first token, and of those between two, without warm-ups.
    fn kept(&self, written: &[Vec<f64>]) -> [f64; 4] {
        let written = &written[self.clients as usize..];
        let first = written.iter().map(|times| times[0]).collect();
        let between = written
            .iter()
            .flat_map(|times| times.windows(2).map(|pair| pair[1] - pair[0]))
            .collect();
        let [first, between] = [first, between].map(|mut all: Vec<f64>| {
            all.sort_by(f64::total_cmp);
            [percentile(&all, 50), percentile(&all, 99)]
        });
        [first[0], first[1], between[0], between[1]]
    }

    fn judge(&self, result: &Value, kept: [f64; 4]) -> anyhow::Result<bool> {
        let number = |name: &str| result[name].as_f64().with_context(|| format!("no {name}"));
        let (ttft, itl) = (self.ttft_ms as f64, self.itl_ms as f64);
        let request_s = (ttft + itl * f64::from(self.tokens - 1)) / 1e3;
        let throughput = f64::from(self.clients) * f64::from(self.tokens) / request_s;
        let mut good = true;
        let mut out = std::io::stdout().lock();
        for (at, name, scheduled) in [
            (0, "p50_ttft_ms", ttft),
            (1, "p99_ttft_ms", ttft),
            (2, "p50_itl_ms", itl),
            (3, "p99_itl_ms", itl),
        ] {
            let (measured, kept) = (number(name)?, kept[at]);
            let holds = !self.exact || (measured - kept).abs() <= OFF_MS_MAX;
            good &= holds;
            writeln!(
                out,
                "  {name}: {measured:.3}, written {kept:.3}, scheduled {scheduled}{}",
                if holds { "" } else { ": OFF" }
            )?;
        }
        let measured = number("output_throughput")?;
        let holds = (measured / throughput - 1.0).abs() <= OFF_SHARE_MAX;
        good &= holds;
        writeln!(
            out,
            "  tokens/s: {measured:.1}, scheduled {throughput:.1}{}",
            if holds { "" } else { ": OFF" }
        )?;
        let share = result["rempart_bench"]["client_cpu_share"]
            .as_f64()
            .unwrap_or(f64::NAN);
        // Without a share nothing is proven: no comparison holds of a NaN.
        let holds = !self.exact || share <= CORE_SHARE_MAX;
        good &= holds;
        writeln!(
            out,
            "  of a core: {share:.3}{}\n",
            if holds { "" } else { ": OFF" }
        )?;
        Ok(good)
    }
}

/// As that of `NumPy`, between two neighbours.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let at = percent * (sorted.len() - 1);
    let (below, above) = (sorted[at / 100], sorted[at.div_ceil(100)]);
    below + (above - below) * (at % 100) as f64 / 100.0
}
