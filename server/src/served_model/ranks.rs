//! Further processes that have a part of a model each: how they are started, joined to this one and watched, and what they do.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use candle_core::Device;
use rempart_kernels::pool;
use rempart_models::parallel::{Collective, Processes, Shard};
use rempart_models::{KvCache, LoadOptions, ModelFiles, Steps};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use super::choose_kernels;
use crate::config::{Activations, KvDtype};
use crate::telemetry::log_format;

/// The command of the binary that a rank runs.
const COMMAND: &str = "rank";
/// Most bytes of what a rank is told.
const SETUP_BYTES_MAX: usize = 1 << 20;
/// A rank may load its part for so many times what the first rank took: each reads as much, from the same disk.
const LOAD_FACTOR: u32 = 10;
/// How long a rank may take to end once nothing is asked of it any more.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks at whether it has.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// What the ranks of a model have in common.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Setup {
    /// Of the model's file or folder.
    pub(super) path: PathBuf,
    /// Of its files, which the first rank has opened and proven: another file is another model.
    pub(super) files: Vec<[u64; 4]>,
    pub(super) ranks: usize,
    /// How long a rank waits for another, milliseconds.
    pub(super) timeout_ms: u64,
    /// Of each rank.
    pub(super) threads: usize,
    pub(super) kernels: Option<String>,
    pub(super) activations: Activations,
    pub(super) kv_dtype: KvDtype,
    /// Of keys and values.
    pub(super) blocks: usize,
    pub(super) block_size: usize,
}

/// A rank's own number, and what it has in common with the others.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    rank: usize,
    setup: Setup,
}

/// The other ranks' processes. Dropping it ends them.
#[derive(Debug)]
pub struct Ranks {
    processes: Arc<Processes>,
    children: Mutex<Children>,
}

/// Processes that end with this.
#[derive(Debug, Default)]
struct Children(Vec<Child>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Of a child that has ended this does nothing.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Setup {
    fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

impl Ranks {
    /// Starts all ranks but the first, which is this process. They load their parts meanwhile.
    ///
    /// # Errors
    /// The system refuses a process or a socket.
    pub(super) fn start(program: &Path, setup: &Setup) -> anyhow::Result<Self> {
        let (mut streams, mut children) = (Vec::new(), Children::default());
        for rank in 1..setup.ranks {
            let (mut ours, theirs) = UnixStream::pair().context("a socket for a rank")?;
            let child = Command::new(program)
                .arg(COMMAND)
                .args(["--log-level", "error", "--log-format", log_format()])
                .env_clear()
                .stdin(OwnedFd::from(theirs))
                .stdout(Stdio::null())
                // A signal of the terminal is this process's, which ends the others in its own time.
                .process_group(0)
                .spawn()
                .context("starting a rank")?;
            children.0.push(child);
            let task = Task {
                rank,
                setup: setup.clone(),
            };
            send(&mut ours, &task).context("telling a rank what it is")?;
            streams.push(ours);
        }
        let processes = Processes::first(streams, setup.timeout())?;
        Ok(Self {
            processes: Arc::new(processes),
            children: Mutex::new(children),
        })
    }

    /// What they exchange their results by.
    pub(super) fn processes(&self) -> Arc<Processes> {
        Arc::clone(&self.processes)
    }

    /// Waits until all have loaded their parts, of which the first rank has loaded its own within `took`.
    ///
    /// # Errors
    /// One of them could not, and why, or takes far longer.
    pub(super) fn wait_ready(&self, setup_timeout: Duration, took: Duration) -> anyhow::Result<()> {
        Ok(self.processes.wait_ready(setup_timeout.max(took * LOAD_FACTOR))?)
    }

    /// Whether one of them has ended, or has failed: then none computes again, and all are ended. Not in their own time: one
    /// that hangs would outlive this process.
    pub fn is_lost(&self) -> bool {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
        let lost = self.processes.is_stopped() || children.0.iter_mut().any(ended);
        if lost {
            // Of a child that has ended this does nothing.
            children.0.iter_mut().for_each(|child| drop(child.kill()));
        }
        lost
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        // Their sockets close, which ends them.
        self.processes.close();
        let end = Instant::now() + END_TIMEOUT;
        let children = self.children.get_mut().unwrap_or_else(PoisonError::into_inner);
        for child in &mut children.0 {
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
                thread::sleep(POLL_INTERVAL);
            }
        }
    }
}

fn send(to: &mut UnixStream, task: &Task) -> anyhow::Result<()> {
    let text = serde_json::to_vec(task)?;
    let len = u32::try_from(text.len())?;
    to.write_all(&len.to_le_bytes())?;
    Ok(to.write_all(&text)?)
}

fn receive(from: &mut UnixStream) -> anyhow::Result<Task> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    ensure!(len <= SETUP_BYTES_MAX, "{len} bytes are more than a rank is told");
    let mut text = vec![0; len];
    from.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// A rank itself, in a process of its own: loads its part of the model, and computes the steps that the first rank gives until
/// that is gone. Its standard input is the socket between them.
///
/// # Errors
/// It can't be loaded, or a step failed; the first rank is told.
pub fn run() -> anyhow::Result<()> {
    // A core would hold what is asked and answered.
    rlimit::setrlimit(rlimit::Resource::CORE, 0, 0).context("no core may be written")?;
    let _asked_to_end = stay()?;
    let mut first = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let Task { rank, setup } = receive(&mut first).context("a rank is started by a server alone")?;
    let shard = Shard::new(rank, setup.ranks)?;
    let processes = Arc::new(Processes::other(shard, first, setup.timeout())?);
    let followed = follow(&setup, &processes);
    if let Err(error) = &followed {
        processes.stop(&format!("{error:#}"));
    }
    followed
}

/// Has signals that ask a process to end do nothing: a service manager sends them to all, and the first rank, which drains, needs the
/// others until its last answer. They end with their socket.
fn stay() -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let entered = runtime.enter();
    for kind in [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ] {
        // Once it was listened to, a signal never ends the process again.
        drop(signal(kind)?);
    }
    drop(entered);
    Ok(runtime)
}

