//! The command line.

mod check;
mod client;
mod config;
mod explain;
mod expression;
mod fields;
mod hash;
mod health;
mod pages;
mod query;
mod serve;
mod source;
mod terminal;
mod time;
mod view;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::client::ConfiguredServer;
use self::source::Source;
use self::terminal::When;
use crate::app::ConfigSource;
use crate::config::{Config, ConfigError};

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
    #[command(after_help = query::EXAMPLES)]
    Query(Box<query::Query>),
    /// List the fields that conditions can have
    #[command(after_help = fields::FIELDS_EXAMPLES)]
    Fields(Box<fields::Fields>),
    /// List the values of a field
    #[command(after_help = fields::VALUES_EXAMPLES)]
    Values(Box<fields::Values>),
    /// Show where the answer to a query would come from, without asking for it
    #[command(after_help = explain::EXAMPLES)]
    Explain(Box<explain::Explain>),
    /// Print the configuration in effect and where each value comes from; secrets are masked
    Config,
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
        Some(Command::Health(health)) => {
            return health.run(crate::config::listens_at(file(given), env));
        }
        _ => {}
    }
    if let Some(Command::Query(_) | Command::Fields(_) | Command::Values(_) | Command::Explain(_)) =
        &cli.command
    {
        let source = match given.map(|path| load(Some(path), env)) {
            Some(Ok(config)) => Source::Engine(Box::new(config)),
            Some(Err(error)) => return wrong(&error),
            None => Source::Server(ConfiguredServer::of(file(None), env)),
        };
        match &cli.command {
            Some(Command::Query(query)) => return query.run(&source, env),
            Some(Command::Fields(fields)) => return fields.run(&source),
            Some(Command::Values(values)) => return values.run(&source),
            Some(Command::Explain(explain)) => return explain.run(&source, env),
            _ => {}
        }
    }
    let config = match load(given, env) {
        Ok(config) => config,
        Err(error) => return wrong(&error),
    };
    match &cli.command {
        Some(Command::Check) => check::run(&config),
        Some(Command::Config) => {
            say(&config::shown(
                &config,
                env,
                std::io::stdout().is_terminal(),
            ));
            ExitCode::SUCCESS
        }
        _ => {
            // A file that disappears later is an error, not the same as no file.
            let coloured = terminal::coloured(When::Auto, env, std::io::stderr().is_terminal());
            let (path, env) = (file(given).map(Path::to_owned), env.clone());
            let source = ConfigSource {
                // A pipe cannot be read twice: a second read would be empty or would block.
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
            serve::run(&config, source, coloured)
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
    crate::config::load(file(given), env)
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

/// Runs `work` on its own runtime.
fn block_on<T>(work: impl Future<Output = T>) -> Result<T, std::io::Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(work);
    // Threads may wait for files that do not answer.
    runtime.shutdown_background();
    Ok(result)
}
