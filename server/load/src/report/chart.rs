//! Charts as SVG: throughput against latency, how latencies are spread, and what happened when.

use anyhow::anyhow;
use plotters::prelude::*;

use super::Report;
use crate::measure::MeasuredStep;
use crate::slo::Latency;
use crate::stats::Sample;

const SIZE: (u32, u32) = (960, 340);
/// Okabe and Ito's colours, which those who are colour-blind can tell apart.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(150, 150, 150),
    RGBColor(0, 0, 0),
];
const LABEL: (&str, u32) = ("sans-serif", 13);
/// Points of a distribution that is drawn.
const POINTS: usize = 200;
/// Points of a timeline.
const MOMENTS_MAX: usize = 300;

struct Series {
    name: String,
    points: Vec<(f64, f64)>,
    colour: RGBAColor,
}

impl Series {
    fn new(index: usize, name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self {
            name: name.into(),
            points: points.into_iter().collect(),
            colour: COLOURS[index % COLOURS.len()].to_rgba(),
        }
    }

    /// As what is beside another one of its colour.
    fn faint(mut self) -> Self {
        self.colour = self.colour.mix(0.45);
        self
    }
}

struct Chart<'a> {
    title: &'a str,
    x: &'a str,
    y: &'a str,
    series: Vec<Series>,
    /// Whether each point stands for something, and not only their line.
    dots: bool,
}

/// All charts that have something to show.
///
/// # Errors
/// Where one can't be drawn.
pub(super) fn all(report: &Report<'_>) -> anyhow::Result<Vec<String>> {
    let generates = report.args.server.endpoint.generates();
    let mut charts = Vec::new();
    if generates {
        charts.push(against(report));
        charts.push(distribution(
            report,
            Latency::Ttft,
            "Time to the first token: share of requests below",
        ));
        charts.push(distribution(
            report,
            Latency::Itl,
            "Time between tokens: share below",
        ));
    } else {
        charts.push(distribution(
            report,
            Latency::E2el,
            "Time of a request: share below",
        ));
    }
    if let Some(last) = report.measured.steps.last() {
        charts.push(timeline(last));
    }
    let drawn = charts
        .iter()
        .filter(|chart| chart.series.iter().any(|series| !series.points.is_empty()));
    drawn.map(Chart::svg).collect()
}

fn against(report: &Report<'_>) -> Chart<'static> {
    let point = |step: &MeasuredStep| {
        (
            step.summary.output_throughput,
            step.summary.samples.ttft.percentile(95.0),
        )
    };
    let mut series = vec![Series::new(
        0,
        "this run",
        report.measured.steps.iter().map(point),
    )];
    if let Some(baseline) = report.baseline {
        let points = baseline
            .points()
            .into_iter()
            .map(|point| (point.output_throughput, point.p95_ttft_ms));
        series.push(Series::new(1, format!("baseline: {}", baseline.name()), points));
    }
    Chart {
        title: "Latency against throughput, a point for each step",
        x: "output tokens a second",
        y: "TTFT p95, ms",
        series,
        dots: true,
    }
}

fn distribution<'a>(report: &Report<'_>, latency: Latency, title: &'a str) -> Chart<'a> {
    let steps = &report.measured.steps;
    // With more steps than colours, the last ones are what a sweep or a search came to. Beside a baseline twice as many lines are enough
    // to look at.
    let most = COLOURS.len() / (1 + usize::from(report.baseline.is_some()));
    let shown = &steps[steps.len().saturating_sub(most)..];
    let mut series = Vec::new();
    for (index, step) in shown.iter().enumerate() {
        let name = step.level.name();
        let before = report.baseline.and_then(|baseline| baseline.step(step.level));
        series.extend(before.map(|saved| {
            Series::new(index, format!("{name}, baseline"), spread(&saved.sample(latency))).faint()
        }));
        series.push(Series::new(index, name, spread(latency.of(&step.summary))));
    }
    Chart {
        title,
        x: "ms",
        y: "share",
        series,
        dots: false,
    }
}

/// The share of values below each of some percentiles; the last percent, which is the longest, is left out.
fn spread(sample: &Sample) -> Vec<(f64, f64)> {
    if sample.is_empty() {
        return Vec::new();
    }
    let share = |index: usize| 0.995 * index as f64 / POINTS as f64;
    (0..=POINTS)
        .map(|index| (sample.percentile(100.0 * share(index)), share(index)))
        .collect()
}

/// Tokens a second, and requests in flight, over the time of a step.
fn timeline(step: &MeasuredStep) -> Chart<'static> {
    let end = step.records.iter().map(|record| record.ended).max().unwrap_or(0) as f64 / 1e9;
    // Whole seconds, or more of them where a step is long.
    let width = (end / MOMENTS_MAX as f64).ceil().max(1.0);
    let count = (end / width).ceil() as usize;
    let (mut tokens, mut busy) = (vec![0.0; count + 1], vec![0.0; count + 1]);
    for record in &step.records {
        for at in record.token_times() {
            tokens[((at as f64 / 1e9 / width) as usize).min(count)] += 1.0 / width;
        }
        let (from, to) = (record.sent as f64 / 1e9, record.ended as f64 / 1e9);
        let (first, last) = ((from / width) as usize, (to / width) as usize);
        for (moment, busy) in busy.iter_mut().enumerate().take(last + 1).skip(first) {
            let (begin, end) = (moment as f64 * width, (moment + 1) as f64 * width);
            *busy += (to.min(end) - from.max(begin)).max(0.0) / width;
        }
    }
    let points = |values: Vec<f64>| {
        values
            .into_iter()
            .take(count)
            .enumerate()
            .map(|(at, value)| (at as f64 * width, value))
    };
    Chart {
        title: "The last step, second by second",
        x: "seconds since its start",
        y: "",
        series: vec![
            Series::new(0, "events with tokens a second", points(tokens)),
            Series::new(1, "requests in flight", points(busy)),
        ],
        dots: false,
    }
}

impl Chart<'_> {
    fn svg(&self) -> anyhow::Result<String> {
        let mut picture = String::new();
        self.draw(&mut picture)
            .map_err(|error| anyhow!("drawing `{}`: {error}", self.title))?;
        Ok(picture)
    }

    fn draw(&self, picture: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let highest =
            |of: fn(&(f64, f64)) -> f64| (points().map(of).fold(0.0, f64::max) * 1.05).max(f64::MIN_POSITIVE);
        let area = SVGBackend::with_string(picture, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .caption(self.title, ("sans-serif", 17))
            .margin(8)
            .x_label_area_size(40)
            .y_label_area_size(76)
            .build_cartesian_2d(0.0..highest(|point| point.0), 0.0..highest(|point| point.1))?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc(self.x)
            .y_desc(self.y)
            .label_style(LABEL)
            .draw()?;
        for series in &self.series {
            let colour = series.colour;
            let line = PathElement::new(series.points.clone(), colour.stroke_width(2));
            chart
                .draw_series([line])?
                .label(series.name.as_str())
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour.filled()));
            if self.dots {
                chart.draw_series(
                    series
                        .points
                        .iter()
                        .map(|point| Circle::new(*point, 4, colour.filled())),
                )?;
            }
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.8))
            .label_font(LABEL)
            .draw()?;
        drop(chart);
        area.present()?;
        Ok(())
    }
}
