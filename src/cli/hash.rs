//! `heliostat hash`: hashes of passwords and tokens for the configuration.

use std::io::{IsTerminal, Read};
use std::process::ExitCode;

use clap::Args;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};

use super::{complain, say};

/// The bcrypt cost: about a quarter of a second per hash.
const COST: u32 = 12;

/// The most bytes of a password that bcrypt uses.
const LONGEST: usize = 71;

#[derive(Debug, Args)]
pub(super) struct Hash {
    /// Generate a random token and print it with its hash, instead of reading a password from
    /// standard input
    #[arg(long)]
    token: bool,
}

impl Hash {
    pub(super) fn run(&self) -> ExitCode {
        let made = match self.token {
            true => token(),
            false => read().and_then(|password| hashed(&password)),
        };
        match made {
            Ok(text) => {
                say(&text);
                ExitCode::SUCCESS
            }
            Err(error) => {
                complain(&error);
                ExitCode::FAILURE
            }
        }
    }
}

/// Reads a password from standard input, without the line break at its end and without echo.
fn read() -> Result<String, String> {
    let unreadable = |e: std::io::Error| format!("the password cannot be read: {e}");
    if std::io::stdin().is_terminal() {
        let first = rpassword::prompt_password("Password: ").map_err(unreadable)?;
        let again = rpassword::prompt_password("Repeat it: ").map_err(unreadable)?;
        return match first == again {
            true => Ok(first),
            false => Err("the passwords differ".into()),
        };
    }
    let mut text = String::new();
    let most = LONGEST as u64 + 3;
    let read = std::io::stdin().take(most).read_to_string(&mut text);
    read.map_err(unreadable)?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}

/// Returns a line with the hash of `password`.
fn hashed(password: &str) -> Result<String, String> {
    if password.is_empty() {
        return Err("the password is empty".into());
    }
    if password.len() > LONGEST {
        return Err(format!("the password is longer than {LONGEST} bytes"));
    }
    if password.contains(char::is_control) {
        return Err("the password contains control characters, such as a line break".into());
    }
    let hash = bcrypt::hash(password, COST);
    let hash = hash.map_err(|e| format!("the password cannot be hashed: {e}"))?;
    Ok(format!("{hash}\n"))
}

/// Generates a token; returns it and its hash, one line each.
fn token() -> Result<String, String> {
    let mut random = [0; 32];
    let filled = SystemRandom::new().fill(&mut random);
    filled.map_err(|_| "the system has no random numbers")?;
    let token = hex(&random);
    let hash = hex(digest(&SHA256, token.as_bytes()).as_ref());
    Ok(format!("token: {token}\nhash:  sha256:{hash}\n"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PasswordHash, TokenHash};

    #[test]
    fn tokens_are_new_and_come_with_their_hash() {
        let made = token().unwrap();
        let (first, second) = made.trim_end().split_once('\n').unwrap();
        let token_made = first.strip_prefix("token: ").unwrap();
        let hash = TokenHash::parse(second.strip_prefix("hash:  ").unwrap()).unwrap();
        assert_eq!(token_made.len(), 64);
        assert_eq!(
            digest(&SHA256, token_made.as_bytes()).as_ref(),
            hash.bytes()
        );
        assert_ne!(made, token().unwrap());
    }

    #[test]
    fn passwords_that_cannot_be_told_apart_or_typed_are_refused() {
        let long = "x".repeat(72);
        for (password, says) in [("", "empty"), (&long, "71 bytes"), ("a\nb", "control")] {
            let error = hashed(password).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        let hash = hashed(&long[1..]).unwrap();
        assert_eq!(PasswordHash::parse(hash.trim_end()).unwrap().cost(), COST);
        assert_eq!(bcrypt::verify(&long[1..], hash.trim_end()).ok(), Some(true));
    }
}
