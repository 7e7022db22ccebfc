//! Heliostat's binary: everything is in the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = heliostat::cli::Cli::parse();
    #[allow(
        clippy::disallowed_methods,
        reason = "the environment is read here and passed in"
    )]
    let env = std::env::vars_os();
    // Variables that are not text have no meaning to us and are no reason to panic.
    let text = |part: std::ffi::OsString| part.to_string_lossy().into_owned();
    let env = env.map(|(name, value)| (text(name), text(value))).collect();
    heliostat::cli::run(&cli, &env)
}
