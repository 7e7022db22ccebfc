//! Heliostat's binary: everything is in the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = heliostat::cli::Cli::parse();
    #[allow(
        clippy::disallowed_methods,
        reason = "the environment is read here and passed in"
    )]
    let env = std::env::vars().collect();
    heliostat::cli::run(&cli, &env)
}
