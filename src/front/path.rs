//! Paths as clients write them, and the methods they accept.

use std::borrow::Cow;

use http::Method;

use crate::model::{Error, Kind};

/// Returns `path` with repeated slashes as one and none at its end: a data source's URL often ends in
/// a slash, which makes `//api/metric`.
pub(super) fn normalized(path: &str) -> Cow<'_, str> {
    let repeated = path.as_bytes().windows(2).any(|pair| pair == b"//");
    if !repeated && !path.ends_with('/') {
        return path.into();
    }
    let parts = path.split('/').filter(|p| !p.is_empty());
    parts
        .fold(String::new(), |all, part| all + "/" + part)
        .into()
}

/// Checks that `method` is among the `allowed` ones; the error names them.
pub(super) fn allow(method: &Method, allowed: &[Method]) -> Result<(), Error> {
    if allowed.contains(method) {
        return Ok(());
    }
    let allowed: Vec<&str> = allowed.iter().map(Method::as_str).collect();
    let allowed = allowed.join(", ");
    let message = format!("{method} is not allowed here; use {allowed}");
    Err(Error::new(Kind::MethodNotAllowed, message).about(allowed))
}
