//! Requests to reload the configuration, and what a reload changed.

use std::fmt;

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

/// Most reloads that wait for their turn.
const WAITING: usize = 16;

/// A handle that requests reloads of the configuration.
#[derive(Clone, Debug)]
pub struct Reloads(mpsc::Sender<ReloadReply>);

/// The requests for reloads, in order.
#[derive(Debug)]
pub struct ReloadRequests(mpsc::Receiver<ReloadReply>);

/// The requester of a reload, to be told the outcome.
#[derive(Debug)]
pub struct ReloadReply(oneshot::Sender<Result<Applied, String>>);

/// The changes that a reload made, by the names of upstreams.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// Unchanged, with their whole state.
    pub kept: Vec<String>,
    /// With different settings.
    pub changed: Vec<String>,
    /// New.
    pub added: Vec<String>,
    /// Gone.
    pub removed: Vec<String>,
    /// Keys that differ from the start of the process; only a restart applies them.
    pub restart: Vec<&'static str>,
}

impl Reloads {
    /// Returns a handle, and the requests made with it.
    pub fn new() -> (Self, ReloadRequests) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), ReloadRequests(receiver))
    }

    /// Requests a reload and waits for its outcome; the error says what is wrong with the configuration.
    /// `None` if the service has stopped.
    pub async fn ask(&self) -> Option<Result<Applied, String>> {
        let (sender, answer) = oneshot::channel();
        self.0.send(ReloadReply(sender)).await.ok()?;
        answer.await.ok()
    }
}

impl ReloadRequests {
    /// Returns the next request.
    pub async fn next(&mut self) -> Option<ReloadReply> {
        self.0.recv().await
    }
}

impl ReloadReply {
    /// Sends the outcome. The requester may have left.
    pub fn send(self, outcome: Result<Applied, String>) {
        let _ = self.0.send(outcome);
    }
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = [
            ("unchanged", &self.kept),
            ("changed", &self.changed),
            ("added", &self.added),
            ("removed", &self.removed),
        ];
        let said = lists.iter().filter(|(_, names)| !names.is_empty());
        let said: Vec<String> = said
            .map(|(what, names)| format!("{what}: {}", names.join(", ")))
            .collect();
        f.write_str(&said.join("; "))?;
        if !self.restart.is_empty() {
            write!(f, "; only a restart applies {}", self.restart.join(", "))?;
        }
        Ok(())
    }
}
