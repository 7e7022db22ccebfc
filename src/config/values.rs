//! Types of values that are written as text in the file.

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Unexpected, Visitor};

use crate::files;
use crate::model::{Pattern, TargetUrl};

/// A value that is written as a string and parsed by [`FromText`].
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Text<T>(pub(super) T);

impl<T: FromText> Text<T> {
    /// Parses `text`; the error says what is allowed.
    pub(super) fn read(text: &str) -> Result<T, String> {
        T::from_text(text)
    }
}

/// Parsing of a value from a string.
pub(super) trait FromText: Sized {
    /// The expected form with an example, for errors.
    const EXPECTED: &str;

    /// Parses `text`; the error says what is allowed.
    fn from_text(text: &str) -> Result<Self, String>;
}

impl<'de, T: FromText> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written<T>(PhantomData<T>);
        impl<T: FromText> Visitor<'_> for Written<T> {
            type Value = Text<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTED)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<T>, E> {
                T::from_text(text).map(Text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Written(PhantomData))
    }
}

/// Accepts a table and nothing else. serde by itself would accept an array and assign its values to
/// the keys in order.
pub(super) fn table<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Table::deserialize(deserializer).map(|table| table.0)
}

/// Accepts an array of tables.
pub(super) fn tables<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct Tables<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Tables<T> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("double brackets, [[upstream]], because there can be several")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut tables: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(Table(one)) = tables.next_element()? {
                all.push(one);
            }
            Ok(all)
        }
    }
    deserializer.deserialize_any(Tables(PhantomData))
}

struct Table<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = T;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table, [section] in single brackets or { key = value }")
            }
            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(members))
            }
        }
        let members = deserializer.deserialize_map(Members(PhantomData));
        members.map(Self)
    }
}

impl FromText for SocketAddr {
    const EXPECTED: &str = "an address such as \"127.0.0.1:7007\" or \"[::]:7007\"";

    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| {
            format!("{text:?} is not an address; write it as \"127.0.0.1:7007\" or \"[::]:7007\"")
        })
    }
}

impl FromText for Duration {
    const EXPECTED: &str = "a duration such as \"500ms\", \"15s\" or \"1h 30m\"";

    fn from_text(text: &str) -> Result<Self, String> {
        const LONGEST: Duration = Duration::from_secs(3650 * 86_400);
        match humantime::parse_duration(text) {
            Ok(duration) if duration <= LONGEST => Ok(duration),
            Ok(_) => Err(format!("{text:?} is longer than ten years")),
            Err(_) => Err(format!(
                "{text:?} is not a duration; write it as \"500ms\", \"15s\", \"2m\" or \"1h 30m\""
            )),
        }
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

impl FromText for Size {
    const EXPECTED: &str = "a size such as \"64KiB\" or \"256MiB\"";

    fn from_text(text: &str) -> Result<Self, String> {
        const UNITS: [(&str, u64); 8] = [
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("TiB", 1 << 40),
            ("kB", 1000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("B", 1),
        ];
        let parsed = UNITS.iter().find_map(|(unit, factor)| {
            let digits = text.strip_suffix(unit)?.trim_end();
            digits.parse::<u64>().ok()?.checked_mul(*factor)
        });
        parsed.map(Self).ok_or_else(|| {
            format!("{text:?} is not a size; write it as \"64KiB\", \"256MiB\" or \"1GiB\"")
        })
    }
}

impl FromText for TargetUrl {
    const EXPECTED: &str = "a URL such as \"http://127.0.0.1:9090\"";

    fn from_text(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|e| format!("{:?}: {e}", shown(text)))
    }
}

impl FromText for IpNet {
    const EXPECTED: &str = "a network such as \"10.0.0.0/8\"";

    fn from_text(text: &str) -> Result<Self, String> {
        let net = text.parse::<Self>();
        let address = || text.parse::<IpAddr>().map(Self::from);
        let net = net.or_else(|_| address()).map_err(|_| {
            format!("{text:?} is not a network; write it as \"10.0.0.0/8\" or \"fd00::/8\"")
        })?;
        // IPv4 addresses embedded in IPv6 are compared as IPv4.
        let mapped = match net {
            Self::V6(net) => (net.addr().to_ipv4_mapped()).zip(net.prefix_len().checked_sub(96)),
            Self::V4(_) => None,
        };
        let plain = mapped.and_then(|(address, bits)| Self::new(address.into(), bits).ok());
        Ok(plain.unwrap_or(net))
    }
}

impl FromText for Pattern {
    const EXPECTED: &str = "\"host:port\" such as \"prometheus:9090\"";

    fn from_text(text: &str) -> Result<Self, String> {
        Self::parse(text).ok_or_else(|| {
            let text = shown(text);
            format!("{text:?} is not a target; write it as \"host:port\", for example \"prometheus:9090\" or \"*.monitoring:9090\"")
        })
    }
}

/// Returns `text`, which should be an address, without user, password and query.
fn shown(text: &str) -> &str {
    if text.contains('@') {
        return "…@…";
    }
    text.split(['?', '#']).next().unwrap_or_default()
}

/// A secret: never shown, not even in debug output.
#[derive(Clone, Eq)]
pub struct Secret {
    text: String,
    file: Option<PathBuf>,
}

impl PartialEq for Secret {
    /// Two secrets in the same file are equal, whatever it contained when they were read: whoever
    /// uses them follows changes of the file.
    fn eq(&self, other: &Self) -> bool {
        self.file == other.file && (self.file.is_some() || self.text == other.text)
    }
}

impl Secret {
    /// Creates a secret from `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            file: None,
        }
    }

