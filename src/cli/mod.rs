//! The command line.

mod check;
mod client;
mod hash;
mod health;
mod pages;
mod query;
mod serve;
mod time;
mod view;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::app::ConfigSource;
use crate::config::{self, Config, ConfigError};

/// A caching and aggregating proxy for telemetry: StackState's mirror API and Prometheus' HTTP API
/// in front of slow, metered or rate-limited stores.
#[derive(Debug, Parser)]
#[command(name = "heliostat", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    /// The configuration file [default: config.toml if it exists, else built-in defaults]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT (the default command)
    Serve,
    /// Validate the configuration, then test every upstream
    Check,
    /// Query metric values and show the answer
    Query(Box<query::Query>),
    /// Ask the server on this machine whether it is ready; for container probes
    Health(health::Health),
    /// Hash a password for [access], or generate a token
    Hash(hash::Hash),
    /// Print the completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

/// Exit code for an invalid configuration.
const WRONG_CONFIGURATION: u8 = 2;

/// Runs the command, with `env` as the environment.
pub fn run(cli: &Cli, env: &BTreeMap<String, String>) -> ExitCode {
    let given = cli.config.as_deref();
    match &cli.command {
        Some(Command::Completions { shell }) => {
            say(&pages::completions(*shell));
            return ExitCode::SUCCESS;
        }
        Some(Command::Man) => return man(),
        Some(Command::Hash(hash)) => return hash.run(),
        Some(Command::Health(health)) => return health.run(config::listens_at(file(given), env)),
        _ => {}
    }
    if let Some(Command::Query(query)) = &cli.command {
        let columns = env.get("COLUMNS").and_then(|c| c.parse().ok());
        return query.run(given.map(|path| load(Some(path), env)), columns);
    }
    let config = match load(given, env) {
        Ok(config) => config,
        Err(error) => return wrong(&error),
    };
    match &cli.command {
        Some(Command::Check) => check::run(&config),
        _ => {
            // A file that disappears later is an error, not the same as none.
            let (path, env) = (file(given).map(Path::to_owned), env.clone());
            let source = ConfigSource {
                // A pipe cannot be read a second time, or blocks its reader.
                file: path.clone().filter(|path| path.is_file()),
                load: Box::new(move || match path.as_deref() {
                    Some(path) if path.exists() && !path.is_file() => Err(ConfigError {
                        source: path.display().to_string(),
                        position: None,
                        key: String::new(),
                        message: "is not a regular file, and cannot be read a second time".into(),
                    }),
                    path => load(path, &env),
                }),
            };
            serve::run(&config, source)
        }
    }
}

/// Returns the given file, or `config.toml` if it exists.
fn file(given: Option<&Path>) -> Option<&Path> {
    let usual = Path::new("config.toml");
    given.or_else(|| usual.exists().then_some(usual))
}

/// Loads the configuration in the file, or the built-in one.
fn load(given: Option<&Path>, env: &BTreeMap<String, String>) -> Result<Config, ConfigError> {
    config::load(file(given), env)
}

fn wrong(error: &ConfigError) -> ExitCode {
    complain(error);
    ExitCode::from(WRONG_CONFIGURATION)
}

/// Prints an error to standard error.
#[allow(clippy::print_stderr, reason = "this is the command line")]
fn complain(error: &dyn std::fmt::Display) {
    eprintln!("heliostat: {error}");
}

fn man() -> ExitCode {
    match pages::man() {
        Ok(page) => {
            say(&page);
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Writes `text` to standard output. A closed pipe is not an error.
fn say(text: &(impl AsRef<[u8]> + ?Sized)) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_ref());
}

/// Runs `work` on a runtime of its own.
fn block_on<T>(work: impl Future<Output = T>) -> Result<T, std::io::Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(work))
}