fn follow(setup: &Setup, processes: &Arc<Processes>) -> anyhow::Result<()> {
    pool::init(setup.threads);
    choose_kernels(setup.kernels.as_deref())?;
    let files = ModelFiles::open(&setup.path)?;
    ensure!(
        files.checkpoint.identities() == setup.files,
        "{} is not what the first rank has opened",
        setup.path.display()
    );
    let device = Device::Cpu;
    let model = files.load(&LoadOptions {
        device: device.clone(),
        activations: setup.activations.into(),
        collective: Arc::<Processes>::clone(processes),
        ..LoadOptions::default()
    })?;
    let config = files.config.part(processes.shard())?;
    let kv = KvCache::new(
        &config,
        setup.blocks,
        setup.block_size,
        setup.kv_dtype.into(),
        &device,
    )?;
    processes.tell_ready()?;
    let mut steps = Steps::new(model, kv, &config, &device).with_ranks(Arc::clone(processes));
    Ok(steps.follow()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> Task {
        Task {
            rank: 1,
            setup: Setup {
                path: "/models/a b".into(),
                files: vec![[1, 2, 1 << 40, u64::MAX]],
                ranks: 2,
                timeout_ms: 30_000,
                threads: 4,
                kernels: None,
                activations: Activations::Int8,
                kv_dtype: KvDtype::Int8,
                blocks: 100,
                block_size: 16,
            },
        }
    }

    #[test]
    fn a_rank_is_told_what_it_is() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        send(&mut ours, &task()).unwrap();
        let received = receive(&mut theirs).unwrap();
        assert_eq!(format!("{received:?}"), format!("{:?}", task()));
    }

    #[test]
    fn what_no_server_says_makes_no_rank() {
        let told = |bytes: &[u8]| {
            let (mut ours, mut theirs) = UnixStream::pair().unwrap();
            ours.write_all(bytes).unwrap();
            drop(ours);
            receive(&mut theirs).unwrap_err().to_string()
        };
        told(&[]);
        told(&[2, 0, 0, 0, b'{', b'}']);
        let much = told(&[0xff; 8]);
        assert!(much.contains("more than a rank is told"), "{much}");
    }
}