    /// Reads the secret in the file at `path`. The error names the file.
    pub(super) fn in_file(path: PathBuf) -> Result<Self, String> {
        let contents =
            files::read(&path).map_err(|e| format!("the file {path:?} cannot be read: {e}"))?;
        let mut secret = Self {
            text: String::new(),
            file: Some(path),
        };
        secret.text = secret.reread(&mut [contents].iter())?;
        Ok(secret)
    }

    /// Returns the secret itself.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// Returns the file that it is in, if it is in one.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Returns the current secret. A secret in a file takes its text from the next of `contents`;
    /// one without a file takes none.
    pub fn reread<'a>(
        &self,
        contents: &mut impl Iterator<Item = &'a Vec<u8>>,
    ) -> Result<String, String> {
        let Some(path) = &self.file else {
            return Ok(self.text.clone());
        };
        let text = contents.next().and_then(|c| std::str::from_utf8(c).ok());
        let text = text.map(|t| t.trim_end_matches(['\r', '\n']).to_owned());
        match text {
            Some(text) if text.is_empty() => Err(format!("the file {path:?} is empty")),
            Some(text) => Ok(text),
            None => Err(format!("the file {path:?} is not valid UTF-8")),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The source of a secret, as given in the file.
#[derive(Clone)]
pub(super) enum SecretSource {
    /// In the configuration file itself.
    Inline(String),
    /// In an environment variable.
    Env(String),
    /// In a separate file; a line break at its end is not part of the secret.
    File(String),
}

impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretSource(…)")
    }
}

impl<'de> Deserialize<'de> for SecretSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Source;
        impl<'de> Visitor<'de> for Source {
            type Value = SecretSource;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, { env = \"NAME\" } or { file = \"PATH\" }")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<SecretSource, E> {
                Ok(SecretSource::Inline(text.to_owned()))
            }
            // serde's own errors would show the value.
            fn visit_bool<E: de::Error>(self, _: bool) -> Result<SecretSource, E> {
                Err(de::Error::invalid_type(Unexpected::Other("boolean"), &self))
            }
            fn visit_i64<E: de::Error>(self, _: i64) -> Result<SecretSource, E> {
                Err(de::Error::invalid_type(Unexpected::Other("integer"), &self))
            }
            fn visit_u64<E: de::Error>(self, _: u64) -> Result<SecretSource, E> {
                Err(de::Error::invalid_type(Unexpected::Other("integer"), &self))
            }
            fn visit_f64<E: de::Error>(self, _: f64) -> Result<SecretSource, E> {
                Err(de::Error::invalid_type(Unexpected::Other("float"), &self))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SecretSource, A::Error> {
                let entry = map.next_entry::<String, String>();
                let entry =
                    entry.map_err(|_| de::Error::custom("expected a string for env or file"))?;
                let Some((key, value)) = entry else {
                    return Err(de::Error::custom("expected env or file"));
                };
                if map.next_key::<String>()?.is_some() {
                    return Err(de::Error::custom("expected one of env and file, not both"));
                }
                match key.as_str() {
                    "env" => Ok(SecretSource::Env(value)),
                    "file" => Ok(SecretSource::File(value)),
                    _ => Err(de::Error::unknown_field(&key, &["env", "file"])),
                }
            }
        }
        deserializer.deserialize_any(Source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_are_written_with_units() {
        assert_eq!(Size::from_text("256MiB"), Ok(Size(256 << 20)));
        assert_eq!(Size::from_text("1 kB"), Ok(Size(1000)));
        for bad in ["", "12", "MiB", "-1MiB", "1.5GiB", "99999999999TiB"] {
            assert!(Size::from_text(bad).is_err(), "{bad}");
        }
        assert_eq!(Duration::from_text("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "5", "five", "99999y"] {
            assert!(Duration::from_text(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert!(!format!("{:?}", Secret::new("s3cret")).contains("s3cret"));
        let inline = SecretSource::Inline("s3cret".into());
        assert!(!format!("{inline:?}").contains("s3cret"));
    }
}
