//! `heliostat health`: a probe for images that contain only the binary.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::client::identified;
use super::{block_on, complain};
use crate::upstream::{Http, Security};

/// The time-out; a server that takes longer is not ready.
const LIMIT: Duration = Duration::from_secs(3);

/// Arguments of `heliostat health`.
#[derive(Debug, Args)]
pub(super) struct Health {
    /// The client certificate, in PEM, if [server.tls] client_ca requires one
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,

    /// The private key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

impl Health {
    /// Asks the server at `address` whether it is ready.
    pub(super) fn run(&self, address: SocketAddr) -> ExitCode {
        let asked = block_on(self.ask(reached_at(address)));
        match asked.map_err(|e| e.to_string()).and_then(|answer| answer) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(&error);
                ExitCode::FAILURE
            }
        }
    }

    async fn ask(&self, address: SocketAddr) -> Result<(), String> {
        // The server is on this machine, so proxies from the environment do not apply.
        let builder = Http::builder().no_proxy().timeout(LIMIT);
        let security = Security {
            // Its certificate is not for this address, and the probe sends no secret.
            insecure: true,
            ..Security::default()
        };
        let client = identified(builder, security, self.cert.as_deref(), self.key.as_deref())?;
        let mut failure = String::new();
        // Only the server knows whether it uses TLS; the configuration may have changed since it
        // started.
        for scheme in ["http", "https"] {
            let url = format!("{scheme}://{address}/readyz");
            match client.get(&url).send().await {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => return Err(format!("{url}: {}", answer.status())),
                Err(error) => failure = error.to_string(),
            }
        }
        Err(format!(
            "no answer at {address}, neither by HTTP nor by HTTPS: {failure}"
        ))
    }
}

/// Returns the address at which a server that listens on `listen` can be reached from this machine.
pub(super) fn reached_at(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_listener_is_probed_on_loopback() {
        for (listen, reached) in [
            ("0.0.0.0:7007", "127.0.0.1:7007"),
            ("[::]:80", "[::1]:80"),
            ("10.1.2.3:1", "10.1.2.3:1"),
        ] {
            assert_eq!(reached_at(listen.parse().unwrap()).to_string(), reached);
        }
    }
}
