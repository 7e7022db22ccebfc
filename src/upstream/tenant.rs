//! The tenant that an upstream's configured headers name.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use http::{HeaderMap, HeaderValue};

use crate::reloadable::Reloadable;

/// Headers by which stores tell tenants apart.
const TENANT: [&str; 2] = ["x-scope-orgid", "thanos-tenant"];

/// Returns a number for the tenant that `headers` name now, if they come from files and so may
/// change at run time.
pub(super) fn tenant(headers: &Reloadable<HeaderMap>) -> Option<u64> {
    if headers.is_fixed() {
        return None;
    }
    let headers = headers.get();
    let named = TENANT.map(|name| headers.get(name).map(HeaderValue::as_bytes));
    let named = named.iter().any(Option::is_some).then_some(named)?;
    Some(BuildHasherDefault::<DefaultHasher>::default().hash_one(named))
}
