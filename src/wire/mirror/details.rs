//! `connectionDetails`: the upstream that a request is for, and the details passed on to it.

use std::net::Ipv6Addr;
use std::time::Duration;

use crate::model::{Details, Error, NanInterpretation, TargetUrl};
use crate::wire::json::{Json, Node};

/// Reads the details in `node`.
pub(super) fn details(node: &Node<'_>) -> Result<Details, Error> {
    let members = node.object()?;
    let upstream = node.member("upstream").optional_string()?;
    let mut null = members.iter().filter(|(_, value)| *value == Json::Null);
    if null.any(|(name, _)| name == "upstream") {
        // An invalid name would select the default upstream, which is not what was meant.
        return Err(node.member("upstream").expected("the name of an upstream"));
    }
    let url = target(node)?;
    // Members that select the upstream are Heliostat's own; the rest may be meant for the upstream.
    let picks = upstream.is_some() || url.is_some();
    let ours = |name: &str| picks && ["upstream", "url", "host", "port"].contains(&name);
    let rest = members.iter().filter(|(name, _)| !ours(name));
    let rest = rest.map(|(name, value)| (name.clone().into_owned(), value.to_value()));
    Ok(Details {
        upstream: upstream.map(str::to_owned),
        url,
        timeout: timeout(node)?,
        nan: nan_interpretation(&node.member("nan_interpretation"))?,
        rest: rest.collect(),
    })
}

/// Returns the address in `{"url"}` or `{"host", "port"}`.
fn target(node: &Node<'_>) -> Result<Option<TargetUrl>, Error> {
    let (url, host, port) = (node.member("url"), node.member("host"), node.member("port"));
    if let Some(text) = url.optional_string()?.filter(|t| !t.is_empty()) {
        let parsed = TargetUrl::parse(text);
        return parsed.map(Some).map_err(|e| Error::invalid(url.path(), e));
    }
    let Some(name) = host.optional_string()?.filter(|t| !t.is_empty()) else {
        return Ok(None);
    };
    let port = match port.value() {
        // The old mirror's form has the port as text.
        Some(Json::String(text)) => text.parse::<u16>().ok().filter(|p| *p > 0),
        _ => port
            .optional_integer(1, 65535)?
            .map_or(Some(80), |p| u16::try_from(p).ok()),
    }
    .ok_or_else(|| port.expected("a port from 1 to 65535"))?;
    let (scheme, name) = match name.split_once("://") {
        Some((scheme, name)) => (scheme, name),
        None => ("http", name),
    };
    let bracketed = name
        .parse::<Ipv6Addr>()
        .map(|address| format!("[{address}]"));
    let name = bracketed.as_deref().unwrap_or(name);
    if name.contains(['/', '@', '?', '#', '\\']) {
        return Err(host.expected("a host name without path or user"));
    }
    TargetUrl::parse(&format!("{scheme}://{name}:{port}"))
        .map(Some)
        .map_err(|e| Error::invalid(host.path(), e))
}

fn timeout(node: &Node<'_>) -> Result<Option<Duration>, Error> {
    const DAY: f64 = 86_400.0;
    for (key, unit) in [("requestTimeout", 0.001), ("request_timeout_seconds", 1.0)] {
        let node = node.member(key);
        if node.is_present() {
            let seconds = node
                .number()
                .map(|n| n * unit)
                .filter(|s| *s > 0.0 && *s <= DAY)
                .ok_or_else(|| node.expected("a positive number, at most a day"))?;
            return Ok(Some(Duration::from_secs_f64(seconds)));
        }
    }
    Ok(None)
}

fn nan_interpretation(node: &Node<'_>) -> Result<NanInterpretation, Error> {
    match node.optional_string()? {
        None | Some("NONE") => Ok(NanInterpretation::Omit),
        Some("ZERO") => Ok(NanInterpretation::Zero),
        Some(_) => Err(node.expected("\"ZERO\" or \"NONE\"")),
    }
}
