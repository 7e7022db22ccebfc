//! Logs to standard error: for humans, or as JSON a line.

use tracing::Level;
use tracing_subscriber::fmt;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Text, coloured on a terminal.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Starts logging at `level` for the whole process. A second call changes nothing.
pub fn start(level: Level, format: Format, coloured: bool) {
    let lines = fmt().with_max_level(level).with_writer(std::io::stderr);
    // An error means that a logger is in place already, which is as good.
    let _ = match format {
        Format::Human => lines.with_ansi(coloured).with_target(false).try_init(),
        Format::Json => lines.json().flatten_event(true).try_init(),
    };
}
