//! The plot: the chance that a draft becomes part of the text, by position.

use super::Outcome;
use gemma4_examples::{Failure, plot_font};
use plotters::prelude::*;
use std::path::Path;

/// One hue for each drafter; of a drafter's texts, the first is drawn dark and the others ever lighter.
const HUES: [RGBColor; 4] =
    [RGBColor(31, 90, 180), RGBColor(200, 80, 20), RGBColor(40, 130, 60), RGBColor(120, 60, 150)];

pub fn draw(path: &Path, outcomes: &[Outcome]) -> Result<(), Failure> {
    let longest = outcomes.iter().map(|outcome| outcome.positions.len()).max().unwrap_or(0);
    plot_font()?;
    let root = SVGBackend::new(path, (720, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(52)
        .build_cartesian_2d(1f64..longest.max(2) as f64, 0f64..100f64)?;
    chart
        .configure_mesh()
        .x_labels(longest.max(2))
        .x_label_formatter(&|x| format!("{x:.0}"))
        .x_desc("position in the draft")
        .y_desc("drafts that become text, %")
        .light_line_style(TRANSPARENT)
        .draw()?;
    let mut drafters: Vec<&str> = Vec::new();
    for outcome in outcomes {
        if !drafters.contains(&outcome.drafter.as_str()) {
            drafters.push(&outcome.drafter);
        }
        let hue = drafters.iter().position(|&name| name == outcome.drafter).unwrap_or(0);
        let before = outcomes.iter().take_while(|other| !std::ptr::eq(*other, outcome));
        let shade = before.filter(|other| other.drafter == outcome.drafter).count();
        let color = HUES[hue % HUES.len()].mix(1.0 / (1.0 + 1.2 * shade as f64));
        let points = outcome.survival().into_iter().enumerate().map(|(i, p)| (i as f64 + 1.0, 100.0 * p));
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)).point_size(3))?
            .label(format!("{}, {}", outcome.drafter, outcome.text))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
    root.present()?;
    Ok(())
}
