//! `rempart top`: a live view of a running server.

mod draw;
mod exposition;
mod histogram;
mod interval;
mod options;
mod sample;
mod table;
#[cfg(test)]
mod tests;
mod usage;
mod view;

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use rempart_client::{Accept, Failure, ServerError};
use tokio::runtime::{self, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use interval::Interval;
use options::Source;
use sample::Sample;
use view::{News, Tab, View};

pub use options::TopArgs;

/// Of a page of metrics.
const PAGE_BYTES_MAX: usize = 32 << 20;
/// How long a key waits at most for what has come from the server to be drawn.
const TURN: Duration = Duration::from_millis(100);
/// How often the server's records are asked, while the table of projects is shown.
const USAGE_PERIOD: Duration = Duration::from_secs(5);
/// News that wait to be drawn.
const NEWS_MAX: usize = 16;
/// Lines that a page of a table is scrolled by.
const PAGE_LINES: usize = 10;

/// Shows a server until a key or a signal ends it, or once.
///
/// # Errors
/// Where an option is wrong, nothing can be drawn, or, with `--once`, the server does not answer.
pub fn run(args: &TopArgs) -> anyhow::Result<()> {
    let source = args.source()?;
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    if args.once {
        let picture = runtime.block_on(once(&source))?;
        std::io::stdout().lock().write_all(picture.as_bytes())?;
        return Ok(());
    }
    ensure!(
        std::io::stdout().is_terminal() && std::io::stdin().is_terminal(),
        "a live view needs a terminal; --once prints one picture"
    );
    let mut terminal = ratatui::try_init().context("preparing the terminal")?;
    let shown = show(&mut terminal, &runtime, &source, args.color.is_wanted());
    ratatui::restore();
    shown
}

fn show(
    terminal: &mut DefaultTerminal,
    runtime: &Runtime,
    source: &Source,
    color: bool,
) -> anyhow::Result<()> {
    let (sender, mut news) = mpsc::channel(NEWS_MAX);
    let (wants_usage, usage_wanted) = watch::channel(false);
    let mut tasks = JoinSet::new();
    tasks.spawn_on(ended(sender.clone()), runtime.handle());
    tasks.spawn_on(look_on(source.clone(), sender, usage_wanted), runtime.handle());
    let mut view = View::new(source.metrics.target().authority().to_owned(), color);
    loop {
        let now = Instant::now();
        terminal.draw(|frame| draw::draw(frame, &view, now))?;
        let key = event::poll(TURN)?.then(event::read).transpose()?;
        if let Some(Event::Key(key)) = key
            && key.kind != KeyEventKind::Release
            && !press(&mut view, key)
        {
            return Ok(());
        }
        wants_usage.send_replace(view.tab == Tab::Projects);
        while let Ok(news) = news.try_recv() {
            if matches!(news, News::End) {
                return Ok(());
            }
            view.take(news, Instant::now());
        }
    }
}

/// Does what a key says; `false` where it ends the view.
fn press(view: &mut View, key: KeyEvent) -> bool {
    let rows = view.rows().map_or(0, |rows| rows.len());
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Char('q') => return false,
        KeyCode::Esc if !view.help => return false,
        KeyCode::Char('?' | 'h') | KeyCode::Esc => view.help = !view.help,
        KeyCode::Char('p' | ' ') => view.paused = !view.paused,
        KeyCode::Char('m') => view.choose(Tab::Models),
        KeyCode::Char('o') => view.choose(Tab::Projects),
        KeyCode::Tab | KeyCode::BackTab => view.choose(match view.tab {
            Tab::Models => Tab::Projects,
            Tab::Projects => Tab::Models,
        }),
        KeyCode::Right | KeyCode::Char('s') => view.sort_by_next(true),
        KeyCode::Left => view.sort_by_next(false),
        KeyCode::Char('r') => view.reverse(),
        KeyCode::Down => view.skipped = (view.skipped + 1).min(rows.saturating_sub(1)),
        KeyCode::Up => view.skipped = view.skipped.saturating_sub(1),
        KeyCode::PageDown => view.skipped = (view.skipped + PAGE_LINES).min(rows.saturating_sub(1)),
        KeyCode::PageUp => view.skipped = view.skipped.saturating_sub(PAGE_LINES),
        _ => {}
    }
    true
}

/// Waits for a signal that ends the program: its terminal must be set back.
async fn ended(sender: mpsc::Sender<News>) {
    let kinds = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ];
    let [Ok(mut term), Ok(mut int), Ok(mut hup)] = kinds.map(signal) else {
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        _ = hup.recv() => {}
    }
    let _ = sender.send(News::End).await;
}

/// Looks at the server again and again, until nobody wants to know any more.
async fn look_on(source: Source, sender: mpsc::Sender<News>, usage_wanted: watch::Receiver<bool>) {
    let mut ticks = interval(source.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut usage_asked: Option<Instant> = None;
    loop {
        ticks.tick().await;
        let page = look(&source).await.map_err(|error| format!("{error:#}"));
        if sender.send(News::Page(page)).await.is_err() {
            return;
        }
        let is_due = usage_asked.is_none_or(|asked| asked.elapsed() >= USAGE_PERIOD);
        if *usage_wanted.borrow() && is_due {
            usage_asked = Some(Instant::now());
            if sender.send(News::Usage(usage(&source).await)).await.is_err() {
                return;
            }
        }
    }
}

async fn look(source: &Source) -> anyhow::Result<Sample> {
    let document = source
        .metrics
        .get(&source.path, Accept::Text, PAGE_BYTES_MAX)
        .await?;
    let at = Instant::now();
    if document.status != 200 {
        let (status, code) = (document.status, ServerError::in_body(&document.body).code);
        let advice = advice(status, code.as_deref());
        bail!("{}{advice}", Failure::Status { status, code });
    }
    let page = std::str::from_utf8(&document.body).context("a page that is not UTF-8")?;
    Sample::read(page, at)
}

/// What to do about an answer that has no metrics.
fn advice(status: u16, code: Option<&str>) -> &'static str {
    match (status, code) {
        (_, Some("host_not_allowed")) => {
            ": the server does not know this name of its own, which its --allowed-host would tell it"
        }
        (401 | 403, _) => ": OPENAI_API_KEY needs a key that may read metrics, like an auditor's",
        _ => "",
    }
}

async fn usage(source: &Source) -> Result<usage::Usage, String> {
    let now_s = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    usage::ask(&source.api, now_s)
        .await
        .map_err(|failure| failure.to_string())
}

/// One picture of the server in plain text, over one interval.
async fn once(source: &Source) -> anyhow::Result<String> {
    let server = source.metrics.target().authority().to_owned();
    let look = async || {
        look(source)
            .await
            .with_context(|| format!("{server}{}", source.path))
    };
    let before = look().await?;
    sleep(source.interval).await;
    let now = look().await?;
    let mut view = View::new(server.clone(), false);
    view.interval = Some(Interval::between(&before, &now));
    view.usage = Some(usage(source).await);
    Ok(plain(&mut view))
}

fn plain(view: &mut View) -> String {
    let mut text: String = view.head(Instant::now()).map(|line| line + "\n").concat();
    for tab in [Tab::Models, Tab::Projects] {
        view.choose(tab);
        text.push('\n');
        match view.rows() {
            Ok(rows) => {
                let _ = writeln!(text, "{}", view.caption());
                text.push_str(&table::text(view.columns(), &rows));
            }
            Err(reason) => {
                let _ = writeln!(text, "{reason}");
            }
        }
    }
    text
}
