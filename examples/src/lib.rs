//! What the example programs share: options of models and sessions, models from the hub, progress bars.

mod drafter;
pub mod hub;
mod options;

pub use drafter::{DrafterArgs, named};
pub use options::{ModelArgs, Repack, SamplingArgs, TINY};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::process::ExitCode;

/// What ends a program: an error of the library, or a line for a person.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A bar on stderr, if that is a terminal.
pub fn progress_bar(what: &'static str, counts: &str) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(0), target).with_message(what);
    if let Ok(style) = ProgressStyle::with_template(&format!("{{msg}} [{{wide_bar}}] {counts}")) {
        bar.set_style(style);
    }
    bar
}

/// A program from its start to its exit status; an error is a line on stderr with the program's name.
pub fn run_main(program: &str, run: impl FnOnce() -> Result<(), Failure>) -> ExitCode {
    init_logging();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{program}: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Sends log lines to stderr; warnings only, unless `RUST_LOG` says otherwise.
fn init_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// Gives plots a font under the name that they ask for: a bare system has none.
///
/// # Errors
/// If the font cannot be read.
#[cfg(feature = "plot")]
pub fn plot_font() -> Result<(), Failure> {
    let font = epaint_default_fonts::UBUNTU_LIGHT;
    let style = plotters::style::FontStyle::Normal;
    plotters::style::register_font("sans-serif", style, font)
        .map_err(|_| "the font of plots cannot be read".into())
}
