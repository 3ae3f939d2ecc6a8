//! The figures as a picture: speeds over depth, and memory over context.

use crate::measure::Report;
use gemma4_examples::{Failure, plot_font};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::path::Path;

const FONT: &str = "sans-serif";
const SIZE: (u32, u32) = (1500, 480);

/// One line of a chart.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// A chart: lines over tokens.
struct Chart {
    title: &'static str,
    x: &'static str,
    y: &'static str,
    /// Whether both axes are logarithmic.
    log: bool,
    lines: Vec<Line>,
}

/// Draws the report into a file, whose name says in which format.
///
/// # Errors
/// If the format is not known, or the file cannot be written.
pub fn draw(report: &Report, path: &Path) -> Result<(), Failure> {
    plot_font()?;
    match path.extension().and_then(|e| e.to_str()) {
        Some("svg") => all(report, &SVGBackend::new(path, SIZE).into_drawing_area()),
        Some("png") => all(report, &BitMapBackend::new(path, SIZE).into_drawing_area()),
        _ => Err("its name ends neither with .svg nor with .png".into()),
    }
}

fn all<B: DrawingBackend>(report: &Report, area: &DrawingArea<B, Shift>) -> Result<(), Failure>
where
    B::ErrorType: 'static,
{
    area.fill(&WHITE)?;
    let (head, rest) = area.split_vertically(28);
    head.titled(&report.about, (FONT, 15))?;
    let charts = [prompt(report), decode(report), memory(report)];
    for (panel, chart) in rest.split_evenly((1, charts.len())).iter().zip(&charts) {
        if chart.lines.iter().any(|line| !line.points.is_empty()) {
            draw_chart(panel, chart)?;
        }
    }
    area.present()?;
    Ok(())
}

/// Lines by name, in the order of their first points.
fn lines(points: impl Iterator<Item = (String, (f64, f64))>) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for (name, point) in points {
        match lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push(point),
            None => lines.push(Line { name, points: vec![point] }),
        }
    }
    lines
}

fn speed<'a>(report: &'a Report, what: &'a str) -> impl Iterator<Item = (String, (f64, f64))> + 'a {
    let several = report
        .rows
        .iter()
        .any(|a| a.what == what && report.rows.iter().any(|b| b.what == what && a.n != b.n));
    report.rows.iter().filter(move |row| row.what == what).map(move |row| {
        let name = if several { format!("{}, {}", row.kv, row.n) } else { row.kv.clone() };
        (name, (f64::from(row.depth), row.median()))
    })
}

fn prompt(report: &Report) -> Chart {
    let lines = lines(speed(report, "prompt"));
    Chart { title: "Prompt", x: "tokens in the cache before", y: "tokens/s", log: false, lines }
}

fn decode(report: &Report) -> Chart {
    let lines = lines(speed(report, "decode"));
    Chart { title: "Decoding", x: "tokens in the cache before", y: "tokens/s", log: false, lines }
}

fn memory(report: &Report) -> Chart {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let points =
        report.memory.iter().map(|m| (m.kv.clone(), (f64::from(m.n_ctx), mib(m.kv_bytes + m.compute_bytes))));
    Chart { title: "Memory of a session", x: "context in tokens", y: "MiB", log: true, lines: lines(points) }
}

fn draw_chart<B: DrawingBackend>(panel: &DrawingArea<B, Shift>, chart: &Chart) -> Result<(), Failure>
where
    B::ErrorType: 'static,
{
    let points = || chart.lines.iter().flat_map(|line| &line.points);
    let range = |get: fn(&(f64, f64)) -> f64| {
        points().map(get).fold((f64::INFINITY, 0f64), |(low, high), x| (low.min(x), high.max(x)))
    };
    let (x, y) = (range(|p| p.0), range(|p| p.1));
    let mut builder = ChartBuilder::on(panel);
    builder.caption(chart.title, (FONT, 20)).margin(12).x_label_area_size(40).y_label_area_size(64);
    if chart.log {
        // Room above and beside a single point too.
        let (x, y) = ((x.0 / 1.2)..(x.1 * 1.2), (y.0.max(0.1) / 1.5)..(y.1 * 1.5));
        let mut context = builder.build_cartesian_2d(x.log_scale(), y.log_scale())?;
        context
            .configure_mesh()
            .label_style((FONT, 13))
            .x_desc(chart.x)
            .y_desc(chart.y)
            .light_line_style(WHITE)
            .x_label_formatter(&tokens)
            .draw()?;
        series(&mut context, chart)
    } else {
        let mut context = builder.build_cartesian_2d(0.0..(x.1 * 1.05).max(1.0), 0.0..(y.1 * 1.15))?;
        context
            .configure_mesh()
            .label_style((FONT, 13))
            .x_desc(chart.x)
            .y_desc(chart.y)
            .light_line_style(WHITE)
            .x_labels(6)
            .x_label_formatter(&tokens)
            .draw()?;
        series(&mut context, chart)
    }
}

fn series<'a, B: DrawingBackend + 'a, X, Y>(
    context: &mut ChartContext<'a, B, Cartesian2d<X, Y>>,
    chart: &Chart,
) -> Result<(), Failure>
where
    B::ErrorType: 'static,
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    for (i, line) in chart.lines.iter().enumerate() {
        let color = Palette99::pick(i).to_rgba();
        context
            .draw_series(LineSeries::new(line.points.iter().copied(), color.stroke_width(2)).point_size(3))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    context
        .configure_series_labels()
        .label_font((FONT, 13))
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

/// Thousands as k, where it is exact enough.
#[allow(clippy::trivially_copy_pass_by_ref)] // what plotters wants
fn tokens(n: &f64) -> String {
    if *n < 1000.0 {
        return format!("{n:.0}");
    }
    let text = format!("{:.1}", n / 1000.0);
    format!("{}k", text.strip_suffix(".0").unwrap_or(&text))
}
