//! The picture of a view, on a terminal of any size.

use std::time::Instant;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Paragraph, Row as Drawn, Sparkline, Table};

use super::table;
use super::view::{Tab, View};

/// Lines of the charts, their frame among them.
const CHART_LINES: u16 = 6;
/// A terminal with fewer lines has no charts.
const CHARTS_FROM_LINES: u16 = 18;
/// From here two charts have room side by side.
const TWO_CHARTS_FROM: u16 = 60;

const KEYS: &str = "q quit  p pause  Tab models/projects  ←→ sort  r reverse  ↑↓ scroll  ? help";
const HELP: &[&str] = &[
    "RUN, QUEUE    requests that are computed, and that wait, now",
    "REQ/S         answers that ended, and texts that were encoded",
    "IN, OUT       tokens of prompts and of answers, a second",
    "TTFT          time to the first token; ITL: between two tokens (percentiles of the interval)",
    "KV            share of the cache of keys and values that running requests hold",
    "CACHED        share of the prompts' tokens that the prefix cache had",
    "",
    "Projects are in no metric: their requests that ended are asked from the server's records, which needs",
    "a key that may read usage (auditor, admin, owner) and a server with --database.",
    "",
    "q, Ctrl-C quit    p pause    Tab, m, o models or projects    ← → or s column to sort by    r reverse",
    "↑ ↓ PgUp PgDn scroll    ? this page",
];

pub(crate) fn draw(frame: &mut Frame<'_>, view: &View, now: Instant) {
    let area = frame.area();
    let has_charts = area.height >= CHARTS_FROM_LINES && !view.help;
    let [head, charts, tabs, body, foot] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(if has_charts { CHART_LINES } else { 0 }),
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(area);
    draw_head(frame, head, view, now);
    if has_charts {
        draw_charts(frame, charts, view);
    }
    if view.help {
        let lines: Vec<Line<'_>> = HELP.iter().map(|line| Line::from(*line)).collect();
        frame.render_widget(Paragraph::new(lines), body);
    } else {
        draw_tabs(frame, tabs, view);
        draw_table(frame, body, view);
    }
    frame.render_widget(Paragraph::new(KEYS).style(style(view, Modifier::DIM, None)), foot);
}

fn style(view: &View, modifier: Modifier, color: Option<Color>) -> Style {
    let style = Style::default().add_modifier(modifier);
    match color.filter(|_| view.color) {
        Some(color) => style.fg(color),
        None => style,
    }
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, view: &View, now: Instant) {
    let [first, load, times] = view.head(now);
    let ready = view.interval.as_ref().and_then(|interval| interval.server.ready);
    let color = match (&view.gone, ready) {
        (Some(_), _) => Color::Red,
        (None, Some(false)) => Color::Yellow,
        _ => Color::Green,
    };
    let lines = vec![
        Line::styled(first, style(view, Modifier::BOLD, Some(color))),
        Line::from(load),
        Line::from(times),
    ];
    frame.render_widget(Paragraph::new(lines), area);
}

fn draw_charts(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let tokens: Vec<Option<u64>> = view
        .history
        .iter()
        .map(|point| point.map(|(tokens, _)| tokens))
        .collect();
    let queue: Vec<Option<u64>> = view
        .history
        .iter()
        .map(|point| point.map(|(_, queue)| queue))
        .collect();
    if area.width < TWO_CHARTS_FROM {
        return chart(frame, area, "output tokens/s", &tokens, view, Color::Cyan);
    }
    let [left, right] = Layout::horizontal([Constraint::Ratio(1, 2); 2]).areas(area);
    chart(frame, left, "output tokens/s", &tokens, view, Color::Cyan);
    chart(frame, right, "waiting requests", &queue, view, Color::Yellow);
}

/// A chart whose newest point is at its right end.
fn chart(frame: &mut Frame<'_>, area: Rect, name: &str, points: &[Option<u64>], view: &View, color: Color) {
    let width = usize::from(area.width.saturating_sub(2));
    let shown = &points[points.len().saturating_sub(width)..];
    let highest = shown.iter().flatten().max().copied().unwrap_or(0);
    let newest = shown.last().copied().flatten();
    let newest = newest.map_or("-".to_owned(), |newest| table::count(newest as f64));
    let title = format!(" {name}: {newest}, at most {} ", table::count(highest as f64));
    let padding = std::iter::repeat_n(None, width - shown.len());
    let bars: Vec<Option<u64>> = padding.chain(shown.iter().copied()).collect();
    let sparkline = Sparkline::default()
        .block(Block::bordered().title(title))
        .data(bars)
        .max(highest.max(1))
        .style(style(view, Modifier::empty(), Some(color)));
    frame.render_widget(sparkline, area);
}

fn draw_tabs(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let (models, projects) = match view.tab {
        Tab::Models => ("[Models]", " Projects "),
        Tab::Projects => (" Models ", "[Projects]"),
    };
    let line = format!("{models} {projects}  {}", view.caption());
    frame.render_widget(
        Paragraph::new(line).style(style(view, Modifier::BOLD, None)),
        area,
    );
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let rows = match view.rows() {
        Ok(rows) => rows,
        Err(reason) => return frame.render_widget(Paragraph::new(reason), area),
    };
    let columns = view.columns();
    let kept = table::fitting(columns, area.width);
    let sorted = view.order().column;
    let headings = kept.iter().map(|at| {
        let modifier = if *at == sorted {
            Modifier::BOLD | Modifier::UNDERLINED
        } else {
            Modifier::BOLD
        };
        let style = style(view, modifier, None);
        Cell::from(aligned(columns[*at].heading.to_owned(), *at)).style(style)
    });
    let drawn = rows.iter().skip(view.skipped).map(|row| {
        Drawn::new(kept.iter().map(|at| {
            let text = match at.checked_sub(1) {
                None => row.name.clone(),
                Some(cell) => row.cells[cell].0.clone(),
            };
            Cell::from(aligned(text, *at))
        }))
    });
    let widths = kept.iter().map(|at| match at {
        0 => Constraint::Min(columns[0].width),
        _ => Constraint::Length(columns[*at].width),
    });
    frame.render_widget(
        Table::new(drawn, widths)
            .header(Drawn::new(headings))
            .column_spacing(1),
        area,
    );
}

/// Names are at the left, numbers at the right.
fn aligned(text: String, column: usize) -> Line<'static> {
    let line = Line::from(text);
    if column == 0 { line } else { line.right_aligned() }
}
