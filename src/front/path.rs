//! Paths as clients write them, and what may be done at one.

use std::borrow::Cow;

use http::Method;

use crate::model::{Error, Kind};

/// `path` with repeated slashes as one and none at its end: a data source's URL often ends in a
/// slash, so that `//api/metric` is asked for.
pub(super) fn normalized(path: &str) -> Cow<'_, str> {
    if !path.contains("//") && !path.ends_with('/') {
        return path.into();
    }
    let parts = path.split('/').filter(|p| !p.is_empty());
    parts
        .fold(String::new(), |all, part| all + "/" + part)
        .into()
}

/// Whether a path is asked by `method`; the error names the `allowed` ones.
pub(super) fn allow(method: &Method, allowed: &[Method]) -> Result<(), Error> {
    if allowed.contains(method) {
        return Ok(());
    }
    let allowed: Vec<&str> = allowed.iter().map(Method::as_str).collect();
    let allowed = allowed.join(", ");
    let message = format!("{method} is not allowed here; use {allowed}");
    Err(Error::new(Kind::MethodNotAllowed, message).about(allowed))
}
