//! Logs to standard error: text for people, or one JSON object per line.

use std::panic::PanicHookInfo;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tracing::{Level, error};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, registry, reload};

use super::log_writer::LineWriter;

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text, coloured on a terminal.
    #[default]
    Human,
    /// One JSON object per line.
    Json,
}

/// The filter of lines; set once logging has started.
static HEARD: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// The writer of lines; set once logging has started.
static WRITER: OnceLock<LineWriter> = OnceLock::new();

/// The longest time that the end of the process waits for lines to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The current level.
static LEVEL: Mutex<Option<Level>> = Mutex::new(None);

/// Starts logging at `level` for the whole process; libraries log warnings and errors only. From
/// then on panics are log lines as well, in the same format. A second call changes nothing.
pub fn start(level: Level, format: LogFormat, coloured: bool) {
    let (heard, handle) = reload::Layer::new(heard(level));
    // Without a thread of its own there is no log: it must not make requests wait.
    let Ok(writer) = LineWriter::start(std::io::stderr()) else {
        return;
    };
    let lines = writer.clone();
    let lines = fmt::layer().with_writer(move || lines.clone());
    let lines = match format {
        LogFormat::Human => lines.with_ansi(coloured).with_target(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // An error means that a logger is installed already.
    if registry().with(lines.with_filter(heard)).try_init().is_ok() {
        let _ = HEARD.set(handle);
        let _ = WRITER.set(writer);
        set_level(level);
        std::panic::set_hook(Box::new(log_panic));
    }
}

/// Writes the lines that wait, if standard error is read; called at the end of the process.
pub fn finish() {
    if let Some(writer) = WRITER.get() {
        writer.flush(LAST_LINES);
    }
}

/// Logs a panic as one line, at the level of errors.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let message = text.unwrap_or("unknown reason");
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    match panic.location() {
        // Line breaks in the message stay on its line.
        Some(at) => error!(thread, at = %at, "panicked: {}", message.escape_debug()),
        None => error!(thread, "panicked: {}", message.escape_debug()),
    }
    // The process may end with it.
    finish();
}

/// Returns the current level, or `None` before logging has started.
pub fn level() -> Option<Level> {
    *LEVEL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets the level.
pub fn set_level(level: Level) {
    *LEVEL.lock().unwrap_or_else(PoisonError::into_inner) = Some(level);
    if let Some(handle) = HEARD.get() {
        // An error means that logging has ended.
        let _ = handle.reload(heard(level));
    }
}

/// Passes lines of `level` and above; those of libraries from warnings on.
fn heard(level: Level) -> Targets {
    Targets::new()
        .with_default(level.min(Level::WARN))
        .with_target(env!("CARGO_PKG_NAME"), level)
}
