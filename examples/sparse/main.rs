//! What block-sparse prefill costs in quality: perplexity after it, what is read, what is still found. Prints a
//! table and draws a plot.

use clap::Parser;
use gemma4::{EncodeOptions, Model, PrefillOptions, Result, Session, SparsePrefill};
use gemma4_examples::{Failure, ModelArgs, plot_font, progress_bar, run_main};
use plotters::prelude::*;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "Measures the quality of block-sparse prefill over alpha")]
struct Cli {
    /// The text
    file: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens that are computed block-sparse
    #[arg(long, default_value_t = 1792)]
    prompt: usize,
    /// Tokens after them that are scored, reading everything
    #[arg(long, default_value_t = 256)]
    scored: usize,
    /// Most windows of prompt and scored tokens
    #[arg(long, default_value_t = 8)]
    windows: usize,
    /// Values of alpha
    #[arg(long, value_delimiter = ',', default_values_t = [0.01, 0.03, 0.06, 0.12, 0.25, 0.5, 0.8, 0.95])]
    alpha: Vec<f32>,
    /// Positions of a block
    #[arg(long, default_value_t = 128)]
    block: u32,
    /// First blocks that are always read
    #[arg(long, default_value_t = 2)]
    sink: u32,
    /// Nearest blocks that are always read
    #[arg(long, default_value_t = 4)]
    window: u32,
    /// Last blocks of the prompt that read everything
    #[arg(long, default_value_t = 2)]
    last_full: u32,
    /// Draw the plot into this SVG file
    #[arg(long)]
    plot: Option<PathBuf>,
}

struct Row {
    /// 0 for dense.
    alpha: f32,
    perplexity: f64,
    /// Mean and 5th percentile of the softmax that is read, and the share of keys, by layer and over all windows. NaN: the
    /// device does not say.
    layers: Vec<(u32, [f64; 3])>,
}

impl Row {
    fn keys(&self) -> f64 {
        self.layers.iter().map(|(_, shares)| shares[2]).sum::<f64>() / self.layers.len().max(1) as f64
    }
}

fn measure(cli: &Cli) -> Result<Vec<Row>, Failure> {
    let model = cli.model.load()?;
    let text = std::fs::read_to_string(&cli.file).map_err(|source| gemma4::Error::Io {
        action: "read",
        path: cli.file.clone(),
        source,
    })?;
    let windows = windows(cli, &model, &text)?;
    let mut session = Session::new(&model, &cli.model.session((cli.prompt + cli.scored) as u32))?;
    let bar = progress_bar("windows", "{pos}/{len}");
    bar.set_length((windows.len() * (1 + cli.alpha.len())) as u64);
    let mut rows = Vec::new();
    for alpha in std::iter::once(0.0).chain(cli.alpha.iter().copied()) {
        let sparse = SparsePrefill::default().alpha(alpha).block(cli.block).last_full(cli.last_full).from(0);
        let options = PrefillOptions::default().sparse(sparse.always(cli.sink, cli.window));
        let (mut sum, mut layers) = (0.0, Vec::<(u32, [f64; 3])>::new());
        for window in &windows {
            session.clear();
            let read = session.prefill_reporting(&window[..cli.prompt], &options)?;
            layers.resize(read.len(), (0, [0.0; 3]));
            for ((number, sums), layer) in layers.iter_mut().zip(&read) {
                *number = layer.layer;
                let known = |share: Option<f32>| share.unwrap_or(f32::NAN);
                let shares = [known(layer.recall), known(layer.recall_p5), layer.keys];
                sums.iter_mut().zip(shares).for_each(|(sum, x)| *sum += f64::from(x) / windows.len() as f64);
            }
            let scores = session.score(&window[cli.prompt..])?;
            sum -= scores.iter().map(|&s| f64::from(s)).sum::<f64>() / scores.len() as f64;
            bar.inc(1);
        }
        rows.push(Row { alpha, perplexity: (sum / windows.len() as f64).exp(), layers });
    }
    bar.finish_and_clear();
    Ok(rows)
}

