//! Signature Version 4, implemented from AWS' description and independently of Heliostat's code.

use std::fmt::Write as _;

use ring::{digest, hmac};

use crate::scripted::Seen;

/// Checks that `seen` was signed with `secret` for `region` and `service`. Returns the id of the
/// key, or the error.
pub(crate) fn verify(
    seen: &Seen,
    secret: &str,
    region: &str,
    service: &str,
) -> Result<String, String> {
    let header = |name: &str| seen.headers.get(name).map(String::as_str);
    let authorization = header("authorization").ok_or("no Authorization")?;
    let fields = authorization
        .strip_prefix("AWS4-HMAC-SHA256 ")
        .ok_or("another algorithm")?;
    let field = |name: &str| {
        let mut fields = fields.split(", ");
        let found = fields.find_map(|f| f.strip_prefix(name)?.strip_prefix('='));
        found.ok_or_else(|| format!("no {name}"))
    };
    let (credential, signed, signature) = (
        field("Credential")?,
        field("SignedHeaders")?,
        field("Signature")?,
    );
    let (id, scope) = credential.split_once('/').ok_or("no scope")?;
    let time = header("x-amz-date").ok_or("no X-Amz-Date")?;
    let expected = format!("{}/{region}/{service}/aws4_request", &time[..8]);
    if scope != expected {
        return Err(format!("signed for {scope}, not for {expected}"));
    }
    let names: Vec<&str> = signed.split(';').collect();
    for needed in [
        "host",
        "x-amz-date",
        "content-type",
        "x-amz-target",
        "x-amz-security-token",
    ] {
        if header(needed).is_some() && !names.contains(&needed) {
            return Err(format!("{needed} is not signed"));
        }
    }
    let (path, query) = seen.path.split_once('?').unwrap_or((&seen.path, ""));
    let mut pairs: Vec<(String, String)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (encode(&decode(name), ""), encode(&decode(value), ""))
        })
        .collect();
    pairs.sort();
    let query: Vec<String> = pairs.iter().map(|(n, v)| format!("{n}={v}")).collect();
    let payload = hex(digest::digest(&digest::SHA256, &seen.body).as_ref());
    if header("x-amz-content-sha256").is_some_and(|said| said != payload) {
        return Err("another body".into());
    }
    let mut canonical = format!(
        "{}\n{}\n{}\n",
        seen.method,
        encode(path.as_bytes(), "/"),
        query.join("&")
    );
    for name in &names {
        let value = header(name).ok_or_else(|| format!("{name} is signed and not there"))?;
        let words: Vec<&str> = value.split(' ').filter(|w| !w.is_empty()).collect();
        let _ = writeln!(canonical, "{name}:{}", words.join(" "));
    }
    let _ = write!(canonical, "\n{signed}\n{payload}");
    let hash = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{hash}");
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in [&time[..8], region, service, "aws4_request"] {
        key = mac(&key, part);
    }
    match hex(&mac(&key, &to_sign)) == signature {
        true => Ok(id.to_owned()),
        false => Err(format!("another signature for {canonical:?}")),
    }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn encode(bytes: &[u8], also: &str) -> String {
    let mut text = String::new();
    for byte in bytes {
        let c = char::from(*byte);
        match c.is_ascii_alphanumeric() || "-._~".contains(c) || also.contains(c) {
            true => text.push(c),
            false => text += &format!("%{byte:02X}"),
        }
    }
    text
}

fn decode(text: &str) -> Vec<u8> {
    percent_encoding::percent_decode_str(text).collect()
}

fn seen(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Seen {
    let headers = headers.iter();
    Seen {
        method: method.to_owned(),
        path: path.to_owned(),
        headers: headers
            .map(|(n, v)| (n.to_string(), v.to_string()))
            .collect(),
        body: body.as_bytes().to_vec(),
    }
}

/// Of AWS' own examples (documentation of Signature Version 4, "get-vanilla-query-order-key-case"
/// and "post-x-www-form-urlencoded" of its test suite).
#[test]
fn aws_own_examples_pass() {
    let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    let credential =
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request";
    let get = seen(
        "GET",
        "/?Param2=value2&Param1=value1",
        &[
            ("host", "example.amazonaws.com"),
            ("x-amz-date", "20150830T123600Z"),
            (
                "authorization",
                &format!(
                    "{credential}, SignedHeaders=host;x-amz-date, Signature=b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"
                ),
            ),
        ],
        "",
    );
    assert_eq!(
        verify(&get, secret, "us-east-1", "service"),
        Ok("AKIDEXAMPLE".into())
    );
    let post = seen(
        "POST",
        "/",
        &[
            ("content-type", "application/x-www-form-urlencoded"),
            ("host", "example.amazonaws.com"),
            ("x-amz-date", "20150830T123600Z"),
            (
                "authorization",
                &format!(
                    "{credential}, SignedHeaders=content-type;host;x-amz-date, Signature=ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"
                ),
            ),
        ],
        "Param1=value1",
    );
    assert_eq!(
        verify(&post, secret, "us-east-1", "service"),
        Ok("AKIDEXAMPLE".into())
    );
    for wrong in [
        verify(&get, "other", "us-east-1", "service"),
        verify(&get, secret, "eu-west-1", "service"),
        verify(
            &Seen {
                path: "/?Param2=value2".into(),
                ..get.clone()
            },
            secret,
            "us-east-1",
            "service",
        ),
        verify(
            &Seen {
                body: b"x".to_vec(),
                ..post
            },
            secret,
            "us-east-1",
            "service",
        ),
    ] {
        assert!(wrong.is_err());
    }
}
