//! Paths as clients write them.

use std::borrow::Cow;

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
