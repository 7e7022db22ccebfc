//! The connection of commands to a server.

use std::path::{Path, PathBuf};

use clap::Args;
use http::HeaderValue;
use http::header::AUTHORIZATION;

use crate::upstream::{Http, Security};

/// Trusted authorities and credentials.
#[derive(Debug, Args)]
pub(super) struct ServerConnection {
    /// Authorities trusted in addition to the system's, in PEM
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// The client certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,

    /// The private key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,

    /// A file with the bearer token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl ServerConnection {
    /// Creates a client with these settings from `builder`.
    pub(super) fn client(
        &self,
        builder: reqwest::ClientBuilder,
    ) -> Result<reqwest::Client, String> {
        let ca = self.ca.as_deref().map(read).transpose()?;
        let security = Security {
            ca: ca.as_deref(),
            ..Security::default()
        };
        identified(builder, security, self.cert.as_deref(), self.key.as_deref())
    }

    /// Returns `request` with the token, if there is one.
    pub(super) fn shown(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<reqwest::RequestBuilder, String> {
        let Some(path) = &self.token_file else {
            return Ok(request);
        };
        let token = read(path)?;
        let value = [b"Bearer ", token.trim_ascii()].concat();
        let mut value = HeaderValue::from_bytes(&value).map_err(|_| {
            format!("--token-file {path:?} contains characters that a header cannot have")
        })?;
        value.set_sensitive(true);
        Ok(request.header(AUTHORIZATION, value))
    }
}

/// Creates a client from `builder` and `security` that presents the certificate in the file `cert`.
pub(super) fn identified(
    builder: reqwest::ClientBuilder,
    security: Security<'_>,
    cert: Option<&Path>,
    key: Option<&Path>,
) -> Result<reqwest::Client, String> {
    let cert = cert.map(read).transpose()?;
    let key = key.map(read).transpose()?;
    let security = Security {
        identity: cert.as_deref().zip(key.as_deref()),
        ..security
    };
    Http::client(builder, &security)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("the file {path:?} cannot be read: {e}"))
}
