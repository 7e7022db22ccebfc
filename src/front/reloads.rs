//! How a new reading of the configuration is asked for, and what it did.

use std::fmt;

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

/// Reloads that may wait for their turn.
const WAITING: usize = 16;

/// Asks for the configuration to be read again.
#[derive(Clone, Debug)]
pub struct Reloads(mpsc::Sender<ReloadReply>);

/// Who asks for reloads, one after the other.
#[derive(Debug)]
pub struct ReloadRequests(mpsc::Receiver<ReloadReply>);

/// Who is to be told of a reload.
#[derive(Debug)]
pub struct ReloadReply(oneshot::Sender<Result<Applied, String>>);

/// What a reload did, by the names of upstreams.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// They are as they were, and so is all that is known of them.
    pub kept: Vec<String>,
    /// They have other settings now.
    pub changed: Vec<String>,
    /// They are new.
    pub added: Vec<String>,
    /// They are gone.
    pub removed: Vec<String>,
    /// Keys that are other than at the start and take effect with the next.
    pub restart: Vec<&'static str>,
}

impl Reloads {
    /// A handle to ask with, and what is asked.
    pub fn new() -> (Self, ReloadRequests) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), ReloadRequests(receiver))
    }

    /// Reads the configuration again. The error says what is wrong with it; `None` if nobody
    /// reads any more.
    pub async fn ask(&self) -> Option<Result<Applied, String>> {
        let (sender, answer) = oneshot::channel();
        self.0.send(ReloadReply(sender)).await.ok()?;
        answer.await.ok()
    }
}

impl ReloadRequests {
    /// The next one who asks.
    pub async fn next(&mut self) -> Option<ReloadReply> {
        self.0.recv().await
    }
}

impl ReloadReply {
    /// Tells what became of it. Whoever asked may have left.
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
