//! Hashes of clients' credentials.

use std::fmt;

/// The cost factors of bcrypt that are accepted; each step doubles the work. 4 is the least there
/// is, and 14 takes more than a second.
const COSTS: std::ops::RangeInclusive<u32> = 4..=14;

/// The SHA-256 of a bearer token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// Reads `sha256:` and 64 hexadecimal digits. The error does not repeat `text`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let read = || {
            let digits = text.strip_prefix("sha256:")?.as_bytes();
            let mut hash = [0; 32];
            if digits.len() != 2 * hash.len() {
                return None;
            }
            let digit = |d: u8| char::from(d).to_digit(16);
            for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
                let [high, low] = pair else { return None };
                *byte = u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()?;
            }
            Some(Self(hash))
        };
        read().ok_or_else(|| {
            "is not the hash of a token; expected \"sha256:\" and 64 hexadecimal digits, as `heliostat hash --token` prints".into()
        })
    }

    /// Returns the hash itself.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(…)")
    }
}

/// The bcrypt hash of a password, as `htpasswd -B` writes it.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash {
    text: String,
    cost: u32,
}

impl PasswordHash {
    /// Reads a hash such as `$2b$12$…`. The error does not repeat `text`.
    pub fn parse(text: &str) -> Result<Self, String> {
        // $2x$ marks hashes of a faulty implementation.
        let known = ["$2a$", "$2b$", "$2y$"].iter().any(|v| text.starts_with(v));
        let parts = text.parse::<bcrypt::HashParts>().ok().filter(|_| known);
        match parts.map(|parts| parts.get_cost()) {
            None => Err("is not a bcrypt hash; expected \"$2b$12$…\" with 60 characters, as `heliostat hash` prints, or `htpasswd -B` behind the name".into()),
            Some(cost) if !COSTS.contains(&cost) => Err(format!(
                "has the cost {cost}; {} to {} are accepted: each step doubles the time it takes to check a password",
                COSTS.start(),
                COSTS.end()
            )),
            Some(cost) => Ok(Self {
                text: text.to_owned(),
                cost,
            }),
        }
    }

    /// Returns the hash of no password, which is as much work as one of `cost`.
    pub fn decoy(cost: u32) -> Self {
        let text = format!("$2b${cost:02}${:.<53}", "");
        Self { text, cost }
    }

    /// Returns the hash as it is written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the base-2 logarithm of the work it takes.
    pub fn cost(&self) -> u32 {
        self.cost
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_of_tokens_are_hexadecimal() {
        let hex = "00ff".repeat(16);
        let hash = TokenHash::parse(&format!("sha256:{hex}")).unwrap();
        assert_eq!(hash.bytes()[..3], [0, 255, 0]);
        assert_eq!(
            TokenHash::parse(&format!("sha256:{}", hex.to_uppercase())),
            Ok(hash)
        );
        let plus = format!("sha256:+f{}", &hex[2..]);
        let long = format!("sha256:{hex}00");
        for bad in ["", "sha256:", &hex, &plus, &long, "hunter2", "sha256:ä"] {
            let error = TokenHash::parse(bad).unwrap_err();
            assert!(error.contains("heliostat hash --token"), "{error}");
            assert!(
                bad.is_empty() || bad == "sha256:" || !error.contains(bad),
                "{error}"
            );
        }
    }

    #[test]
    fn hashes_of_passwords_are_bcrypt_of_a_sane_cost() {
        let hash = |start: &str| PasswordHash::parse(&format!("{start}{}", ".".repeat(53)));
        for (start, cost) in [("$2y$05$", 5), ("$2a$04$", 4), ("$2b$14$", 14)] {
            assert_eq!(hash(start).unwrap().cost(), cost);
        }
        for (start, says) in [
            ("$2b$15$", "has the cost 15; 4 to 14"),
            ("$2b$03$", "has the cost 3;"),
            ("$2b$31$", "has the cost 31;"),
            ("$2x$05$", "is not a bcrypt hash"),
            ("$2b$5$a", "is not a bcrypt hash"),
            ("grafana:$2y$05$", "is not a bcrypt hash"),
            ("$2b$05$.", "is not a bcrypt hash"),
            ("$2b$05$\u{e4}", "is not a bcrypt hash"),
            ("$apr1$", "is not a bcrypt hash"),
        ] {
            let error = hash(start).unwrap_err();
            assert!(error.contains(says), "{start}: {error}");
            assert!(!error.contains("..."), "{error}");
        }
        // A password equals the decoy never, and takes its time.
        let decoy = PasswordHash::decoy(4);
        assert_eq!(bcrypt::verify("", decoy.as_str()).ok(), Some(false));
        assert!(!format!("{decoy:?} {:?}", TokenHash([7; 32])).contains("..."));
    }
}
