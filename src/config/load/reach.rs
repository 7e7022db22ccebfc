//! The address and the certificate of a server, read leniently: other errors in its configuration
//! do not matter.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::DEFAULT_LISTEN;
use crate::files;

/// Returns the address at which a server started with the file at `path` and `env` listens. Only
/// that key is read: other errors in the file do not matter.
pub fn listens_at(path: Option<&Path>, env: &BTreeMap<String, String>) -> SocketAddr {
    let in_file = || {
        let table = readable(path?)?;
        Some(table.get("server")?.get("listen")?.as_str()?.to_owned())
    };
    let said = env
        .get("HELIOSTAT_SERVER__LISTEN")
        .cloned()
        .or_else(in_file);
    let said = said.and_then(|text| text.trim_matches('"').parse().ok());
    said.unwrap_or(DEFAULT_LISTEN)
}

/// Returns the certificate that such a server presents, or `None` if it serves plain HTTP.
pub fn certificate_at(path: Option<&Path>, env: &BTreeMap<String, String>) -> Option<PathBuf> {
    let in_file = || {
        let table = readable(path?)?;
        let tls = table.get("server")?.get("tls")?;
        Some(tls.get("cert")?.as_str()?.to_owned())
    };
    let said = env.get("HELIOSTAT_SERVER__TLS__CERT").cloned();
    let said = said.or_else(in_file)?;
    let path = said.trim_matches('"');
    (!path.is_empty()).then(|| PathBuf::from(path))
}

/// Returns the contents of the file at `path` up to its first line that is not valid TOML.
fn readable(path: &Path) -> Option<toml::Table> {
    let text = String::from_utf8(files::read(path).ok()?).ok()?;
    let lines: Vec<&str> = text.lines().collect();
    let readable = |n| toml::from_str::<toml::Table>(&lines.get(..n)?.join("\n")).ok();
    (0..=lines.len()).rev().find_map(readable)
}
