//! How the commands that ask a server connect to it.

use std::path::{Path, PathBuf};

use clap::Args;
use http::HeaderValue;
use http::header::AUTHORIZATION;

use crate::upstream::{Http, Security};

/// What a server is believed by, and what is shown to it.
#[derive(Debug, Args)]
pub(super) struct ServerConnection {
    /// Authorities that are trusted besides the system's, in PEM
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// A certificate to show, in PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,

    /// The certificate's private key, in PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,

    /// A file with the bearer token to show
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl ServerConnection {
    /// A client that connects so, made with `builder`.
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

    /// `request` with the token, if there is one.
    pub(super) fn shown(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<reqwest::RequestBuilder, String> {
        let Some(path) = &self.token_file else {
            return Ok(request);
        };
        let token = read(path)?;
        let value = [b"Bearer ", token.trim_ascii()].concat();
        let mut value = HeaderValue::from_bytes(&value)
            .map_err(|_| format!("--token-file {path:?} holds what a header cannot carry"))?;
        value.set_sensitive(true);
        Ok(request.header(AUTHORIZATION, value))
    }
}

/// A client made with `builder` and `security` that shows the certificate in the file `cert`.
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
