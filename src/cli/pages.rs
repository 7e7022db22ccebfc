//! `heliostat completions` and `heliostat man`, for packages.

use std::io;

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::Cli;

/// Returns the completion script for `shell`.
pub(super) fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "heliostat", &mut script);
    script
}

/// Returns the manual page, with the options of every command.
pub(super) fn man() -> io::Result<Vec<u8>> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut page = Vec::new();
    let whole = Man::new(command.clone());
    whole.render_title(&mut page)?;
    whole.render_name_section(&mut page)?;
    whole.render_synopsis_section(&mut page)?;
    whole.render_description_section(&mut page)?;
    whole.render_options_section(&mut page)?;
    for part in command.get_subcommands() {
        let heading = format!("heliostat {}", part.get_name()).to_uppercase();
        let about = part.get_about().map(ToString::to_string);
        let mut roff = Roff::default();
        roff.control("SH", [heading.as_str()]);
        roff.text([roman(about.unwrap_or_default())]);
        for argument in part.get_arguments() {
            // These are the same for all commands.
            if argument.is_global_set() || argument.get_id() == "help" {
                continue;
            }
            roff.control("TP", []);
            roff.text([bold(argument.to_string())]);
            let help = argument.get_help().map(ToString::to_string);
            roff.text([roman(help.unwrap_or_default())]);
        }
        if let Some(examples) = part.get_after_help() {
            let examples = examples.to_string();
            roff.control("PP", []);
            roff.text([roman("Examples:")]);
            roff.control("nf", []);
            for line in examples.lines().skip(1) {
                roff.text([roman(line)]);
            }
            roff.control("fi", []);
        }
        roff.to_writer(&mut page)?;
    }
    let mut roff = Roff::default();
    roff.control("SH", ["EXIT STATUS"]);
    roff.text([roman(
        "0: success. 1: failure, or an upstream that was tested failed. 2: the configuration or the \
         command line is invalid.",
    )]);
    roff.control("SH", ["FILES"]);
    roff.text([
        bold("config.toml"),
        roman(" in the working directory, or the file given by --config."),
    ]);
    roff.to_writer(&mut page)?;
    whole.render_version_section(&mut page)?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_command_and_option_is_in_the_manual_page() {
        // Hyphens are escaped in roff.
        let page = String::from_utf8(man().unwrap())
            .unwrap()
            .replace("\\-", "-");
        let command = Cli::command();
        for part in command.get_subcommands() {
            let heading = format!("heliostat {}", part.get_name()).to_uppercase();
            assert!(page.contains(&heading), "{heading}");
            for long in part.get_arguments().filter_map(|a| a.get_long()) {
                assert!(page.contains(&format!("--{long}")), "{heading} --{long}");
            }
        }
        assert!(page.contains("--config"));
    }

    #[test]
    fn every_shell_has_every_command() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(completions(*shell)).unwrap();
            for part in Cli::command().get_subcommands() {
                assert!(
                    script.contains(part.get_name()),
                    "{shell} {}",
                    part.get_name()
                );
            }
        }
    }
}