fn windows(cli: &Cli, model: &Model, text: &str) -> Result<Vec<Vec<u32>>> {
    let tokens = model.tokenizer().encode(text, EncodeOptions::CONTINUATION)?;
    let run = (cli.prompt + cli.scored).saturating_sub(1).max(1);
    let windows = tokens.chunks_exact(run).take(cli.windows);
    Ok(windows.map(|run| model.tokenizer().bos().into_iter().chain(run.iter().copied()).collect()).collect())
}

fn print(rows: &[Row]) {
    println!("| alpha | perplexity | change | keys read | by layer: softmax read (5th percentile), keys |");
    println!("| ---: | ---: | ---: | ---: | --- |");
    let dense = rows.first().map_or(1.0, |row| row.perplexity);
    for row in rows {
        let change = 100.0 * (row.perplexity / dense - 1.0);
        if row.alpha == 0.0 {
            println!("| dense | {:.4} | | 100 % | |", row.perplexity);
            continue;
        }
        let layers: Vec<String> = row
            .layers
            .iter()
            .map(|(n, shares)| {
                let [recall, p5, keys] = shares.map(|share| match share.is_nan() {
                    true => "?".to_owned(),
                    false => format!("{:.1} %", 100.0 * share),
                });
                format!("{n}: {recall} ({p5}), {keys}")
            })
            .collect();
        let (keys, layers) = (100.0 * row.keys(), layers.join("; "));
        println!("| {} | {:.4} | {change:+.2} % | {keys:.1} % | {layers} |", row.alpha, row.perplexity);
    }
}

/// Perplexity, and the softmax that is read, over the share of keys that are read.
fn plot(rows: &[Row], path: &Path) -> Result<(), Failure> {
    plot_font()?;
    let dense = rows.first().map_or(1.0, |row| row.perplexity);
    let sparse: Vec<&Row> = rows.iter().filter(|row| row.alpha > 0.0).collect();
    let change = |row: &Row| 100.0 * (row.perplexity / dense - 1.0);
    let worst = sparse.iter().map(|row| change(row)).fold(0.5, f64::max);
    let best = sparse.iter().map(|row| change(row)).fold(-0.5, f64::min);
    let root = SVGBackend::new(path, (720, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .caption("Block-sparse prefill", ("sans-serif", 18))
        .x_label_area_size(40)
        .y_label_area_size(56)
        .right_y_label_area_size(56)
        .build_cartesian_2d(0.0..100.0, best * 1.2..worst * 1.2)?
        .set_secondary_coord(0.0..100.0, 0.0..100.0);
    chart
        .configure_mesh()
        .x_desc("keys read by full-attention layers, %")
        .y_desc("change of perplexity, %")
        .draw()?;
    chart.configure_secondary_axes().y_desc("softmax read, %").draw()?;
    let quality = sparse.iter().map(|row| (100.0 * row.keys(), change(row)));
    chart
        .draw_series(LineSeries::new(quality.clone(), &BLUE))?
        .label("change of perplexity")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], BLUE));
    chart.draw_series(quality.map(|at| Circle::new(at, 3, BLUE.filled())))?;
    let n_layers = sparse.first().map_or(0, |row| row.layers.len());
    for (i, color) in (0..n_layers).zip([RED, GREEN, MAGENTA, BLACK, CYAN].iter().cycle()) {
        let line =
            sparse.iter().filter_map(|row| row.layers.get(i)).filter(|(_, shares)| !shares[0].is_nan());
        let points = line.map(|(_, shares)| (100.0 * shares[2], 100.0 * shares[0]));
        let name = sparse[0].layers[i].0;
        chart
            .draw_secondary_series(LineSeries::new(points, color))?
            .label(format!("softmax read by layer {name}"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleRight)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    root.present()?;
    Ok(())
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let rows = measure(cli)?;
    print(&rows);
    match &cli.plot {
        Some(path) => plot(&rows, path).map_err(|e| format!("cannot draw {}: {e}", path.display()).into()),
        None => Ok(()),
    }
}

fn main() -> ExitCode {
    run_main(env!("CARGO_BIN_NAME"), || run(&Cli::parse()))
}
