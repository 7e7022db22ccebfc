//! The I/O that reqsign leaves to its caller: HTTP, files, commands.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use reqsign_core::{CommandExecute, CommandOutput, Error, FileRead, HttpSend, Result};

use crate::model::TargetUrl;
use crate::upstream::answer_memory::AnswerMemory;
use crate::upstream::transport::{Outgoing, Transport};

/// Most bytes of an answer, of a file, and of a command's output.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// Most time of a call to a source on this machine, and to any other.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(10);

/// Addresses besides loopback ones that credentials are fetched from without TLS: the metadata
/// services of EC2, ECS and EKS.
const METADATA: [&str; 5] = [
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "fd00:ec2::254",
    "fd00:ec2::23",
];

/// HTTP to sources of credentials.
pub(super) struct Http {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) local: Arc<dyn Transport>,
    pub(super) sts_url: Option<TargetUrl>,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

impl HttpSend for Http {
    async fn http_send(&self, request: Request<Bytes>) -> Result<Response<Bytes>> {
        let (parts, body) = request.into_parts();
        let url = match &self.sts_url {
            Some(sts) if is_sts(&parts.uri) => below(sts, &parts.uri),
            _ => parts.uri.to_string(),
        };
        let at_sts = self
            .sts_url
            .as_ref()
            .is_some_and(|s| url.starts_with(s.as_str()));
        let local = is_local(&parts.uri);
        if parts.uri.scheme_str() != Some("https") && !local && !at_sts {
            let message = "credentials are fetched without TLS only from this machine and from the metadata services of AWS";
            return Err(Error::config_invalid(message));
        }
        let (transport, limit) = match local && !at_sts {
            true => (&self.local, LOCAL_TIMEOUT),
            false => (&self.transport, TIMEOUT),
        };
        let outgoing = Outgoing {
            method: parts.method,
            url,
            headers: parts.headers,
            body,
            new_connection: false,
        };
        let sent = tokio::time::timeout(
            limit,
            transport.send(outgoing, AnswerMemory::apart(MAX_BYTES)),
        );
        let sent = sent.await.map_err(|_| {
            let limit = humantime::format_duration(limit);
            Error::unexpected(format!("no answer within {limit}"))
        })?;
        let response = sent.map_err(|e| Error::unexpected(e.to_string()))?;
        let mut answer = Response::new(response.body);
        *answer.status_mut() = response.status;
        *answer.headers_mut() = response.headers;
        Ok(answer)
    }
}

/// Returns whether `uri` is at the usual address of STS.
fn is_sts(uri: &Uri) -> bool {
    uri.host().is_some_and(|host| host.starts_with("sts."))
}

/// Returns the URL below `base` for the path and query of `uri`.
fn below(base: &TargetUrl, uri: &Uri) -> String {
    base.join(uri.path_and_query().map_or("/", |p| p.as_str()))
}

/// Returns whether `uri` is on this machine, or is a metadata service.
fn is_local(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    loopback || host == "localhost" || METADATA.contains(&host)
}

/// Files of this machine.
#[derive(Debug)]
pub(super) struct Files;

impl FileRead for Files {
    async fn file_read(&self, path: &str) -> Result<Vec<u8>> {
        let path = path.to_owned();
        let read = tokio::task::spawn_blocking(move || -> std::io::Result<Vec<u8>> {
            use std::io::Read;
            let mut contents = Vec::new();
            let file = std::fs::File::open(path)?;
            file.take(MAX_BYTES as u64).read_to_end(&mut contents)?;
            Ok(contents)
        });
        let read = read.await.map_err(|e| Error::unexpected(e.to_string()))?;
        read.map_err(|e| Error::unexpected(e.to_string()))
    }
}

/// Programs of this machine: `credential_process` of a profile.
#[derive(Debug)]
pub(super) struct Commands;

impl CommandExecute for Commands {
    async fn command_execute<'a>(
        &'a self,
        program: &'a str,
        args: &'a [&'a str],
    ) -> Result<CommandOutput> {
        let mut command = std::process::Command::new(program);
        command.args(args).stdin(std::process::Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output());
        let output = output.await.map_err(|e| Error::unexpected(e.to_string()))?;
        let output = output.map_err(|e| Error::unexpected(e.to_string()))?;
        Ok(CommandOutput {
            status: output.status.code().unwrap_or(-1),
            stdout: output.stdout,
            // It may hold anything; the output in errors is not passed on.
            stderr: Vec::new(),
        })
    }
}
