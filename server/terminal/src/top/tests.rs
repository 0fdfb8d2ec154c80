//! The pictures that two recorded pages make. The pages are a server's with two models that generate and an encoder, two seconds
//! apart and under load.

use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::sample::Sample;
use super::usage::{Usage, Used};
use super::view::{News, View};
use super::{advice, draw, plain, press};

const BEFORE: &str = include_str!("pages/before.txt");
const AFTER: &str = include_str!("pages/after.txt");
const APART: Duration = Duration::from_secs(2);

/// A view that has seen both pages.
fn view(start: Instant) -> View {
    let mut view = View::new("127.0.0.1:8080".to_owned(), false);
    let pages = [(BEFORE, start), (AFTER, start + APART)];
    for (page, at) in pages {
        view.take(News::Page(Ok(Sample::read(page, at).unwrap())), at);
    }
    view
}

fn picture(view: &View, width: u16, height: u16, now: Instant) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw::draw(frame, view, now)).unwrap();
    terminal.backend().to_string()
}

fn key(view: &mut View, code: KeyCode) -> bool {
    press(view, KeyEvent::new(code, KeyModifiers::NONE))
}

#[test]
fn a_wide_terminal_has_charts_and_every_column() {
    let start = Instant::now();
    insta::assert_snapshot!(picture(&view(start), 120, 24, start + APART));
}

#[test]
fn a_small_terminal_has_what_matters() {
    let start = Instant::now();
    insta::assert_snapshot!(picture(&view(start), 48, 12, start + APART));
}

#[test]
fn no_size_is_too_small() {
    let start = Instant::now();
    let mut view = view(start);
    for help in [false, true] {
        view.help = help;
        for width in [1, 2, 3, 10, 59, 60, 61, 500] {
            for height in [1, 2, 4, 17, 18, 60] {
                picture(&view, width, height, start);
            }
        }
    }
}

#[test]
fn a_server_that_is_gone_is_shown_so_and_comes_back_without_a_leap() {
    let start = Instant::now();
    let mut view = view(start);
    let gone = start + Duration::from_secs(4);
    view.take(
        News::Page(Err("could not connect: connection refused".to_owned())),
        gone,
    );
    let later = gone + Duration::from_secs(7);
    view.take(
        News::Page(Err("could not connect: connection refused".to_owned())),
        later,
    );
    insta::assert_snapshot!(picture(&view, 120, 20, later));
    let back = later + APART;
    let before = view.interval.clone();
    view.take(News::Page(Ok(Sample::read(BEFORE, back).unwrap())), back);
    assert!(view.gone.is_none());
    assert_eq!(view.interval, before);
    view.take(
        News::Page(Ok(Sample::read(AFTER, back + APART).unwrap())),
        back + APART,
    );
    assert_eq!(view.interval, before, "the same two pages, two seconds apart");
    assert_eq!(view.history.iter().filter(|point| point.is_none()).count(), 2);
}

#[test]
fn projects_are_shown_where_the_server_tells() {
    let start = Instant::now();
    let mut view = view(start);
    assert!(key(&mut view, KeyCode::Tab));
    assert!(picture(&view, 100, 10, start).contains("asking the server"));
    view.take(News::Usage(Err("HTTP 404 (no_database)".to_owned())), start);
    assert!(picture(&view, 100, 10, start).contains("HTTP 404 (no_database)"));
    let used = |requests, output_tokens| Used {
        requests,
        input_tokens: 4096.0,
        cached_tokens: 1024.0,
        output_tokens,
    };
    let projects = [
        ("sales".to_owned(), used(45.0, 2317.0)),
        ("research".to_owned(), used(3.0, 120_000.0)),
    ];
    let usage = Usage {
        seconds: 320.0,
        projects: projects.into(),
    };
    view.take(News::Usage(Ok(usage)), start);
    insta::assert_snapshot!(picture(&view, 100, 10, start));
}

#[test]
fn keys_do_what_the_foot_says() {
    let start = Instant::now();
    let mut view = view(start);
    key(&mut view, KeyCode::Char('p'));
    let before = view.interval.clone();
    let at = start + APART * 2;
    view.take(News::Page(Ok(Sample::read(BEFORE, at).unwrap())), at);
    assert_eq!(view.interval, before, "paused");
    assert!(picture(&view, 120, 20, at).contains("PAUSED"));
    key(&mut view, KeyCode::Char('p'));
    let sorted = |view: &View| view.rows().unwrap()[0].name.clone();
    for _ in 0..7 {
        key(&mut view, KeyCode::Right);
    }
    assert_eq!(view.order().column, 0);
    let first = sorted(&view);
    key(&mut view, KeyCode::Char('r'));
    assert_ne!(sorted(&view), first);
    key(&mut view, KeyCode::Down);
    assert_eq!(view.skipped, 1);
    key(&mut view, KeyCode::PageDown);
    assert_eq!(view.skipped, 2);
    key(&mut view, KeyCode::Char('?'));
    assert!(picture(&view, 120, 24, at).contains("time to the first token"));
    assert!(key(&mut view, KeyCode::Esc), "leaves the help");
    assert!(!key(&mut view, KeyCode::Char('q')));
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert!(!press(&mut view, interrupt));
}

#[test]
fn once_is_plain_text() {
    let start = Instant::now();
    let mut view = view(start);
    view.usage = Some(Err("HTTP 404 (no_database)".to_owned()));
    insta::assert_snapshot!(plain(&mut view));
}

#[test]
fn a_models_name_steers_no_terminal() {
    let start = Instant::now();
    let mut view = View::new("h".to_owned(), true);
    let page = "vllm:num_requests_running{model_name=\"a\u{1b}]0;b\u{7}\u{9b}2J\"} 1\n";
    for at in [start, start + APART] {
        view.take(News::Page(Ok(Sample::read(page, at).unwrap())), at);
    }
    let shown = plain(&mut view);
    assert!(shown.contains("a␛]0;b␇<U+009B>2J"), "{shown}");
    assert!(shown.chars().all(|c| c == '\n' || !c.is_control()));
}

#[test]
fn a_host_that_is_not_allowed_is_no_matter_of_keys() {
    assert!(advice(403, Some("host_not_allowed")).contains("--allowed-host"));
    assert!(advice(403, Some("permission_denied")).contains("OPENAI_API_KEY"));
    assert!(advice(401, None).contains("OPENAI_API_KEY"));
    assert_eq!(advice(503, None), "");
}
