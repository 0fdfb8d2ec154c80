//! Bars by day, one part for each project.

use anyhow::anyhow;
use chrono::NaiveDate;
use plotters::prelude::*;
use rempart_governance::UsageTotal;

use super::Report;

const SIZE: (u32, u32) = (960, 300);
/// Projects with a colour of their own, the largest first; others share the last one. Okabe and Ito's colours, which those who
/// are colour-blind can tell apart.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(240, 228, 66),
    RGBColor(150, 150, 150),
];
const OTHERS: &str = "(others)";
/// Steps of a day on the axis; its bar leaves the outer ones free.
const DAY: i32 = 10;
const LABEL: (&str, u32) = ("sans-serif", 13);

/// A name and its numbers, one for each day.
struct Part {
    name: String,
    values: Vec<f64>,
}

/// An SVG picture.
pub(super) fn stacked(
    report: &Report,
    title: &str,
    value: impl Fn(&UsageTotal) -> f64,
) -> anyhow::Result<String> {
    let days: Vec<NaiveDate> = report
        .days
        .0
        .iter_days()
        .take_while(|day| *day <= report.days.1)
        .collect();
    let parts = parts(report, &days, value);
    let mut picture = String::new();
    draw(&mut picture, title, &days, &parts).map_err(|error| anyhow!("drawing {title}: {error}"))?;
    Ok(picture)
}

fn parts(report: &Report, days: &[NaiveDate], value: impl Fn(&UsageTotal) -> f64) -> Vec<Part> {
    let mut parts: Vec<Part> = report
        .daily
        .iter()
        .map(|(name, daily)| Part {
            name: name.clone(),
            values: days
                .iter()
                .map(|day| daily.get(day).map_or(0.0, &value))
                .collect(),
        })
        .collect();
    let sum = |part: &Part| part.values.iter().sum::<f64>();
    parts.sort_by(|a, b| sum(b).total_cmp(&sum(a)));
    if parts.len() > COLOURS.len() {
        let rest = parts.split_off(COLOURS.len() - 1);
        let together = |at: usize| rest.iter().map(|part| part.values[at]).sum();
        parts.push(Part {
            name: OTHERS.to_owned(),
            values: (0..days.len()).map(together).collect(),
        });
    }
    parts
}

fn draw(
    picture: &mut String,
    title: &str,
    days: &[NaiveDate],
    parts: &[Part],
) -> Result<(), Box<dyn std::error::Error>> {
    let highest = (0..days.len())
        .map(|at| parts.iter().map(|part| part.values[at]).sum::<f64>())
        .fold(0.0, f64::max);
    let end = i32::try_from(days.len())? * DAY;
    let area = SVGBackend::with_string(picture, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 17))
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(76)
        .build_cartesian_2d(0..end, 0.0..(highest * 1.05).max(f64::MIN_POSITIVE))?;
    // Where its day's bar begins.
    let day = |x: &i32| {
        let at = usize::try_from(*x / DAY).ok();
        at.and_then(|at| days.get(at))
            .map_or_else(String::new, ToString::to_string)
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(days.len().min(10))
        .x_label_formatter(&day)
        .y_label_formatter(&|value| short(*value))
        .label_style(LABEL)
        .draw()?;
    let mut below = vec![0.0; days.len()];
    for (part, colour) in parts.iter().zip(COLOURS) {
        let mut bars = Vec::new();
        for ((below, value), left) in below
            .iter_mut()
            .zip(&part.values)
            .zip((0..).step_by(DAY as usize))
        {
            let bottom = *below;
            *below += value;
            if *value > 0.0 {
                let corners = [(left + 1, bottom), (left + DAY - 1, *below)];
                bars.push(Rectangle::new(corners, colour.filled()));
            }
        }
        chart
            .draw_series(bars)?
            .label(part.name.as_str())
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .label_font(LABEL)
        .draw()?;
    drop(chart);
    area.present()?;
    Ok(())
}

/// A number as a few characters.
fn short(value: f64) -> String {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match units.into_iter().find(|(size, _)| value >= *size) {
        Some((size, unit)) => format!("{}{unit}", trimmed(value / size)),
        None => trimmed(value),
    }
}

/// With up to three decimals.
fn trimmed(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
